import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from privtrain.attacks.attack import MembershipAttack, target_for
from privtrain.attacks.membership import LossThreshold
from privtrain.core.observers import AGGREGATOR, PUBLIC
from privtrain.core.parameters import ModelPredictor
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.result import Leakage, Predictor, Target
from privtrain.core.task import Rows, Task
from privtrain.core.transcript import Transcript
from tests.attacks.looking import judged

TASK = Task(model=lambda: nn.Linear(8, 3))


def noise_rows(count: int, seed: int) -> Rows:
    """Rows whose labels are coin flips: whoever knows a label has seen the row."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, generator=generator)
    return Rows(inputs, torch.randint(0, 3, (count,), generator=generator))


def fresh(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 3))


def overfitted(rows: Rows, steps: int = 150) -> Predictor:
    model = fresh()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows.inputs), rows.labels).backward()
        optimizer.step()
    return ModelPredictor(model)


def target(predictor: Predictor, task: Task = TASK) -> Target:
    return target_for(PUBLIC, transcript=Transcript(), predictor=predictor, task=task)


def leakage_of(
    predictor: Predictor,
    members: Rows,
    non_members: Rows,
    task: Task = TASK,
    attack: LossThreshold = LossThreshold(),
    seed: int = 0,
) -> Leakage:
    return judged(attack, target(predictor, task), members, non_members, seed=seed)


@dataclass(frozen=True)
class Constant:
    """A predictor that gives every row the same logits."""

    logits: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.tensor(self.logits).expand(len(inputs), -1)


def test_an_overfitted_model_leaks() -> None:
    members, others = noise_rows(60, 1), noise_rows(100, 2)
    leakage = leakage_of(overfitted(members), members, others)
    assert leakage.metrics["auc"] is not None
    assert leakage.metrics["auc"] > 0.85
    assert leakage.intervals["auc"][0] > 0.75
    assert leakage.metrics["advantage"] is not None
    assert leakage.metrics["advantage"] > 0.5
    assert (leakage.members, leakage.non_members, leakage.observer) == (60, 60, "public")


def test_the_same_rows_on_both_sides_leak_nothing() -> None:
    rows = noise_rows(100, 1)
    leakage = leakage_of(overfitted(rows), rows, rows)
    assert leakage.metrics["auc"] == pytest.approx(0.5, abs=1e-12)
    low, high = leakage.intervals["advantage"]
    assert low <= 0 <= high


def test_an_untrained_model_leaks_nothing() -> None:
    members, others = noise_rows(1000, 1), noise_rows(1000, 2)
    leakage = leakage_of(ModelPredictor(fresh()), members, others)
    auc = leakage.metrics["auc"]
    # Four standard deviations of the AUC of two equal samples of 1,000: 4 * 0.0129.
    assert auc == pytest.approx(0.5, abs=0.052)


def test_low_rates_are_resolved_only_with_enough_rows() -> None:
    few = leakage_of(Constant(), noise_rows(50, 1), noise_rows(50, 2))
    assert few.metrics["tpr_at_1%_fpr"] is None
    assert few.metrics["realised_fpr_at_0.1%"] is None
    assert any("1,000 non-members are needed, more than were" in note for note in few.notes)
    many = noise_rows(10_000, 1), noise_rows(10_000, 2)
    full = leakage_of(ModelPredictor(fresh()), *many)
    assert full.metrics["realised_fpr_at_1%"] == pytest.approx(0.01)
    assert full.metrics["realised_fpr_at_0.1%"] == pytest.approx(0.001)
    low, high = full.intervals["tpr_at_0.1%_fpr"]
    assert low <= 0.001 <= high
    assert not any("not resolvable" in note for note in full.notes)


def test_both_sides_are_equally_large_and_limited() -> None:
    rows = noise_rows(70, 1), noise_rows(30, 2)
    assert leakage_of(Constant(), *rows).members == 30
    limited = leakage_of(Constant(), *rows, attack=LossThreshold(limit=20, batch_size=7))
    assert (limited.members, limited.non_members) == (20, 20)


def test_same_seed_same_result_and_batches_play_no_part() -> None:
    given = ModelPredictor(fresh()), noise_rows(300, 1), noise_rows(300, 2)
    first = leakage_of(*given, attack=LossThreshold(limit=100))
    small = leakage_of(*given, attack=LossThreshold(limit=100, batch_size=13))
    assert small.metrics == pytest.approx(first.metrics)
    other = leakage_of(*given, attack=LossThreshold(limit=100), seed=1)
    assert other.metrics != first.metrics


def test_a_loss_that_is_not_a_number_gets_the_worst_score() -> None:
    broken = Constant((float("nan"),) * 3)
    members, others = noise_rows(40, 1), noise_rows(40, 2)
    leakage = leakage_of(broken, members, others)
    assert leakage.metrics["auc"] == 0.5
    assert any("80 scores were not a number" in note for note in leakage.notes)


def test_confident_predictions_do_not_tie() -> None:
    """In float32 both losses round to 0; in float64 the more confident row is told apart."""

    def logits(inputs: Tensor) -> Tensor:
        return torch.stack([inputs[:, 0], torch.zeros(len(inputs))], dim=1)

    zeros = torch.zeros(30, dtype=torch.long)
    members = Rows(torch.full((30, 1), 30.0), zeros)
    others = Rows(torch.full((30, 1), 25.0), zeros)
    assert leakage_of(logits, members, others).metrics["auc"] == 1.0


def test_a_loss_with_float32_weights_works() -> None:
    weights = torch.ones(3)
    task = replace(
        TASK, loss=lambda o, t: nn.functional.cross_entropy(o, t, weights, reduction="none")
    )
    members, others = noise_rows(40, 1), noise_rows(40, 2)
    weighted = leakage_of(ModelPredictor(fresh()), members, others, task)
    plain = leakage_of(ModelPredictor(fresh()), members, others)
    assert weighted.metrics["auc"] == pytest.approx(plain.metrics["auc"], abs=0.01)


def test_a_reduced_loss_is_refused() -> None:
    task = replace(TASK, loss=nn.functional.cross_entropy)
    rows = noise_rows(10, 1)
    with pytest.raises(ValueError, match=r"task\.loss to give one value a row"):
        leakage_of(Constant(), rows, rows, task)


def test_another_observers_view_is_refused() -> None:
    wrong = replace(target(Constant()), view=Transcript().view(AGGREGATOR))
    with pytest.raises(ValueError, match="'aggregator' to be 'public'"):
        LossThreshold().score(wrong, noise_rows(10, 1), seed=0)


def test_a_target_holds_only_what_its_observer_received() -> None:
    transcript = Transcript(keep_payloads=True)
    transcript.send("client-0", AGGREGATOR_NAME, "update", torch.ones(4), round=0)
    transcript.publish("model", torch.ones(4), sender=AGGREGATOR_NAME, round=1)
    seen = target_for(PUBLIC, transcript=transcript, predictor=Constant(), task=TASK)
    assert seen.view.kinds == ("model",)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"batch_size": 0}, {"limit": 2.5}])
def test_wrong_settings_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossThreshold(**wrong)


def test_it_is_an_attack_and_pickles() -> None:
    attack: MembershipAttack = LossThreshold(limit=50)
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert attack.name == "loss threshold"
