"""Whatever an error does, its text and its place can be read and written."""

import pytest

from privtrain.core.failures import (
    FRAMES,
    RaisedElsewhereError,
    printable,
    shown,
    text_of,
    traceback_of,
)


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class LeavingError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    "error", [MuteError(), LeavingError(), ValueError("/data/\udcff.npy"), OSError()]
)
def test_the_text_of_any_error_can_be_written(error: Exception) -> None:
    for text in (text_of(error), shown(error), traceback_of(error)):
        text.encode("utf-8")
    assert type(error).__name__ in shown(error) and type(error).__name__ in traceback_of(error)


def test_what_can_be_written_stays_as_it_is() -> None:
    assert printable("ε = 1, \\n, 😀") == "ε = 1, \\n, 😀"
    assert printable("\udcff") == "\\udcff"
    assert text_of(KeyError("a")) == "'a'" and shown(KeyError("a")) == "KeyError('a')"


def deep(calls: int) -> None:
    if calls == 0:
        raise KeyError("mine")
    deep(calls - 1)


def test_the_last_calls_are_kept_and_the_cause_that_was_elsewhere() -> None:
    with pytest.raises(KeyError) as caught:
        deep(3 * FRAMES)
    assert "in deep" in traceback_of(caught.value)
    assert traceback_of(caught.value).count("\n") < 4 * FRAMES
    error = RuntimeError("lost")
    error.__cause__ = RaisedElsewhereError("in own_loss\nKeyError: 'mine'")
    assert "in own_loss" in traceback_of(error)
