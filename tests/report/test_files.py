import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from privtrain.core.cost import Basis, Cost
from privtrain.core.errors import DataError, PrivtrainError
from privtrain.core.result import Comparison, Failure
from privtrain.report import files
from tests.report import examples

TEXTS = {"comparison.json", "table.csv", "table.tex", "report.html"}
FILES = {*TEXTS, "figures"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.save(examples.realistic(), tmp_path_factory.mktemp("runs") / "deep" / "run")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_four_files_and_nothing_else(saved: Path) -> None:
    assert saved.parts[-2:] == ("deep", "run")
    assert names(saved) == FILES


def test_round_trip(saved: Path) -> None:
    loaded = files.load(saved)
    assert loaded.rows == examples.realistic().rows
    assert loaded == examples.realistic()
    assert str(loaded) == str(files.load(saved / "comparison.json"))
    assert "Results" in str(loaded)
    assert (loaded._repr_html_() or "").lstrip().startswith("<div")


def test_infinity_is_a_string_and_comes_back(saved: Path) -> None:
    text = (saved / "comparison.json").read_text()
    assert "Infinity" not in text
    plain = json.loads(text)
    assert plain["rows"][0]["statement"]["guarantees"][0]["epsilon"] == "inf"
    statement = files.load(saved).rows[0].statement
    assert statement is not None
    assert statement.epsilon() == float("inf")


def test_schema(saved: Path) -> None:
    plain = json.loads((saved / "comparison.json").read_text())
    assert set(plain) == {"schema", "rows", "card", "study", "unprotected"}
    assert plain["schema"] == 2
    row = plain["rows"][0]
    assert set(row) == {
        "trainer", "label", "seed", "epsilon_asked", "accuracy", "accuracy_interval", "error",
        "statement", "cost", "leakage", "history", "halted", "notes", "met",
        "traceback", "accuracy_failure", "metrics", "main", "classes_predicted", "baseline",
    }  # fmt: skip
    assert set(row["statement"]) == {"guarantees", "input_privacy", "caveats", "curves"}
    assert set(row["cost"]) == {
        "bytes_sent", "bytes_sent_by_party", "rounds", "seconds", "peak_memory_bytes", "basis",
        "cpu_seconds",
    }  # fmt: skip
    assert row["epsilon_asked"] is None
    failed = next(row for row in plain["rows"] if row["error"])
    assert failed["statement"] is None
    assert failed["cost"] is None


def test_what_no_guarantee_covers_is_named(saved: Path) -> None:
    plain = json.loads((saved / "comparison.json").read_text())
    row = plain["rows"][0]
    for name in plain["unprotected"]:
        value = row
        for part in name.split("."):
            value = value[part]
    assert {"accuracy", "leakage", "history.unprotected", "error"} <= set(plain["unprotected"])


def test_the_digest_without_a_key_that_version_0_1_wrote_is_not_written_again(
    tmp_path: Path,
) -> None:
    card = {"data": {"name": "digits", "sha256": "ab12" * 16}, "public_seeds": [0]}
    (tmp_path / "old").mkdir()
    old = replace(examples.realistic(), card=card)
    (tmp_path / "old" / "comparison.json").write_text(json.dumps(files.plain_comparison(old)))
    loaded = files.load(tmp_path / "old")
    assert loaded.card == card
    files.save(loaded, tmp_path / "new")
    for path in (path for path in (tmp_path / "new").iterdir() if path.is_file()):
        assert "ab12ab12" not in path.read_text(), path.name
        assert "digits" in path.read_text() or path.suffix in (".csv", ".tex")


def test_withheld_bytes_come_back_as_withheld(tmp_path: Path) -> None:
    cost = Cost(
        bytes_sent=None, rounds=None, seconds=1.0, peak_memory_bytes=1, basis=Basis.WITHHELD
    )
    leakage = replace(examples.leakage(0.5), members=None, non_members=None)
    row = replace(examples.dp_sgd(0, 3.0), cost=cost, leakage=(leakage,))
    files.save(Comparison(rows=(row,), card={}), tmp_path)
    assert files.load(tmp_path).rows == (row,)
    for name in ("table.tex", "report.html"):
        assert "beside a promise" in (tmp_path / name).read_text()
    assert "not public" in (tmp_path / "report.html").read_text()
    assert "beside a promise" in " ".join(str(files.load(tmp_path)).split())


def test_a_run_is_not_overwritten_without_force(copy: Path) -> None:
    before = (copy / "comparison.json").read_bytes()
    with pytest.raises(ValueError, match="--force"):
        files.save(examples.hostile(), copy)
    assert (copy / "comparison.json").read_bytes() == before
    files.save(examples.hostile(), copy, force=True)
    assert files.load(copy) == examples.hostile()
    assert names(copy) == FILES


@pytest.mark.slow
def test_same_comparison_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = files.save(examples.realistic(), tmp_path)
    for name in TEXTS:
        assert (again / name).read_bytes() == (saved / name).read_bytes(), name


def test_a_folder_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(DataError, match=r"Cannot write to folder=.*run"):
        files.save(examples.hostile(), tmp_path / "run")
    with pytest.raises(DataError, match="Choose a folder that you may write to"):
        files.save(examples.hostile(), tmp_path / "run" / "deeper")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="Permission denied"):
        files.save(examples.hostile(), tmp_path)


