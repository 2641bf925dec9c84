"""A comparison with everything a report has to show: seeds, epsilons, failures, infinities."""

import math

import numpy as np

from privtrain.core.cost import Cost
from privtrain.core.observers import PUBLIC, Observer
from privtrain.core.result import Comparison, History, Leakage, Row
from privtrain.core.statement import (
    ADD_REMOVE,
    REPLACE_ONE,
    SIMULATED,
    ZERO_OUT,
    Adversary,
    Guarantee,
    InputPrivacy,
    PrivacyCurves,
    PrivacyStatement,
    Relation,
    Security,
    Unit,
)

EPSILONS = (1.0, 3.0, 8.0)


def guarantee(
    observer: str,
    epsilon: float,
    unit: Unit = Unit.EXAMPLE,
    relation: Relation = ADD_REMOVE,
    *,
    data_dependent: bool = False,
) -> Guarantee:
    finite = math.isfinite(epsilon)
    return Guarantee(
        observer=Observer(observer),
        unit=unit,
        relation=relation,
        epsilon=epsilon,
        delta=1e-5,
        accountant="pld" if finite else "none",
        cross_check=epsilon * 1.08 if finite else None,
        theorem="Gaussian mechanism, Poisson sampling (Abadi et al. 2016)" if finite else "",
        assumptions=("the sample is secret",) if finite else (),
        data_dependent=data_dependent,
        releases=400 if finite else 0,
    )


def curves(epsilon: float) -> PrivacyCurves:
    """Made-up curves of about the right shape, through (1e-5, epsilon)."""
    return PrivacyCurves(
        observer=PUBLIC,
        unit=Unit.EXAMPLE,
        relation=ADD_REMOVE,
        epsilon_by_delta=tuple(
            (10.0**-power, epsilon * math.sqrt(power / 5)) for power in range(2, 11)
        ),
        trade_off=tuple(
            (part / 20, max(0.0, 1 - math.exp(epsilon / 4) * part / 20)) for part in range(21)
        ),
        mu=epsilon / 4,
    )


def leakage(auc: float, half: float = 0.03) -> Leakage:
    return Leakage(
        attack="loss threshold",
        observer="public",
        metrics={
            "auc": auc,
            "advantage": 2 * auc - 1,
            "tpr_at_1%_fpr": 0.02,
            "realised_fpr_at_1%": 0.009,
            "tpr_at_0.1%_fpr": None,
            "realised_fpr_at_0.1%": None,
        },
        intervals={
            "auc": (auc - half, auc + half),
            "advantage": (2 * auc - 1 - half, 2 * auc - 1 + half),
            "tpr_at_1%_fpr": (0.004, 0.06),
        },
        members=1_200,
        non_members=1_200,
        notes=("TPR at 0.1% FPR is not resolvable: 10,000 non-members are needed",),
    )


def history(rounds: int, epsilon: float, rate: float, seed: int) -> History:
    record = History()
    rng = np.random.default_rng(seed)
    for done in range(1, rounds + 1):
        loss = 2.3 * math.exp(-rate * done / rounds) + 0.05 * rng.random()
        record.record(done, training_loss=loss, fraction_clipped=0.5 + 0.2 * rng.random())
        if math.isfinite(epsilon):
            record.epsilon.append((done, epsilon * math.sqrt(done / rounds)))
    return record


def sgd(seed: int) -> Row:
    return Row(
        trainer="sgd",
        label="pooled",
        seed=seed,
        accuracy=0.972 + 0.002 * seed,
        accuracy_interval=(0.951 + 0.002 * seed, 0.987 + 0.002 * seed),
        statement=PrivacyStatement(
            guarantees=(guarantee("public", math.inf),),
            input_privacy=(InputPrivacy(reader="curator", reads="all rows"),),
            caveats=(SIMULATED,),
        ),
        cost=Cost(bytes_sent=0, rounds=0, seconds=1.3, peak_memory_bytes=410_000_000),
        leakage=(leakage(0.561),),
        history=history(20, math.inf, 4.0, seed),
    )


