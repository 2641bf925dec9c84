"""Law: every attack on every trainer gives a figure, or a reason out of a closed list."""

import functools
from collections.abc import Mapping

import pytest
import torch
from torch import nn

import privtrain as pt
from privtrain.attacks.attack import Attack
from privtrain.command.tokens import ATTACK_TOKENS, TRAINER_TOKENS
from privtrain.core.errors import Reason
from privtrain.core.result import Leakage
from privtrain.core.runtime import Runtimes
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import Trainer
from privtrain.data.canaries import with_canaries
from privtrain.runs.attacking import attacked

TASK = Task(model=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))

TRAINERS: Mapping[str, Trainer] = {
    "sgd": pt.SGD(epochs=2),
    "dp_sgd": pt.DPSGD(epochs=2, sampling_rate=0.2),
    "fedavg": pt.FedAvg(rounds=2),
    "mpc_sgd": pt.MPCSGD(epochs=1, batch_size=48),
    "pate": pt.PATE(teachers=10, queries=10, student=pt.SemiSupervised(steps=10)),
}

SMALL: Mapping[str, Mapping[str, int]] = {
    "lira": {"shadows": 4},
    "rmia": {"shadows": 4},
    "one_run": {"guesses": 20},
    "model_sequence": {"shadows": 4},
    "client_membership": {"shadows": 4},
}
"""Settings that make an attack quick."""

OTHERS: Mapping[tuple[str, str], Reason] = {
    # Who pools the rows has none to guess, and sends nobody models on the way.
    **{("model_sequence", trainer): Reason.NO_MESSAGES for trainer in ("sgd", "dp_sgd", "pate")},
    **{
        (attack, trainer): Reason.KNOWS_ALL
        for attack in ("row_span", "loss_gain")
        for trainer in ("sgd", "dp_sgd")
    },
    # Teachers send votes, and no updates.
    **{(attack, "pate"): Reason.NO_MESSAGES for attack in ("row_span", "loss_gain")},
    # There is no aggregator, and parties read shares alone.
    **{(attack, "mpc_sgd"): Reason.NOBODY for attack in ("row_span", "loss_gain")},
    ("model_sequence", "mpc_sgd"): Reason.NO_TENSORS,
}
"""What has no figure, and why: attack, trainer."""


def rows(seed: int, count: int) -> Rows:
    """Rows whose class is the sign of a feature."""
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return Rows(inputs, (inputs[:, 0] > 0).long())


def data() -> FederatedData:
    """Eight parties with twelve rows each, canaries, and public rows."""
    parts = {f"party-{number}": rows(number, 12) for number in range(8)}
    held = FederatedData(
        train=parts, test=rows(90, 96), validation=rows(93, 40),
        public=Rows(rows(91, 40).inputs), public_rows=96,
    )  # fmt: skip
    return with_canaries(held, rows(92, 40), seed=0)


def attack_of(token: str) -> Attack:
    made: Attack = getattr(pt, ATTACK_TOKENS[token])(**SMALL.get(token, {}))
    return made


@functools.cache
def leakages(trainer: str) -> Mapping[str, Leakage]:
    """What every attack learns of a run of a trainer."""
    made, held = TRAINERS[trainer], data()
    where = Runtimes(star=pt.InProcess(), mesh=pt.Threads())
    keeps = trainer != "mpc_sgd"
    result = pt.fit(made, TASK, held, runtimes=where, keep_payloads=keeps, delta=1e-3)
    tokens = sorted(ATTACK_TOKENS)
    found, notes = attacked(result, [attack_of(token) for token in tokens], TASK, held, seed=0)
    assert notes == ()
    return dict(zip(tokens, found, strict=True))


def test_every_trainer_is_attacked() -> None:
    assert set(TRAINERS) == set(TRAINER_TOKENS)


@pytest.mark.parametrize("attack", sorted(ATTACK_TOKENS))
@pytest.mark.parametrize("trainer", sorted(TRAINERS))
def test_a_cell_has_a_figure_or_its_reason(attack: str, trainer: str) -> None:
    found, reason = leakages(trainer)[attack], OTHERS.get((attack, trainer))
    if reason is not None:
        assert found.failure is not None and found.failure.reason is reason
        assert not found.metrics
        return
    assert found.failure is None, found.failure
    figure = found.metrics.get("auc", found.metrics.get("epsilon_lower_bound"))
    assert figure is not None and 0.0 <= figure < float("inf")
    assert found.unit is not None and found.seconds is not None and found.queries is not None


def test_most_cells_have_a_figure() -> None:
    cells = len(ATTACK_TOKENS) * len(TRAINERS)
    assert {(a, t) for a, t in OTHERS} <= {(a, t) for a in ATTACK_TOKENS for t in TRAINERS}
    assert len(OTHERS) <= 0.4 * cells
