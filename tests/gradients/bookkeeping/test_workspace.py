"""Memory that is kept from batch to batch."""

import copy

import pytest

from tests.gradients.bookkeeping.cases import CASES, C, engine_of, equal, expected


@pytest.mark.parametrize("name", ["cnn", "over time", "attention", "recurrent"])
def test_batches_of_changing_size_share_their_memory(name: str) -> None:
    case = CASES[name]
    engine = engine_of(case.make)
    for count in (3, 9, 1, 20, 4):
        rows = case.rows(count, seed=count)
        equal(engine.clipped_sum(rows, C), expected(case.make, rows))
    equal(copy.deepcopy(engine).clipped_sum(rows, C), expected(case.make, rows))