def dp_sgd(seed: int, epsilon: float) -> Row:
    accuracy = 0.95 - 0.08 / epsilon + 0.003 * seed
    missed = epsilon == 1.0
    spent = 1.31 if missed else epsilon * 0.994
    return Row(
        trainer="dp_sgd",
        label="DP-SGD",
        seed=seed,
        epsilon_asked=epsilon,
        accuracy=accuracy,
        accuracy_interval=(accuracy - 0.025, accuracy + 0.02),
        statement=PrivacyStatement(
            guarantees=(guarantee("public", spent), guarantee("participant", spent)),
            input_privacy=(InputPrivacy(reader="curator", reads="all rows"),),
            caveats=(SIMULATED, "float noise: research use", "tuning not counted"),
            curves=(curves(spent),),
        ),
        cost=Cost(bytes_sent=0, rounds=0, seconds=6.1, peak_memory_bytes=520_000_000),
        leakage=(leakage(0.509),),
        history=history(400, spent, 2.5, seed),
        halted="the budget was used up after 380 releases"
        if epsilon == 3.0 and seed == 2
        else None,
        met=not missed,
    )


def fedavg(seed: int) -> Row:
    sent = {f"client-{index:02d}": 380_000 + 1_000 * index for index in range(20)}
    sent["aggregator"] = 7_600_000
    return Row(
        trainer="fedavg",
        label="FedAvg",
        seed=seed,
        accuracy=0.961 + 0.001 * seed,
        accuracy_interval=(0.938, 0.977),
        statement=PrivacyStatement(
            guarantees=tuple(
                guarantee(name, math.inf, Unit.CLIENT, ZERO_OUT)
                for name in ("public", "participant", "aggregator")
            ),
            input_privacy=(
                InputPrivacy(reader="aggregator", reads="each client's update, in every round"),
                InputPrivacy(reader="participant", reads="the model of every round"),
            ),
            caveats=(SIMULATED,),
        ),
        cost=Cost(
            bytes_sent=sum(sent.values()),
            rounds=60,
            seconds=4.4,
            peak_memory_bytes=450_000_000,
            bytes_sent_by_party=sent,
        ),
        leakage=(leakage(0.548),),
        history=history(30, math.inf, 3.2, seed),
    )


def distributed_dp(seed: int, epsilon: float) -> Row:
    base = fedavg(seed)
    accuracy = 0.93 - 0.16 / epsilon + 0.004 * seed
    assert base.cost is not None
    return Row(
        trainer="fedavg",
        label="FedAvg, local DP per client",
        seed=seed,
        epsilon_asked=epsilon,
        accuracy=accuracy,
        accuracy_interval=(accuracy - 0.03, accuracy + 0.025),
        statement=PrivacyStatement(
            guarantees=(
                guarantee("public", epsilon * 0.99, Unit.CLIENT, ZERO_OUT),
                guarantee("participant", epsilon * 0.99, Unit.CLIENT, ZERO_OUT),
                guarantee("aggregator", epsilon * 22, Unit.CLIENT, REPLACE_ONE),
                guarantee("coalition of 6 parties", epsilon * 1.23, Unit.CLIENT, ZERO_OUT),
            ),
            input_privacy=(
                InputPrivacy(reader="aggregator", reads="each client's noisy update"),
                InputPrivacy(reader="participant", reads="the model of every round"),
            ),
            caveats=(SIMULATED, "float noise: research use"),
        ),
        cost=base.cost,
        leakage=(leakage(0.503),),
        history=history(30, epsilon * 0.99, 1.9, seed),
        met=True,
    )


def mpc_sgd(seed: int) -> Row:
    if seed == 1:
        return Row(
            trainer="mpc_sgd",
            label="MPC",
            seed=seed,
            error="PartyLostError: computing-1 did not answer within 60 s (exit code -9).",
        )
    return Row(
        trainer="mpc_sgd",
        label="MPC",
        seed=seed,
        accuracy=0.953,
        accuracy_interval=(0.929, 0.971),
        statement=PrivacyStatement(
            guarantees=(
                guarantee("public", math.inf),
                guarantee("coalition of 2 parties", math.inf),
            ),
            input_privacy=(
                InputPrivacy(
                    reader="computing-0",
                    reads="shares; it deals the triples and so reads everything it receives",
                    adversary=Adversary.TRUSTED,
                    security=Security.NONE,
                    dealer="computing-0",
                    honest="computing-0",
                ),
                InputPrivacy(
                    reader="computing-1",
                    reads="shares only",
                    adversary=Adversary.SEMI_HONEST,
                    security=Security.COMPUTATIONAL,
                    dealer="computing-0",
                    honest="one computing party",
                ),
            ),
            caveats=("CrypTen: no authentication of parties, seeds travel in clear",),
        ),
        cost=Cost(
            bytes_sent=1_310_000_000,
            rounds=42_000,
            seconds=212.0,
            peak_memory_bytes=690_000_000,
            bytes_sent_by_party={"computing-0": 655_000_000, "computing-1": 655_000_000},
        ),
        leakage=(leakage(0.541),),
        history=history(3, math.inf, 2.0, seed),
        notes=("the 20 data parties share their rows to 2 computing parties",),
    )


