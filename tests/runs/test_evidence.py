"""What a run kept for audits gives the figures that the run itself gives, or says why not."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import privtrain as pt
from privtrain.attacks.attack import Attack
from privtrain.core.errors import DataError, NotApplicableError, Reason
from privtrain.core.observers import AGGREGATOR, Observer
from privtrain.core.result import Predictor, Target, TrainResult
from privtrain.core.task import Rows
from privtrain.core.trainer import Trainer
from privtrain.runs.evidence import ABOUT, INDEX, PAYLOADS, RECORD, keep_evidence, kept_evidence
from tests.disk import little_space
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

# Public rows of its own: with PATE, canaries and all training rows stay protected.
DATA = replace(a_federation(20, 16, 12), public=Rows(some_rows(9, 14).inputs))


@dataclass(frozen=True)
class Reading:
    """An attack on messages: how much of a row lies along what was sent."""

    kinds: tuple[str, ...] = ()
    name: str = "reading"
    observer: Observer = AGGREGATOR
    needs_messages: bool = True

    def score(self, target: Target, candidates: Rows, *, seed: int) -> Tensor:
        sent = [m.payload for m in target.view.messages if m.payload is not None]
        long = [p.double().flatten()[:5] for p in sent if p.numel() >= 5]
        return sum((candidates.inputs @ each for each in long), torch.zeros(len(candidates)))


TRAINERS: dict[str, Trainer] = {
    "SGD": pt.SGD(epochs=1),
    "DPSGD": pt.DPSGD(epochs=1.0, expected_batch=16),
    "FedAvg": pt.FedAvg(rounds=2, sampling=pt.FixedSize(2)),
    "PATE": pt.PATE(
        teachers=3,
        queries=10,
        student=pt.PlainSteps(epochs=1),
        release=pt.Release(pt.GNMax(1.0), finish=pt.ARGMAX),
    ),
}
ATTACKS: dict[str, Attack] = {
    "loss": pt.LossThreshold(),
    "shadows": pt.RMIA(shadows=4),
    "messages": Reading(),
    "participant": Reading(observer=pt.PARTICIPANT),
    "coins": pt.OneRun(guesses=2),
}


@dataclass(frozen=True)
class Fitted:
    result: TrainResult
    data: pt.FederatedData
    trainer: Trainer
    folder: Path


@pytest.fixture(scope="module", params=TRAINERS)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    trainer, data = TRAINERS[request.param], DATA
    if request.param != "PATE":
        data = pt.data.with_canaries(DATA, pt.data.noise_rows(DATA, 8), seed=0)
    result = pt.fit(trainer, TASK, data, runtimes=STAR, delta=1e-3, keep_payloads=True)
    folder = keep_evidence(result, tmp_path_factory.mktemp("row") / "evidence", TASK, data)
    return Fitted(result, data, trainer, folder)


def outcome(result: TrainResult, attack: Attack, data: pt.FederatedData) -> object:
    try:
        return pt.audit(result, attack, TASK, data, seed=3)
    except NotApplicableError as error:
        return error.reason


def test_a_kept_run_is_audited_to_the_bit(fitted: Fitted) -> None:
    kept = kept_evidence(fitted.folder, fitted.trainer, TASK, fitted.data)
    outcomes = {name: outcome(kept, attack, fitted.data) for name, attack in ATTACKS.items()}
    assert outcomes == {
        name: outcome(fitted.result, attack, fitted.data) for name, attack in ATTACKS.items()
    }
    reasons = [each for each in outcomes.values() if isinstance(each, Reason)]
    assert len(reasons) <= 2, outcomes
    assert kept.transcript == fitted.result.transcript
    assert kept.statement == fitted.result.statement
    for name in ("history", "cost", "halted", "notes", "trainer"):
        assert getattr(kept, name) == getattr(fitted.result, name)
    inputs = fitted.data.test.inputs
    assert torch.equal(kept.predictor(inputs), fitted.result.predictor(inputs))


def test_evidence_is_for_its_owner_alone(fitted: Fitted) -> None:
    assert stat.S_IMODE(fitted.folder.stat().st_mode) == 0o700


ONE = pt.SGD(epochs=1)
PLAIN = a_federation(12, 12)


@pytest.fixture(scope="module")
def one() -> TrainResult:
    return pt.fit(ONE, TASK, PLAIN, runtimes=STAR, keep_payloads=True)


@pytest.mark.parametrize("name", [INDEX, ABOUT, RECORD, PAYLOADS, "model/model.safetensors"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_what_is_torn_or_changed_is_named(
    one: TrainResult, name: str, how: str, tmp_path: Path
) -> None:
    path = keep_evidence(one, tmp_path / "evidence", TASK, PLAIN) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content if how == "changed" else content[:-9])
    error: type[Exception] = NotApplicableError if (name, how) == (INDEX, "gone") else DataError
    with pytest.raises(error, match=r"torn|missing|other|was not kept|not as privtrain"):
        kept_evidence(tmp_path / "evidence", ONE, TASK, PLAIN)


@pytest.mark.parametrize(
    ("trainer", "task", "data", "other"),
    [
        (ONE, TASK, a_federation(12, 11), "data"),
        (ONE, replace(TASK, model=pt.data.MLP((5, 3), torch.float64)), PLAIN, "task's model"),
        (pt.SGD(epochs=2), TASK, PLAIN, "trainer"),
        (None, TASK, PLAIN, "trainer"),
    ],
)
def test_evidence_of_another_run_is_refused(
    one: TrainResult, trainer: Any, task: pt.Task, data: Any, other: str, tmp_path: Path
) -> None:
    folder = keep_evidence(one, tmp_path / "evidence", TASK, PLAIN)
    with pytest.raises(DataError, match=f"another run: other {other}"):
        kept_evidence(folder, trainer, task, data)


def test_evidence_that_is_there_is_replaced_and_anything_else_stays(
    one: TrainResult, tmp_path: Path
) -> None:
    for _ in range(2):
        folder = keep_evidence(one, tmp_path / "evidence", TASK, PLAIN)
    kept_evidence(folder, ONE, TASK, PLAIN)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds mine\.txt"):
        keep_evidence(one, folder, TASK, PLAIN)
    os.remove(folder / "private" / "digest.key")
    with pytest.raises(DataError, match="key of the evidence"):
        kept_evidence(folder, ONE, TASK, PLAIN)


def test_a_full_disk_leaves_no_half_of_it(one: TrainResult, tmp_path: Path) -> None:
    with little_space(1_000), pytest.raises(pt.PrivtrainError, match=r"is full|cannot be written"):
        keep_evidence(one, tmp_path / "evidence", TASK, PLAIN)
    assert not (tmp_path / "evidence").exists()


def test_what_was_not_kept_says_so(one: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match="keep_for_audit") as raised:
        kept_evidence(tmp_path, ONE, TASK, PLAIN)
    assert raised.value.reason is Reason.NOT_KEPT
    bare = pt.fit(ONE, TASK, PLAIN, runtimes=STAR)
    folder = keep_evidence(bare, tmp_path / "evidence", TASK, PLAIN)
    kept = kept_evidence(folder, ONE, TASK, PLAIN)
    assert outcome(kept, Reading(), PLAIN) is Reason.NO_TENSORS


def doubled(predictor: Predictor) -> Callable[[Tensor], Tensor]:
    return lambda inputs: 2 * predictor(inputs)


def test_a_predictor_that_is_no_torch_model_leaves_attacks_on_messages(
    one: TrainResult, tmp_path: Path
) -> None:
    odd = replace(one, predictor=doubled(one.predictor))
    kept = kept_evidence(keep_evidence(odd, tmp_path / "e", TASK, PLAIN), ONE, TASK, PLAIN)
    assert outcome(kept, pt.LossThreshold(), PLAIN) is Reason.NOT_KEPT
    assert outcome(kept, Reading(), PLAIN) == outcome(odd, Reading(), PLAIN)


def test_a_newer_version_is_not_guessed_at(one: TrainResult, tmp_path: Path) -> None:
    folder = keep_evidence(one, tmp_path / "evidence", TASK, PLAIN)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "schema": 99}))
    with pytest.raises(DataError, match="newer version"):
        kept_evidence(folder, ONE, TASK, PLAIN)
