"""The one-run attack: it counts right guesses, and says what they prove and what they cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from privtrain.accounting.curves import wide_pairs
from privtrain.accounting.event import gaussian_event
from privtrain.attacks.one_run.attack import OneRun, right_guesses
from privtrain.attacks.one_run.bounds import ceiling, epsilon_bound
from privtrain.core.observers import PUBLIC
from privtrain.core.statement import ADD_REMOVE, ZERO_OUT, PrivacyCurves, Unit
from privtrain.core.task import Canaries, Rows, Task
from privtrain.data.canaries import with_canaries
from privtrain.runs.auditing import audit
from privtrain.runs.fitting import fit
from privtrain.trainers.sgd import SGD
from tests.attacks.looking import judged_by_coins
from tests.contracts.attack import CANARIES, target
from tests.trainers.federations import STAR, TASK, a_federation, some_rows


def some_canaries(count: int, seed: int = 0) -> Canaries:
    generator = torch.Generator().manual_seed(seed)
    coins = torch.rand(count, generator=generator) < 0.5
    return Canaries(
        rows=Rows(torch.zeros(count, 1), torch.zeros(count, dtype=torch.long)), included=coins
    )


def promise(relation: object = ADD_REMOVE, unit: Unit = Unit.EXAMPLE) -> PrivacyCurves:
    return PrivacyCurves(
        observer=PUBLIC, unit=unit, relation=relation,  # type: ignore[arg-type]
        epsilon_by_delta=(), trade_off=(), promised=wide_pairs(gaussian_event(2.0)),
    )  # fmt: skip


def test_the_extremes_are_guessed() -> None:
    canaries = some_canaries(100)
    truth = canaries.included.double().numpy()
    for guesses in (1, 2, 7, 60, 80):
        assert right_guesses(truth, canaries, guesses, seed=0) == guesses
        assert right_guesses(-truth, canaries, guesses, seed=0) == 0
    inside = int(canaries.included.sum())
    expected = 100 - 2 * abs(50 - inside) // 2
    assert right_guesses(truth, canaries, 100, seed=0) == expected


def test_equal_scores_tell_nothing_of_the_order_in_which_canaries_are_stored() -> None:
    sorted_coins = Canaries(rows=some_canaries(1_000).rows, included=torch.arange(1_000) < 500)
    found = [right_guesses(np.zeros(1_000), sorted_coins, 500, seed=seed) for seed in range(20)]
    assert len(set(found)) > 5
    # 10,000 fair guesses leave 5,000 +- 195 with probability 1e-4.
    assert abs(sum(found) - 5_000) <= 195


@pytest.mark.parametrize("scores", [np.zeros(9), np.array([np.nan] * 10)])
def test_scores_that_do_not_fit_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one for each of 10 canaries"):
        right_guesses(scores, some_canaries(10), 2, seed=0)


def test_figures_are_those_of_the_bounds() -> None:
    attack = OneRun(guesses=20, delta=1e-4, confidence=0.9)
    found = judged_by_coins(attack, target(attack.observer), CANARIES)
    correct = found.metrics["correct"]
    assert correct is not None
    at = {"canaries": 40, "guesses": 20, "delta": 1e-4, "confidence": 0.9}
    assert found.metrics["epsilon_lower_bound"] == epsilon_bound(correct=int(correct), **at)  # type: ignore[arg-type]
    assert found.metrics["ceiling"] == ceiling(**at)  # type: ignore[arg-type]
    names = list(found.metrics)
    assert names.index("ceiling") == names.index("epsilon_lower_bound") + 1
    assert (found.members, found.non_members) == (20, 20)
    assert (found.metrics["confidence"], found.metrics["delta"]) == (0.9, 1e-4)
    said = " ".join(found.notes)
    expected = f"{int(correct)} of 20 guesses right"
    for words in (expected, "ceiling", "confidence 0.9 at delta 0.0001", "per example, add-remove"):
        assert words in said


@pytest.mark.parametrize(
    ("promised", "tested"),
    [
        ((), False),
        ((promise(ZERO_OUT),), False),
        ((promise(unit=Unit.CLIENT),), False),
        ((replace(promise(), promised=((1e-5, float("inf")),)),), False),
        ((promise(ZERO_OUT), promise()), True),
    ],
)
def test_only_a_curve_of_the_same_unit_and_relation_is_tested(
    promised: tuple[PrivacyCurves, ...], tested: bool
) -> None:
    attack = OneRun(guesses=10)
    found = judged_by_coins(attack, replace(target(attack.observer), promised=promised), CANARIES)
    assert (found.metrics["f_dp_p_value"] is not None) is tested
    p_value = found.metrics["f_dp_p_value"]
    rejected = None if p_value is None else float(p_value <= 1 - attack.confidence)
    assert found.metrics["f_dp_rejected"] == rejected
    assert any("nothing to test" in note for note in found.notes) is not tested


def test_without_canaries_or_with_too_few_it_says_what_to_do() -> None:
    attack = OneRun(guesses=41)
    with pytest.raises(ValueError, match="Expected guesses=41 <= 40, the number of canaries"):
        judged_by_coins(attack, target(attack.observer), CANARIES)
    with pytest.raises(ValueError, match=r"pt\.data\.with_canaries"):
        judged_by_coins(attack, target(attack.observer), None)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"guesses": 1}, "guesses=1"),
        ({"guesses": 2.5}, "guesses=2.5"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"confidence": 0.0}, "confidence=0.0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        OneRun(**arguments)  # type: ignore[arg-type]


def test_a_loss_that_is_not_a_number_is_guessed_out_and_counted() -> None:
    attack = OneRun(guesses=10)
    task = Task(model=TASK.model, loss=lambda logits, _: torch.full((len(logits),), torch.nan))
    found = judged_by_coins(attack, replace(target(attack.observer), task=task), CANARIES)
    assert "40 scores were not a number" in found.notes[-2]


class _Wide:
    def __call__(self) -> torch.nn.Module:
        layers = [torch.nn.Linear(5, 300), torch.nn.ReLU(), torch.nn.Linear(300, 3)]
        return torch.nn.Sequential(*layers).double()


@pytest.mark.slow
def test_labels_learned_by_heart_refute_small_epsilons() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = Rows(some_rows(9, 200).inputs, torch.randint(3, (200,), generator=generator))
    data = with_canaries(a_federation(5, 5), rows, seed=2)
    task = replace(TASK, model=_Wide())
    attack = OneRun(guesses=60)
    result = fit(SGD(epochs=200, learning_rate=0.5), task, data, runtimes=STAR)
    leaking = audit(result, attack, task, data, seed=0)
    assert leaking.metrics["epsilon_lower_bound"] is not None
    assert leaking.metrics["epsilon_lower_bound"] > 1.0
    assert leaking.metrics["f_dp_p_value"] is None
    assert audit(result, attack, task, data, seed=0) == leaking
    unlearned = fit(SGD(epochs=200, learning_rate=1e-6), task, data, runtimes=STAR)
    nothing = audit(unlearned, attack, task, data, seed=0)
    assert nothing.metrics["epsilon_lower_bound"] == 0.0