def test_a_full_disk_is_explained_and_leaves_no_half_file(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (copy / name).read_bytes() for name in TEXTS}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PrivtrainError, match=r"full .*Free some space"):
        files.save(examples.hostile(), copy, force=True)
    assert {name: (copy / name).read_bytes() for name in TEXTS} == before
    assert names(copy) == FILES


def test_nothing_to_load_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no comparison\.json"):
        files.load(tmp_path)
    with pytest.raises(DataError, match=r"no comparison\.json"):
        files.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": [{}], "card": {}}', '{"rows": 3}'])
def test_a_damaged_file_is_explained(tmp_path: Path, text: str) -> None:
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(DataError, match="not a comparison as this version"):
        files.load(tmp_path)


def test_a_row_with_unknown_columns_is_explained(tmp_path: Path) -> None:
    plain = files.plain_comparison(examples.realistic())
    plain["rows"][0]["new"] = 1
    (tmp_path / "comparison.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match="new"):
        files.load(tmp_path)


def test_a_rendering_that_cannot_be_made_or_written_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(comparison: Comparison) -> str:
        raise KeyError("cell")

    monkeypatch.setattr(files, "RENDERINGS", {**files.RENDERINGS, "table.csv": broken})
    with pytest.raises(PrivtrainError, match=r"Could not make table\.csv: KeyError: 'cell'"):
        files.save(examples.hostile(), tmp_path / "made")
    assert names(tmp_path / "made") == FILES - {"table.csv"}
    (tmp_path / "run" / "table.tex").mkdir(parents=True)
    monkeypatch.undo()
    with pytest.raises(DataError, match="Cannot write"):
        files.save(examples.hostile(), tmp_path / "run")
    assert names(tmp_path / "run") == FILES


def test_failures_come_back(tmp_path: Path) -> None:
    failure = Failure(error="KeyError: 'x'", traceback="in f")
    leakage = replace(examples.leakage(0.5), failure=failure, metrics={}, intervals={})
    row = replace(
        examples.sgd(0),
        accuracy=None,
        accuracy_interval=None,
        accuracy_failure=failure,
        leakage=(leakage,),
        traceback="in g",
    )
    files.save(Comparison(rows=(row,), card={}), tmp_path)
    assert files.load(tmp_path).rows == (row,)
    plain = json.loads((tmp_path / "comparison.json").read_text())
    # What earlier versions wrote knows of no failures.
    for name in ("traceback", "accuracy_failure"):
        del plain["rows"][0][name]
    del plain["rows"][0]["leakage"][0]["failure"]
    assert files.read_comparison(plain).rows[0].failures == ()


def test_a_text_that_utf_8_cannot_write_is_escaped_everywhere(tmp_path: Path) -> None:
    odd = "no \udcff.npy"
    failure = Failure(error=odd, traceback=odd)
    rows = [
        replace(row, label=f"{row.label} {odd}", notes=(odd,))
        for row in (examples.sgd(0), examples.dp_sgd(0, 1.0))
    ]
    rows[0] = replace(rows[0], accuracy=None, accuracy_interval=None, accuracy_failure=failure)
    made = files.read_comparison(files.plain_comparison(Comparison(rows=tuple(rows), card={})))
    files.save(made, tmp_path)
    assert names(tmp_path) == FILES and files.load(tmp_path).rows == made.rows
    for name in TEXTS:
        assert "udcff" in (tmp_path / name).read_text(encoding="utf-8"), name
    assert r"no \textbackslash{}udcff" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert "\\udcff" in str(made) and made.as_html is not None
    for text in (str(made), made.as_html(made)):
        text.encode("utf-8")


def test_pictures_are_written_as_pdf_and_svg(saved: Path) -> None:
    figures = names(saved / "figures")
    stems = {"accuracy", "cost", "epsilon", "deltas", "trade_off", "curves"}
    assert figures == {f"{stem}.{ending}" for stem in stems for ending in ("pdf", "svg")}
    for path in (saved / "figures").iterdir():
        contents = path.read_bytes()
        if path.suffix == ".pdf":
            assert contents.startswith(b"%PDF") and contents.rstrip().endswith(b"%%EOF")
            assert b"CreationDate" not in contents
        else:
            root = ElementTree.fromstring(contents)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert b"currentColor" not in contents


def test_pictures_of_an_earlier_comparison_do_not_stay(tmp_path: Path) -> None:
    files.save(Comparison(rows=(examples.dp_sgd(0, 3.0),), card={}), tmp_path)
    (tmp_path / "figures" / "mine.svg").write_text("<svg/>")
    files.save(Comparison(rows=(examples.sgd(0),), card={}), tmp_path, force=True)
    found = names(tmp_path / "figures")
    assert "mine.svg" in found and "cost.pdf" in found
    assert not any(name.startswith(("epsilon", "deltas", "trade_off")) for name in found)


@pytest.mark.slow
def test_the_same_comparison_gives_the_same_pictures(tmp_path: Path) -> None:
    made = Comparison(rows=(examples.dp_sgd(0, 3.0),), card={})
    for place in ("first", "second"):
        files.save(made, tmp_path / place)
    for path in (tmp_path / "first" / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / "figures" / path.name).read_bytes()
