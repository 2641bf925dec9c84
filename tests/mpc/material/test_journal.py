"""What a journal says is spent stays spent, whatever becomes of its last line."""

import json
from pathlib import Path

import pytest

from privtrain.core.errors import DataError, PrivtrainError, ProtocolError
from privtrain.mpc.material.journal import Journal, Spent
from tests.disk import little_space

SESSION = "ab" * 16


def begun(path: Path) -> Journal:
    journal = Journal(path, "study", "computing-0")
    journal.begin()
    return journal


def resumed(path: Path, study: str = "study", receiver: str = "computing-0") -> Journal:
    journal = Journal(path, study, receiver)
    journal.resume()
    return journal


def entry(number: int) -> Spent:
    return Spent(segments=number, blocks=3 * number, step=number - 1, session=SESSION)


def test_a_journal_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    journal = begun(path)
    assert resumed(path).spent == Spent()
    for number in (1, 2, 3):
        journal.spend(entry(number))
        journal = resumed(path)
        assert journal.spent == entry(number)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_crash_cut_off_spent_nothing_and_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    journal = begun(path)
    journal.spend(entry(1))
    before = path.stat().st_size
    journal.spend(entry(2))
    whole = path.read_bytes()
    for size in range(before, len(whole)):
        path.write_bytes(whole[:size])
        journal = resumed(path)
        assert journal.spent == entry(1), size
        journal.spend(entry(2))
        assert resumed(path).spent == entry(2), size
        # What a file system leaves of bytes that it had no time to write.
        path.write_bytes(whole[:size] + bytes(len(whole) - size))
        assert resumed(path).spent == entry(1), size
    path.write_bytes(whole)
    assert resumed(path).spent == entry(2)


@pytest.mark.parametrize(
    "next_entry",
    [
        entry(1),
        entry(3),
        Spent(segments=2, blocks=3, step=1, session=SESSION),
        Spent(segments=2, blocks=6, step=1, session="cd" * 16),
    ],
)
def test_nothing_but_more_is_spent(next_entry: Spent, tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    journal = begun(path)
    journal.spend(entry(1))
    with pytest.raises(ProtocolError, match="to grow by one segment"):
        journal.spend(next_entry)
    assert resumed(path).spent == entry(1)
    with path.open("a") as file:
        file.write("\n" + json.dumps(next_entry.line))
    with pytest.raises(ProtocolError, match="follows"):
        resumed(path)


def test_a_journal_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    begun(path).spend(entry(1))
    first, second, third = path.read_text().strip().split("\n")
    for text, words in [
        ("", "first line is missing"),
        (second, "first line is missing"),
        (first, "second line is missing"),
        (f"{first}\n{third}", "second line is missing"),
        (f"{first}\nspent everything", "cannot be read"),
        (f'{first}\n{second}\n{{"spent": 1}}', "line 3 is no entry"),
        (f"{first}\n{second}\n{third.replace('3', '3.5')}", "line 3 is no entry"),
    ]:
        path.write_text(text)
        with pytest.raises(ProtocolError, match=rf"unknown: .*{words}.*another folder"):
            resumed(path)
    path.unlink()
    with pytest.raises(ProtocolError, match="cannot be read"):
        resumed(path)


def test_another_study_or_party_is_refused_with_both(tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    begun(path)
    with pytest.raises(DataError, match=r"study='other'; that in .* is for 'study'"):
        resumed(path, study="other")
    with pytest.raises(DataError, match=r"receiver='computing-1'; that in .* is for 'computing-0'"):
        resumed(path, receiver="computing-1")


def test_a_full_disk_spends_nothing_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    journal = begun(path)
    size = path.stat().st_size
    for most in (size, size + 1, size + 20):
        with little_space(most), pytest.raises(PrivtrainError) as caught:
            journal.spend(entry(1))
        for words in (str(tmp_path), "is full", "none was used", "Free some space"):
            assert words in str(caught.value)
        assert path.stat().st_size == size and journal.spent == Spent()
    journal.spend(entry(1))
    assert resumed(path).spent == entry(1)


def test_somebody_else_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "material.jsonl"
    one = begun(path)
    other = resumed(path)
    one.spend(entry(1))
    with pytest.raises(ProtocolError, match="changed by somebody else; no material was used"):
        other.spend(entry(1))
    with pytest.raises(FileExistsError):
        begun(path)
