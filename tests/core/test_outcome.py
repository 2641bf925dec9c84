"""What a run leaves: each text once, and the memory of the largest process."""

from privtrain.core.outcome import Outcome


def test_each_text_is_kept_once_and_in_order() -> None:
    outcome = Outcome()
    outcome.note("b", "a", "b")
    outcome.note("a", "c")
    outcome.assume("it rains", "it rains")
    outcome.assume("it rains", "it pours")
    assert outcome.notes == ["b", "a", "c"]
    assert outcome.assumptions == ["it rains", "it pours"]


def test_the_memory_is_that_of_the_largest_process() -> None:
    outcome = Outcome()
    for peak in (5, 9, 7):
        outcome.report_memory(peak)
    assert outcome.peak_memory_bytes == 9
