"""Names: drawn votes keep the names diverse, at the same promise for a patient."""

from pathlib import Path

import pytest
import torch

import privtrain as pt
from scenarios import names

SMALL = names.Args(epsilon=30.0, delta=1e-3, patients=800, teachers=30, draws=10)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, names.Made]:
    return names.main(SMALL)


@pytest.mark.slow
def test_both_ways_promise_each_patient_the_same(made: dict[str, names.Made]) -> None:
    for one in made.values():
        assert 28.0 < one.statement.epsilon() <= 30.0
        assert one.statement.epsilon(pt.AGGREGATOR) == float("inf")
        formal = one.statement.guarantees[0]
        assert (formal.unit, formal.relation) == ("user", pt.ADD_REMOVE)


@pytest.mark.slow
def test_drawn_votes_are_diverse_and_near_the_clinics_names(made: dict[str, names.Made]) -> None:
    plain, drawn = made["top score"], made["drawn"]
    assert drawn.bits > 1.5 * plain.bits
    assert drawn.distance < 0.7 * plain.distance
    assert len(set(drawn.names)) > 2 * len(set(plain.names))


def test_all_characters_of_a_name_are_one_users_and_lie_at_one_clinic() -> None:
    _, data = names.load(SMALL)
    held = [set(rows.users.tolist()) for rows in data.train.values() if rows.users is not None]
    assert len(held) == 10
    assert len(set().union(*held)) == sum(map(len, held)) == SMALL.patients
    # From the begin on, each character follows the one before it, to the end.
    rows = data.train["clinic-3"]
    assert rows.users is not None
    first = rows.take((rows.users == rows.users[0]).nonzero().squeeze(1))
    before, after = first.inputs.argmax(dim=1), first.labels
    assert before[0] == 0
    assert torch.equal(before[1:], after[:-1])
    assert data.public is not None
    assert data.public.inputs.sum(dim=0).tolist() == [float(SMALL.draws)] * len(names.ALPHABET)


def test_the_chain_is_of_probabilities_and_names_end() -> None:
    follows = names.chain(0)
    assert torch.allclose(follows.sum(dim=1), torch.ones(13, dtype=torch.float64))
    for name in names.written(follows, 50, 1):
        assert name[0] == 0 and 0 not in name[1:-1] and len(name) <= 13
    assert names.written(follows, 5, 1) == names.written(follows, 5, 1)


def test_a_taken_folder_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text("ira\n")
    monkeypatch.setattr(names, "load", lambda args: pytest.fail("it was trained"))
    with pytest.raises(pt.DataError, match=r"hold no names\.txt"):
        names.main(names.Args(out=tmp_path))
