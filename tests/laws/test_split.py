"""Rule 15: how rows were split is part of the mechanism, and what that assumes is stated.

Adding or removing a row of the table is adding or removing a row of one part; what does not carry
over to the table is said in every guarantee.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import privtrain as pt
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Guarantee, Unit
from privtrain.core.task import AS_SPLIT, HELD_AS_GIVEN, FederatedData, Rows
from privtrain.data import datasets
from privtrain.runs.statements import OTHER_PARTS, USERS_KNOWN

GENERATOR = np.random.default_rng(3)
X = GENERATOR.normal(size=(300, 4))
Y = (X[:, 0] > 0).astype(int)
NOISE = pt.Gaussian(1.0, 4.0)
POISSON = pt.DPSGD(epochs=1, release=pt.Release(NOISE))
SILOS = pt.FedAvg(rounds=1, local=pt.DPSteps(NOISE))
CLIENTS = pt.FedAvg(rounds=1, release=pt.Release(NOISE))
VOTES = pt.PATE(teachers=6, queries=5, steps=pt.PlainSteps(epochs=1))


def loaded(**options: Any) -> tuple[pt.Task, FederatedData]:
    settings: dict[str, Any] = {"parties": 3, "classes": 2, "public_rows": 200, **options}
    return pt.data.from_arrays(X, Y, **settings)


def result_of(trainer: Any, task: pt.Task, data: FederatedData) -> Any:
    return pt.fit(trainer, task, data, delta=1e-3, runtimes=pt.Runtimes(star=pt.InProcess()))


def promises(trainer: Any, task: pt.Task, data: FederatedData) -> list[Guarantee]:
    made = result_of(trainer, task, data).statement.guarantees
    return [g for g in made if np.isfinite(g.epsilon)]


def said(text: str, guarantees: list[Guarantee]) -> set[bool]:
    assert guarantees
    return {text in g.assumptions for g in guarantees}


@pytest.mark.parametrize("trainer", [POISSON, SILOS, VOTES], ids=["dp", "silos", "pate"])
def test_who_holds_which_rows_is_an_assumption_where_there_are_several_parties(
    trainer: Any,
) -> None:
    for parties in (1, 3):
        made = promises(trainer, *loaded(parties=parties))
        assert {g.unit for g in made} == {Unit.EXAMPLE}
        assert said(HELD_AS_GIVEN, made) == {parties > 1}


def test_a_promise_to_clients_takes_its_clients_as_they_are() -> None:
    made = promises(CLIENTS, *loaded())
    assert {g.unit for g in made} == {Unit.CLIENT}
    assert said(HELD_AS_GIVEN, made) == said(AS_SPLIT, made) == {False}


def test_only_add_remove_carries_over_to_the_table() -> None:
    fixed = replace(POISSON, sampling=pt.FixedSizeBatches())
    shuffled = replace(POISSON, sampling=pt.ShuffledEpochs())
    cases = [
        (POISSON, {}, ADD_REMOVE),
        (POISSON, {"public_rows": None}, ZERO_OUT),
        (shuffled, {}, ZERO_OUT),
        (fixed, {}, REPLACE_ONE),
        (VOTES, {}, ADD_REMOVE),
        (VOTES, {"public_rows": None}, ZERO_OUT),
    ]
    for trainer, options, relation in cases:
        public = promises(trainer, *loaded(**options))[0]
        assert public.relation is relation
        assert (AS_SPLIT in public.assumptions) == (relation is not ADD_REMOVE)


def test_a_split_that_the_user_gives_stays_as_given() -> None:
    options: dict[str, Any] = {"public_rows": None, "test": (X, Y)}
    for fraction in (0.0, 0.2):
        task, data = loaded(validation_fraction=fraction, **options)
        result = result_of(POISSON, task, data)
        public = result.statement.guarantees[0]
        assert public.relation is ZERO_OUT
        assert (AS_SPLIT in public.assumptions) == (fraction > 0)
        assert (OTHER_PARTS in result.statement.caveats) == (fraction > 0)
    task, data = loaded(public_rows=None)
    by_hand = FederatedData(train=dict(data.train), test=data.test)
    assert said(AS_SPLIT, promises(POISSON, task, by_hand)) == {False}
    exact = result_of(pt.SGD(epochs=1), task, data)
    assert OTHER_PARTS not in exact.statement.caveats  # nothing is promised that could be void


def test_a_promise_for_single_rows_says_so_where_users_are_known() -> None:
    task, data = loaded(users=np.arange(300) // 5)
    per_user = replace(POISSON, sampling=pt.PoissonBatches(rows_per_user=5))
    for trainer, noted in ((POISSON, True), (SILOS, True), (VOTES, True), (per_user, False)):
        assert (USERS_KNOWN in result_of(trainer, task, data).notes) == noted
    assert USERS_KNOWN not in result_of(pt.SGD(epochs=1), task, data).notes
    assert USERS_KNOWN not in result_of(POISSON, *loaded()).notes


def test_what_was_read_from_the_rows_is_in_every_guarantee(tmp_path: Path) -> None:
    """One row that brings a class or a word brings an output or a column."""
    for trainer in (POISSON, SILOS, CLIENTS, VOTES):
        counted, stated = promises(trainer, *loaded(classes=None)), promises(trainer, *loaded())
        for guarantees, read in ((counted, True), (stated, False)):
            assert guarantees
            texts = [" ".join(g.assumptions) for g in guarantees]
            assert {"number of classes was counted" in text for text in texts} == {read}
    path = tmp_path / "t.csv"
    lines = [f"{n},{'Rome' if n % 3 else 'Oslo'},{'yes' if n % 2 else 'no'}" for n in range(90)]
    path.write_text("\n".join(["age,city,y", *lines]))
    for guarantee in promises(POISSON, *pt.data.from_csv(path, parties=1, public_rows=60)):
        text = " ".join(guarantee.assumptions)
        assert "categories of column 'city' were read" in text and "classes were read" in text
    listed: dict[str, Any] = {"categories": {"city": ("Oslo", "Rome")}, "classes": ("no", "yes")}
    task, data = pt.data.from_csv(path, parties=1, public_rows=60, **listed)
    assert "read" not in " ".join(promises(POISSON, task, data)[0].assumptions)


def test_sums_of_several_fits_and_chosen_ones_assume_the_same() -> None:
    task, data = loaded(public_rows=None, classes=None)
    study = pt.StudyLedger(data, delta=1e-3)
    pt.fit(POISSON, task, data, delta=1e-3, study_ledger=study)
    score = pt.PublicRows(Rows(torch.zeros(4, 4), torch.tensor([0, 1, 0, 1])))
    best = pt.tune({"a": POISSON}, task, data, score=score, delta=1e-3).result
    chosen = next(g for g in best.statement.guarantees if np.isfinite(g.epsilon))
    for guarantee in (study.guarantee(), chosen):
        assert {HELD_AS_GIVEN, AS_SPLIT, *data.assumptions} <= set(guarantee.assumptions)


def test_refusals_that_follow_from_private_rows_are_named() -> None:
    for options, named in (({"public_rows": None}, True), ({}, False)):
        with pytest.raises(pt.UnsoundReleaseError, match="in the clear") as refused:
            pt.fit(POISSON, *loaded(**options), delta=1 / 100)
        assert ("Unprotected" in str(refused.value)) == named
    with pytest.raises(pt.UnsoundReleaseError) as refused:
        pt.fit(CLIENTS, *loaded(public_rows=None), delta=1 / 2)
    assert "Unprotected" not in str(refused.value)  # who takes part is public
    task, data = loaded()
    empty = FederatedData(
        train={"a": data.pooled(), "b": data.pooled().take(torch.arange(0))}, test=data.test
    )
    with pytest.raises(pt.DataError, match=r"'b' holds no rows.*Unprotected"):
        pt.fit(POISSON, task, empty)


def test_the_public_number_of_a_known_set_does_not_follow_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One image less is one image less in one part, and the sampling rate is the same."""
    import sklearn.datasets

    def parts(data: FederatedData) -> Counter[tuple[str, bytes]]:
        assert data.validation is not None
        held = {"train": data.pooled(), "test": data.test, "validation": data.validation}
        return Counter(
            (k, row.numpy().tobytes()) for k, rows in held.items() for row in rows.inputs
        )

    _, whole = datasets.digits(parties=1)
    bunch = sklearn.datasets.load_digits()
    bunch.data, bunch.target = bunch.data[1:], bunch.target[1:]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    _, without = datasets.digits(parties=1)
    assert whole.public_rows == without.public_rows == 1_258
    assert (parts(whole) - parts(without)).total() == 1
    assert not parts(without) - parts(whole)
    plans = [pt.DPSGD(epochs=2).plan(data, pt.Runtimes())[0] for data in (whole, without)]
    assert plans[0] == plans[1] and plans[0].relation is ADD_REMOVE
