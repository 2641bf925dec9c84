"""CSV files as text: encodings, quotes and delimiters."""

from pathlib import Path

import pytest

from privtrain.core.errors import DataError
from privtrain.data.tables import guessed, read_table


def test_marks_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffname,said\r\n" Ann ","one,\r\n""two"""\r\nBob,three\r\n'.encode())
    table = read_table(path, ",")
    assert table.columns == {"name": ["Ann", "Bob"], "said": ['one,\r\n"two"', "three"]}
    # The second row begins behind a line break within quotes.
    assert table.place.lines == [3, 4]
    assert "line 4, column 'said'" in str(table.place.error(1, "said", "three", "two"))


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_delimiter_is_guessed_and_never_taken(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(sign.join("ab") + "\n" + sign.join("12") + "\n")
    assert read_table(path, sign).columns == {"a": ["1"], "b": ["2"]}
    assert list(read_table(path, ",").columns) == [f"a{sign}b"]
    with pytest.raises(DataError, match="Is the file separated by") as error:
        read_table(path, ",").check_names(label=["b"])
    assert f"delimiter={sign!r}" in str(error.value)
    path.write_text(f"a{sign}b\n1,5{sign}2\n")
    with pytest.raises(DataError, match=r"expected 1 values.*Is the file separated by"):
        read_table(path, ",")
    assert guessed(["a", "b"]) == guessed(["age"]) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds nothing"),
        (b"a,b\n", "only a line of names"),
        (b"\n\na,b\n1,2\n", r"expected 0 values|only a line of names"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-8"),
        (b"a,a\n1,2\n", "column 'a' twice"),
        (b"a,b\n1\n", "line 2: expected 2 values"),
        (b'a,b\n1,"2\n', "as a CSV file"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(path, ",")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(DataError, match="Could not read") as error:
            read_table(path, ",")
        assert str(path) in str(error.value)


def test_some_rows_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n2\n3\n")
    table = read_table(path, ",")
    assert table.rows([0, 1, 2]) is table
    assert table.rows([2]).columns == {"a": ["3"]}
    assert list(table.rows([2]).place.lines) == [4]
