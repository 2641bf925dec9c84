"""The student of PATE: what it is given, whatever its steps are."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.command.overrides import changed_trainer
from privtrain.command.tables import make_trainer, settings_of
from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import initial_model
from privtrain.core.runtime import Draws, Seen
from privtrain.core.seeding import Seeds
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.fitting import fit
from privtrain.steps.augmentation import Affine
from privtrain.steps.consistency import Consistency
from privtrain.steps.features import Features
from privtrain.steps.plain import PlainSteps
from privtrain.steps.ridge import Ridge
from privtrain.steps.semi_supervised import SemiSupervised
from privtrain.steps.student import PublicInputs
from privtrain.trainers import pate
from privtrain.trainers.pate import PATE
from privtrain.trainers.student import trained_student
from tests.contracts.aggregation import a_run
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector

QUICK = PlainSteps(epochs=2, learning_rate=0.2)
GIVEN: list[tuple[Rows, Tensor]] = []


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Steps that take note of what they are given."""

    steps: PlainSteps = field(default=QUICK)

    @property
    def reads_features(self) -> bool:
        return self.steps.reads_features

    def wanted(self, queries: int) -> int:
        return self.steps.wanted(queries)

    def choose(self, public: PublicInputs, queries: int, seeds: Seeds) -> Tensor:
        return self.steps.choose(public, queries, seeds)

    def learn(
        self, model: nn.Module, task: Task, answered: Rows, public: PublicInputs, draws: Draws
    ) -> Seen:
        GIVEN.append((answered, public.inputs))
        return self.steps.learn(model, task, answered, public, draws)

    def check(self, task: Task, model: nn.Module) -> None:
        self.steps.check(task, model)

    def check_public(self, inputs: Tensor, features: Features | None) -> None:
        self.steps.check_public(inputs, features)


def a_pate(**options: object) -> PATE:
    settings: dict[str, Any] = {
        "teachers": 6,
        "queries": 12,
        "release": Release(GNMax(2.0), finish=ARGMAX),
        "steps": QUICK,
        "student": Looking(),
        **options,
    }
    return PATE(**settings)


def with_public(data: FederatedData, *, labels: Tensor | None = None) -> FederatedData:
    return replace(data, public=Rows(some_rows(77, 40).inputs, labels))


@pytest.fixture(autouse=True)
def nothing_given() -> None:
    GIVEN.clear()


def test_a_student_gets_all_public_rows_and_the_answers_to_some() -> None:
    data = with_public(a_federation(20, 20))
    result = fit(a_pate(), TASK, data, runtimes=STAR, keep_payloads=True)
    ((answered, public),) = GIVEN
    assert data.public is not None
    assert torch.equal(public, data.public.inputs)
    sent = {entry.kind: entry.payload for entry in result.transcript.entries}
    assert sent["queries"] is not None and sent["labels"] is not None
    assert torch.equal(answered.inputs, sent["queries"])
    assert torch.equal(answered.labels, sent["labels"])


def test_true_labels_of_public_rows_change_nothing() -> None:
    seen = []
    for labels in (None, torch.zeros(40, dtype=torch.long), torch.arange(40) % 3):
        data = with_public(a_federation(20, 20), labels=labels)
        seen.append(vector(module(fit(a_pate(), TASK, data, runtimes=STAR))))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("public", [False, True])
def test_a_resumed_run_has_the_same_public_rows(
    public: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the answers, with a public part and with rows that parties gave up."""
    data = a_federation(60, 60, public_rows=110)
    data = with_public(data) if public else data
    whole = fit(a_pate(), TASK, data, runtimes=STAR)

    def broken(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pate, "trained_student", broken)
        with pytest.raises(KeyboardInterrupt):
            fit(a_pate(), TASK, data, runtimes=STAR, folder=tmp_path / "run")
    result = fit(a_pate(), TASK, data, runtimes=STAR, folder=tmp_path / "run")
    first, resumed = GIVEN
    assert len(first[1]) > len(first[0]) == 12
    assert torch.equal(first[1], resumed[1])
    assert torch.equal(first[0].inputs, resumed[0].inputs)
    assert torch.equal(vector(module(result)), vector(module(whole)))
    # Rows were given up once, before the interruption.
    given = [e for e in result.transcript.entries if e.kind == "public inputs"]
    assert len(given) == (0 if public else len(data.parties))


def test_a_student_without_an_answer_stays_as_it_was_initialised() -> None:
    inputs = some_rows(77, 40).inputs
    none = Rows(inputs[:0], torch.zeros(0, dtype=torch.long))
    student = trained_student(Looking(), TASK, none, PublicInputs(inputs), a_run())
    assert not GIVEN
    initial = initial_model(TASK, Seeds(0)["initialisation", 0, ""])
    assert torch.equal(vector(student.module), vector(initial))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"student": QUICK}, 12 + 3 * math.sqrt(12)),
        ({"student": SemiSupervised()}, 144),
        ({"student": SemiSupervised(), "queries": 90}, 250),
        ({"student": SemiSupervised(), "queries": 900}, 990),
        ({"student": SemiSupervised(), "unlabelled": 60}, 60),
        ({"student": QUICK, "unlabelled": 400}, 400),
    ],
)
def test_rows_are_given_up_as_the_student_needs_them(options: dict[str, Any], rows: float) -> None:
    """Twelve for each question, up to a quarter of all, where nobody says how many."""
    data = replace(a_federation(60, 60), public_rows=1_000)
    public, *_ = a_pate(**options).plan(data, STAR)
    told = f"a fraction of {rows / 1000:.2g} of the training rows is public: see notes"
    assert told in public.assumptions


def test_fewer_unlabelled_rows_than_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="unlabelled=11"):
        a_pate(unlabelled=11)


def test_a_semi_supervised_student_learns_the_rows_and_compares_features() -> None:
    """The model takes five columns, and what the rows are compared by has one."""
    read: list[int] = []

    def first(inputs: Tensor) -> Tensor:
        read.append(len(inputs))
        return inputs[:, :1]

    student = SemiSupervised(steps=5)
    trainer = a_pate(student=student, steps=Ridge(), features=first)
    data = with_public(a_federation(20, 20))
    result = fit(trainer, TASK, data, runtimes=STAR)
    assert data.public is not None and 40 in read
    assert result.predictor(data.test.inputs).shape == (12, 3)
    with pytest.raises(UnsupportedError, match="Ridge"):
        a_pate(student=student, features=first)


def test_what_a_student_cannot_use_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    tokens = Rows(torch.randint(5, (12, 4)), torch.arange(12) % 3)
    model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(8, 3))
    data = FederatedData(train={"a": tokens, "b": tokens}, test=tokens, public=tokens)
    trainer = a_pate(student=SemiSupervised(), queries=3, teachers=2)
    with pytest.raises(UnsupportedError, match="tokens"):
        fit(trainer, Task(model=model), data, runtimes=STAR, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_students_are_written_in_study_files_and_on_the_command_line() -> None:
    student = SemiSupervised(
        augmentation=Affine(sides=(8, 8)), consistency=Consistency(), ridge=2.0, steps=7
    )
    trainer = replace(a_pate(student=student, steps=QUICK), unlabelled=90)
    assert make_trainer("pate", settings_of(trainer)) == trainer
    changed = changed_trainer(trainer, ["student.steps=9", "student.augmentation=none"])
    assert changed.student == replace(student, steps=9, augmentation=None)  # type: ignore[attr-defined]
    given = changed_trainer(PATE(), ["student=SemiSupervised(rounds=2)"])
    assert given.student == SemiSupervised(rounds=2)  # type: ignore[attr-defined]