def pate(seed: int, epsilon: float) -> Row:
    if epsilon == 1.0:
        return Row(
            trainer="pate",
            label="PATE",
            seed=seed,
            epsilon_asked=epsilon,
            error=(
                "BudgetExceededError: not one query fits epsilon=1.0 with sigma=4.0 and 20 "
                "teachers; ask fewer queries or raise sigma."
            ),
        )
    accuracy = 0.90 - 0.2 / epsilon + 0.01 * seed
    return Row(
        trainer="pate",
        label="PATE",
        seed=seed,
        epsilon_asked=epsilon,
        accuracy=accuracy,
        accuracy_interval=(accuracy - 0.035, accuracy + 0.03),
        statement=PrivacyStatement(
            guarantees=(
                guarantee("public", epsilon, Unit.EXAMPLE, REPLACE_ONE),
                guarantee("public", epsilon * 0.6, Unit.EXAMPLE, REPLACE_ONE, data_dependent=True),
                guarantee("aggregator", math.inf, Unit.EXAMPLE, REPLACE_ONE),
            ),
            input_privacy=(InputPrivacy(reader="aggregator", reads="every teacher's vote"),),
            caveats=(SIMULATED,),
        ),
        cost=Cost(
            bytes_sent=32_000,
            rounds=1,
            seconds=9.8,
            peak_memory_bytes=470_000_000,
            bytes_sent_by_party={f"teacher-{index:02d}": 1_600 for index in range(20)},
        ),
        leakage=(leakage(0.498),),
        notes=("no public rows given: 300 training rows were kept from the teachers",),
        met=True,
    )


def card() -> dict[str, object]:
    return {
        "created": "2025-03-01T12:00:00+00:00",
        "privtrain": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "flwr": "1.41.0", "numpy": "2.4.6"},
        "machine": {"system": "Linux x86_64", "cpus": 2, "memory_bytes": 25_000_000_000},
        "data": {"name": "digits", "rows": 1437, "keyed_digest": "9f2c" * 16, "parties": 20},
        "seeds": [0, 1, 2],
        "delta": 1e-5,
        "entropy": "seeded",
        "configuration": {"FedAvg": "FedAvg(rounds=30, sampling=FixedSize(10))"},
    }


def realistic() -> Comparison:
    """Five trainers, three seeds, three epsilons; failures, a halt, an unmet epsilon."""
    rows: list[Row] = []
    rows += [sgd(seed) for seed in range(3)]
    rows += [dp_sgd(seed, epsilon) for epsilon in EPSILONS for seed in range(3)]
    rows += [fedavg(seed) for seed in range(3)]
    rows += [distributed_dp(seed, epsilon) for epsilon in EPSILONS for seed in range(3)]
    rows += [mpc_sgd(seed) for seed in range(3)]
    rows += [pate(seed, epsilon) for epsilon in EPSILONS for seed in range(3)]
    study = {"data": "digits", "seeds": 3, "trainers": {"pooled": {"token": "sgd"}}}
    return Comparison(rows=tuple(rows), card=card(), study=study)


def hostile() -> Comparison:
    """Names that try to break out of every format."""
    bad = '<script>alert(1)</script> & 100% $x_1$ \\input{x} "q", [bold]b[/bold]'
    return Comparison(
        rows=(
            Row(
                trainer="sgd",
                label=bad,
                seed=0,
                accuracy=0.5,
                accuracy_interval=(0.4, 0.6),
                statement=PrivacyStatement(
                    guarantees=(guarantee("public", 2.0), guarantee(bad, 3.0)),
                    input_privacy=(InputPrivacy(reader=bad, reads=bad),),
                    caveats=(bad,),
                    curves=(curves(2.0),),
                ),
                cost=Cost(bytes_sent=1, rounds=1, seconds=1.0, peak_memory_bytes=1),
                leakage=(Leakage(attack=bad, observer=bad, metrics={bad: 0.5}),),
                history=History(unprotected={bad: [(1, 0.5), (2, 0.4)]}, epsilon=[(1, 1.0)]),
                notes=(bad,),
            ),
            Row(trainer="mpc_sgd", label="_" + bad, seed=0, error=bad + "\nsecond line"),
        ),
        card={"name": bad, bad: {"deep": bad}},
    )
