"""Users with several rows: what is kept of each, and what all of them together are charged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import gaussian_event, of_group, poisson_sampled, repeated
from privtrain.core.errors import DataError, UnsoundReleaseError
from privtrain.core.seeding import Seeds
from privtrain.core.statement import ADD_REMOVE, ZERO_OUT, Unit
from privtrain.core.task import FederatedData, Rows, Task, concatenate
from privtrain.data.arrays import from_arrays
from privtrain.data.reading import from_csv
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.calibrating import calibrate
from privtrain.runs.fitting import fit
from privtrain.sampling.batches import PoissonBatches
from privtrain.sampling.users import limit_per_user
from privtrain.trainers.dp_sgd import DPSGD
from tests.trainers.federations import STAR

ROWS = 300


def a_task(**options: Any) -> tuple[Task, FederatedData]:
    """Rows whose first feature is their number, so that they can be told apart."""
    generator = np.random.default_rng(0)
    inputs = np.column_stack([np.arange(ROWS), generator.normal(size=(ROWS, 3))])
    users = generator.integers(0, 40, ROWS)
    return from_arrays(
        inputs / ROWS, inputs[:, 1] > 0, users=users, parties=3, classes=2, **options
    )


def trainer(most: int | None = 4, **options: Any) -> DPSGD:
    settings: dict[str, Any] = {"epochs": 2, "expected_batch": 20.0, **options}
    sampling = PoissonBatches(rows_per_user=most)
    return DPSGD(sampling=sampling, release=Release(Gaussian(1.0, 2.0)), **settings)


def test_no_user_has_more_rows_than_allowed_and_nobody_changes_anothers() -> None:
    _, data = a_task()
    rows = data.pooled()
    assert rows.users is not None
    kept = rows.take(limit_per_user(rows, 3, Seeds(5)))
    assert kept.users is not None
    _, each = np.unique(kept.users.numpy(), return_counts=True)
    _, before = np.unique(rows.users.numpy(), return_counts=True)
    assert (each == np.minimum(before, 3)).all() and before.max() > 3
    for leaver in rows.users.unique()[:10]:
        others = rows.take((rows.users != leaver).nonzero().squeeze(1))
        now = others.take(limit_per_user(others, 3, Seeds(5)))
        wanted = kept.inputs[kept.users != leaver]
        assert torch.equal(now.inputs, wanted)
    again = rows.take(limit_per_user(rows, 3, Seeds(6)))
    assert not torch.equal(again.inputs, kept.inputs)


def test_which_rows_are_kept_does_not_follow_from_their_values() -> None:
    _, data = a_task()
    rows = data.pooled()
    other = Rows(rows.inputs.flip(1) * 7, rows.labels * 0, rows.users)
    assert torch.equal(limit_per_user(rows, 2, Seeds(0)), limit_per_user(other, 2, Seeds(0)))


@pytest.mark.slow
def test_batches_hold_kept_rows_only() -> None:
    task, data = a_task()
    seen: list[float] = []

    class Watching:
        def engine(self, model: Any, loss: Any) -> Any:
            inner = BookKeeping().engine(model, loss)

            def clipped_sum(batch: Any, bound: float) -> Any:
                seen.extend(batch.inputs[:, 0].tolist())
                return inner.clipped_sum(batch, bound)

            offered = {"notes": (), "assumptions": (), "close": inner.close}
            return SimpleNamespace(clipped_sum=clipped_sum, try_on=inner.try_on, **offered)

    fit(trainer(2, epochs=20, gradients=Watching()), task, data, runtimes=STAR, delta=1e-3)
    rows = data.pooled()
    assert rows.users is not None
    owner = dict(zip(rows.inputs[:, 0].tolist(), rows.users.tolist(), strict=True))
    rows_of: dict[int, set[float]] = {}
    for row in seen:
        rows_of.setdefault(owner[row], set()).add(row)
    assert max(len(own) for own in rows_of.values()) == 2
    assert len(rows_of) == len(set(owner.values()))


@pytest.mark.slow
def test_the_statement_is_about_users() -> None:
    task, data = a_task(public_rows=200)
    result = fit(trainer(4), task, data, runtimes=STAR, delta=1e-3)
    found = next(g for g in result.statement.guarantees if g.observer.name == "public")
    step = of_group(poisson_sampled(20 / 200, gaussian_event(2.0)), 4)
    assert found.unit is Unit.USER and found.relation is ADD_REMOVE and found.releases == 20
    assert found.epsilon == epsilon(repeated(step, 20), 1e-3)
    # The broken twin charges a user like a single row.
    single = repeated(poisson_sampled(20 / 200, gaussian_event(2.0)), 20)
    assert epsilon(single, 1e-3) < 0.6 * found.epsilon
    _, counted = a_task()
    (plan, *_) = trainer(4).plan(counted, STAR)
    assert plan.relation is ZERO_OUT and any("is public" in text for text in plan.assumptions)
    calibrated = calibrate(trainer(4), data, epsilon=2.0, delta=1e-3, runtimes=STAR)
    again = fit(calibrated, task, data, runtimes=STAR, delta=1e-3)
    assert 1.9 < again.statement.epsilon() <= 2.0


def test_the_size_of_batches_is_right_by_public_figures_or_the_note_says_that_it_is_not() -> None:
    """40 users with 4 of their 7.5 rows: 160 rows, of which a rate over 300 drew 10.7 for 20."""
    _, stated = a_task(public_rows=300)
    batches = trainer(4).batches(stated)
    assert batches.sampling.rows.rate == pytest.approx(20 / stated.public_rows)  # type: ignore[attr-defined, operator]
    (note,) = batches.notes
    assert "rows_per_user=4" in note and "sampling_rate=" in note
    assert not trainer(4, sampling_rate=20 / 160).batches(stated).notes
    # Where rows are counted, those that may take part are, and the assumption says so.
    _, counted = a_task()
    batches = trainer(4).batches(counted)
    kept = len(batches.eligible(counted.pooled(), Seeds(0)))
    assert batches.sampling.rows.rate == pytest.approx(20 / kept)  # type: ignore[attr-defined]
    assert batches.notes == ()
    said = f"the number of training rows, counting at most 4 of each user, {kept}, is public"
    assert said in batches.assumptions
    result = fit(trainer(4, epochs=0.1), a_task()[0], stated, runtimes=STAR, delta=1e-3)
    assert note in result.notes


def test_what_is_missing_or_too_weak_is_refused() -> None:
    task, data = a_task()
    with pytest.raises(UnsoundReleaseError, match="the number of users"):
        fit(trainer(), task, data, runtimes=STAR, delta=1 / 30)
    nobody = FederatedData(
        train={name: Rows(r.inputs, r.targets) for name, r in data.train.items()}, test=data.test
    )
    with pytest.raises(DataError, match=r"from_arrays\(users"):
        fit(trainer(), task, nobody, runtimes=STAR, delta=1e-3)
    with pytest.raises(ValueError, match="rows_per_user=0"):
        PoissonBatches(rows_per_user=0)
    with pytest.raises(DataError, match=r"users of shape \(2,\)"):
        Rows(torch.zeros(3, 1), users=torch.zeros(2))


def test_a_column_of_a_table_names_users(tmp_path: Path) -> None:
    path = tmp_path / "visits.csv"
    lines = [f"{'abcdefghijkl'[i % 12]},{i},{i % 3},{(i // 3) % 2}" for i in range(60)]
    path.write_text("who,x,z,y\n" + "\n".join(lines))
    _, data = from_csv(path, user="who", parties=2)
    rows = concatenate([data.train[party] for party in data.parties])
    assert rows.users is not None and rows.users.unique(return_counts=True)[1].eq(5).all()
    assert rows.inputs.shape[1] == 2
    with pytest.raises(DataError, match="no column 'whom'"):
        from_csv(path, user="whom")
