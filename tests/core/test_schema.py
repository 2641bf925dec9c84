"""Which files this version reads."""

import pytest

from privtrain.core.errors import DataError
from privtrain.core.schema import SCHEMA, checked_schema


def test_older_schemas_are_read() -> None:
    assert checked_schema(None, "f") == 1
    assert [checked_schema(number, "f") for number in range(1, SCHEMA + 1)] == [1, SCHEMA]


def test_a_newer_one_is_refused_by_its_name() -> None:
    with pytest.raises(DataError, match=r"f\.json was written by a newer .* schema is 3.*reads 2"):
        checked_schema(SCHEMA + 1, "f.json")


@pytest.mark.parametrize("schema", [0, -1, True, 2.0, "2", [2]])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    with pytest.raises(DataError, match=r"f\.json says schema="):
        checked_schema(schema, "f.json")
