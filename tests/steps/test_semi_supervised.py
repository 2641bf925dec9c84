"""Students that learn from rows without an answer: on made-up clusters, and their refusals."""

import dataclasses
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.parameters import ModelPredictor, initial_model
from privtrain.core.runtime import Draws, Seen
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Rows, Task
from privtrain.data.models import MLP
from privtrain.steps import optimizers, semi_supervised
from privtrain.steps.augmentation import Affine
from privtrain.steps.consistency import Consistency
from privtrain.steps.plain import PlainSteps
from privtrain.steps.semi_supervised import SemiSupervised
from privtrain.steps.student import PublicInputs
from tests.trainers.federations import vector

QUICK = SemiSupervised(steps=60, batch_size=32, learning_rate=0.02)
TASK = Task(model=MLP((4, 16, 3)))


def clusters(rows: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three wide clusters that touch, shape `(rows, 4)`, and whose row each is."""
    generator = torch.Generator().manual_seed(seed)
    whose = torch.arange(rows) % 3
    middles = 2.5 * torch.eye(3, 4)
    return middles[whose] + 0.8 * torch.randn(rows, 4, generator=generator), whose


def draws(seed: int = 0, device: str = "cpu") -> Draws:
    return Draws(Seeds(seed), SeededEntropy(seed), 0, "student", device=device)


def learned(
    student: SemiSupervised | PlainSteps,
    answered: Rows,
    inputs: Tensor,
    task: Task = TASK,
    **options: Any,
) -> tuple[nn.Module, Seen]:
    model = initial_model(task, Seeds(0)["initialisation", 0, ""]).train()
    seen = student.learn(model, task, answered, PublicInputs(inputs), draws(**options))
    return model, seen


def right(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return float((ModelPredictor(model)(inputs).argmax(dim=1) == labels).double().mean())


def answers(count: int = 12, wrong: int = 3) -> tuple[Rows, Tensor, Tensor]:
    """Answers to few rows, some of them wrong; all public rows; and their true labels."""
    inputs, labels = clusters()
    given = labels[:count].clone()
    given[:wrong] = (given[:wrong] + 1) % 3
    return Rows(inputs[:count], given), inputs, labels


def test_rows_without_an_answer_make_up_for_few_and_wrong_answers() -> None:
    answered, inputs, labels = answers()
    plain, _ = learned(PlainSteps(epochs=60, learning_rate=0.2), answered, inputs)
    model, seen = learned(QUICK, answered, inputs)
    unseen = clusters(seed=5)
    assert right(model, *unseen) > 0.95 > 0.88 > right(plain, *unseen)
    assert right(model, inputs, labels) > 0.9
    assert seen.numbers["training_loss"] < 0.3
    assert seen.notes == ()


def test_the_model_learns_the_spread_labels_of_all_rows_and_then_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered, inputs, labels = answers()
    lessons: list[Any] = []
    train = SemiSupervised._train

    def looked(self: SemiSupervised, *arguments: Any) -> float:
        lessons.append(arguments[2])
        return train(self, *arguments)

    monkeypatch.setattr(SemiSupervised, "_train", looked)
    for rounds in (0, 1, 2):
        lessons.clear()
        learned(replace(QUICK, rounds=rounds), answered, inputs)
        assert [len(lesson.inputs) for lesson in lessons] == [240] * (rounds + 1)
    assert float((lessons[0].labels == labels).double().mean()) > 0.85
    assert bool((lessons[0].weights <= 1).all() and (lessons[0].weights > 0.3).all())
    assert not torch.equal(lessons[0].weights, lessons[1].weights)


def test_a_seed_gives_the_same_bits_and_another_one_others() -> None:
    answered, inputs, _ = answers()
    first, again, other = (
        vector(learned(QUICK, answered, inputs, seed=seed)[0]) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_generators_stay_where_they_were() -> None:
    answered, inputs, _ = answers()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    learned(QUICK, answered, inputs, Task(model=dropping))
    assert torch.equal(torch.get_rng_state(), before)


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def normalising() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("rows", [1, 2, 3, 33, 65])
def test_few_rows_are_enough_also_for_a_model_that_normalises_batches(rows: int) -> None:
    """Fewer rows than neighbours, and a last batch of one."""
    inputs, labels = clusters(rows)
    task = Task(model=normalising if rows > 1 else TASK.model)
    model, _ = learned(QUICK, Rows(inputs[:1], labels[:1]), inputs, task)
    assert bool(torch.isfinite(vector(model)).all())


def test_answers_of_one_class_make_a_student_of_that_class() -> None:
    inputs, _ = clusters()
    model, _ = learned(QUICK, Rows(inputs[:5], torch.full((5,), 2)), inputs)
    assert ModelPredictor(model)(inputs).argmax(dim=1).tolist() == [2] * 240


def test_rows_that_are_equal_are_answered_as_one() -> None:
    inputs, labels = clusters()
    inputs, labels = torch.cat([inputs[:9]] * 3 + [inputs]), torch.cat([labels[:9]] * 3 + [labels])
    model, _ = learned(QUICK, Rows(inputs[9:27], labels[9:27]), inputs)
    assert right(model, inputs, labels) > 0.9


def test_certain_probabilities_are_class_numbers_and_others_count_for_less() -> None:
    answered, inputs, labels = answers()
    certain = nn.functional.one_hot(answered.labels, 3).float()
    hard, soft = (
        learned(QUICK, Rows(answered.inputs, given), inputs)[0]
        for given in (answered.labels, certain)
    )
    assert torch.equal(vector(hard), vector(soft))
    # Three answers are wrong: as probabilities that say so, they do less harm.
    unsure = certain.clone()
    unsure[:3] = 1 / 3
    model, _ = learned(QUICK, Rows(answered.inputs, unsure), inputs)
    assert right(model, inputs, labels) > 0.93


def test_rare_classes_stay_rare() -> None:
    """Masses are those of the answers: equal ones would call every other row positive."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(400, generator=generator) < 0.15).long()
    middles = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    inputs = torch.randn(400, 4, generator=generator) * 0.8 + middles[labels]
    answered = Rows(inputs[:80], labels[:80])
    model, _ = learned(QUICK, answered, inputs, Task(model=MLP((4, 16, 2))))
    said = ModelPredictor(model)(inputs).argmax(dim=1)
    assert 0.08 < float(said.double().mean()) < 0.25
    assert right(model, inputs, labels) > 0.93


def test_answers_for_validation_are_not_learned_and_choose_the_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered, inputs, _ = answers(30, 0)
    seen: list[Tensor] = []
    spread = SemiSupervised._spread

    def looked(self: SemiSupervised, given: Tensor, *arguments: Any) -> Tensor:
        seen.append(given)
        return spread(self, given, *arguments)

    monkeypatch.setattr(SemiSupervised, "_spread", looked)
    student = replace(QUICK, validation=0.2, rounds=2)
    _, said = learned(student, answered, inputs)
    assert len(seen[0]) == 24
    assert len(said.notes) == 3 and "of 6 answers that it did not learn" in said.notes[0]
    best = max(int(note.split("gives ")[1].split(" ")[0]) for note in said.notes)
    assert best >= 5

    def worse(self: SemiSupervised, model: nn.Module, *arguments: Any) -> float:
        # A model that becomes useless in its last round.
        loss = train(self, model, *arguments)
        if arguments[-1] == 2:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
        return loss

    train = SemiSupervised._train
    monkeypatch.setattr(SemiSupervised, "_train", worse)
    kept, _ = learned(student, answered, inputs)
    assert bool(vector(kept).any())
    broken, _ = learned(replace(student, validation=0.0), answered, inputs)
    assert not bool(vector(broken).any())


def test_typical_rows_are_asked_about_or_rows_by_chance() -> None:
    inputs, labels = clusters()
    public = PublicInputs(inputs)
    for seed in range(5):
        chosen = QUICK.choose(public, 3, Seeds(seed))
        assert sorted(labels[chosen].tolist()) == [0, 1, 2]
    assert torch.equal(QUICK.choose(public, 9, Seeds(0)), QUICK.choose(public, 9, Seeds(0)))
    by_chance = replace(QUICK, typical=False)
    plain = PlainSteps().choose(public, 9, Seeds(0))
    assert torch.equal(by_chance.choose(public, 9, Seeds(0)), plain)
    assert sorted(QUICK.choose(public, 500, Seeds(0)).tolist()) == list(range(240))


def test_rows_are_compared_by_the_features_that_teachers_read() -> None:
    """The columns that tell are small, and the map is what finds them."""
    inputs, labels = clusters()
    hidden = torch.cat([inputs * 0.01, torch.randn(240, 8)], dim=1)
    answered = Rows(hidden[:12], labels[:12])
    task = Task(model=MLP((12, 16, 3)))

    def spread_right(features: Any) -> float:
        public = PublicInputs(hidden, features)
        given = nn.functional.one_hot(answered.labels, 3).double()
        likely = QUICK._spread(given, torch.arange(12), public, draws())
        return float((likely.argmax(dim=1) == labels).double().mean())

    assert spread_right(lambda rows: rows[:, :4]) > 0.9 > 0.7 > spread_right(None)
    assert not QUICK.reads_features and task.model().__class__ is nn.Sequential


IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FLAT = Task(model=MLP((64, 8, 3), flatten=True))


def test_images_are_moved_and_tables_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    call = Affine.__call__

    def looked(self: Affine, inputs: Tensor, generator: torch.Generator) -> Tensor:
        moved.append(inputs.shape)
        return call(self, inputs, generator)

    monkeypatch.setattr(Affine, "__call__", looked)
    given = Rows(IMAGES[:6], torch.arange(6) % 3)
    learned(QUICK, given, IMAGES, FLAT)
    assert len(moved) == 2 * QUICK.steps
    moved.clear()
    learned(replace(QUICK, augmentation=None), given, IMAGES, FLAT)
    answered, inputs, _ = answers()
    learned(QUICK, answered, inputs)
    assert not moved
    flat = IMAGES.flatten(1)
    sided = replace(QUICK, augmentation=Affine(sides=(8, 8)))
    learned(sided, Rows(flat[:6], given.labels), flat, FLAT)
    assert len(moved) == 2 * QUICK.steps


def test_consistency_adds_rows_that_the_model_is_sure_of(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    train = optimizers.descend

    def looked(model: Any, optimizer: Any, loss: Any, inputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(inputs))
        return train(model, optimizer, loss, inputs, labels)

    monkeypatch.setattr(semi_supervised, "descend", looked)
    student = replace(QUICK, batch_size=8, consistency=Consistency(share=2))
    model, _ = learned(student, Rows(IMAGES[:6], torch.arange(6) % 3), IMAGES, FLAT)
    assert set(seen) == {24}
    assert bool(torch.isfinite(vector(model)).all())


def test_tokens_are_learned_where_a_map_tells_how_alike_they_are() -> None:
    inputs, labels = clusters()
    tokens = (inputs * 4 + 20).round().long().clamp(0, 59)
    task = Task(model=looking_up)
    answered, public = (
        Rows(tokens[:12], labels[:12]),
        PublicInputs(tokens, lambda t: t.float() - 20),
    )
    model = initial_model(task, Seeds(0)["initialisation", 0, ""]).train()
    replace(QUICK, steps=150).learn(model, task, answered, public, draws())
    assert right(model, tokens, labels) > 0.8


def looking_up() -> nn.Module:
    return nn.Sequential(nn.Embedding(60, 4), nn.Flatten(), nn.Linear(16, 3))


def test_what_it_cannot_use_is_refused_beforehand() -> None:
    tokens = torch.zeros(3, 5, dtype=torch.long)
    with pytest.raises(UnsupportedError, match=r"such as tokens.*features"):
        QUICK.check_public(tokens, None)
    QUICK.check_public(tokens, lambda rows: rows.double())
    with pytest.raises(DataError, match="sides"):
        replace(QUICK, augmentation=Affine(sides=(3, 3))).check_public(torch.zeros(2, 64), None)
    steady = replace(QUICK, consistency=Consistency())
    with pytest.raises(UnsupportedError, match="consistency"):
        steady.check_public(torch.zeros(2, 64), None)
    steady.check_public(IMAGES, None)
    with pytest.raises(DataError, match="batch_size=1"):
        replace(QUICK, batch_size=1).check(TASK, normalising())
    with pytest.raises(ValueError, match="to be the name"):
        SemiSupervised(optimizer="Nothing")
    broken = torch.full((3, 4), torch.nan)
    with pytest.raises(DataError, match="finite"):
        learned(QUICK, Rows(broken[:1], torch.zeros(1, dtype=torch.long)), broken)


@pytest.mark.parametrize(
    "setting",
    [
        {"neighbours": 0},
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"rounds": -1},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"validation": 1.0},
        {"augmentation": 3},
        {"consistency": True},
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected {next(iter(setting))}="):
        SemiSupervised(**setting)


def test_it_is_a_frozen_value_that_prints_and_pickles() -> None:
    student = SemiSupervised(augmentation=Affine(sides=(8, 8)), consistency=Consistency())
    assert pickle.loads(pickle.dumps(student)) == student
    assert repr(student).startswith("SemiSupervised(typical=True, neighbours=5")
    assert hash(student) == hash(replace(student))
    with pytest.raises(dataclasses.FrozenInstanceError):
        student.steps = 3  # type: ignore[misc]


@pytest.mark.gpu
def test_a_student_learns_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    student = replace(QUICK, batch_size=8, consistency=Consistency())
    model = initial_model(FLAT, Seeds(0)["initialisation", 0, ""]).to("cuda").train()
    answered = Rows(IMAGES[:6], torch.arange(6) % 3)
    student.learn(model, FLAT, answered, PublicInputs(IMAGES), draws(device="cuda"))
    assert bool(torch.isfinite(vector(model)).all())


@pytest.mark.parametrize(("far", "scale"), [(0.0, 1.0), (50.0, 1.0), (50.0, 1e6)])
def test_rows_that_all_point_one_way_are_compared_from_their_middle(
    far: float, scale: float
) -> None:
    """As columns that are never negative do, or one far larger than the others."""
    _, inputs, labels = answers(wrong=0)
    scales = torch.tensor([1.0, 1.0, 1.0, scale])
    moved = (inputs + far) * scales
    public = PublicInputs(moved)
    likely = QUICK._spread(
        torch.nn.functional.one_hot(labels[:12], 3).double(), torch.arange(12), public, draws()
    )
    assert float((likely.argmax(dim=1) == labels).double().mean()) > 0.85


def test_one_class_alone_is_said() -> None:
    answered, inputs, _ = answers()
    _, seen = learned(QUICK, Rows(answered.inputs, torch.zeros(12, dtype=torch.long)), inputs)
    assert seen.notes == (
        "every public row got the label of one class: the student learns no other",
    )
