"""Every figure under the regime of `tests/docs/figures.py` is that of its kept result."""

import json
from pathlib import Path

import pytest

from tests.docs import figures
from tests.docs.figures import TABLES, digests, kept_in, reasons, text_in_page, text_of

KEPT = [name for name in TABLES if kept_in(name).exists()]


def test_some_results_are_kept() -> None:
    assert {"audit", "dp_ftrl"} <= set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_the_page_says_what_the_kept_result_says(name: str) -> None:
    assert text_in_page(name) == text_of(name)


@pytest.mark.parametrize("name", sorted(set(TABLES) - set(KEPT)))
def test_a_table_without_a_kept_result_has_its_place_and_is_stale(name: str) -> None:
    assert text_in_page(name).startswith("| ")
    assert reasons(name) == ["there is no kept result"]


@pytest.mark.parametrize("name", TABLES)
def test_commands_and_code_are_there(name: str) -> None:
    table = TABLES[name]
    for command in table.commands.values():
        assert (figures.CHECKOUT / command[0]).is_file()
    assert all((figures.CHECKOUT / path).exists() for path in table.code)
    if not table.kept and name in KEPT:
        document = json.loads(kept_in(name).read_text())
        assert set(document) == {"commands", "date", "seconds", "versions", "code", "figures"}
        assert set(document["code"]) == set(table.code)
        assert [text.split()[1] for text in document["commands"].values()] == [
            command[0] for command in table.commands.values()
        ]


def test_a_page_that_differs_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "text_in_page", lambda name: "| another table |")
    assert any("the page differs" in text for text in reasons("audit"))


def test_a_result_is_stale_once_its_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "CHECKOUT", tmp_path)
    code = tmp_path / "code.py"
    code.write_text('"""Says something."""\nx = 1  # one\n')
    first = digests(["code.py"])
    code.write_text('"""Says it better."""\n\nx = 1\n')
    assert digests(["code.py"]) == first
    code.write_text("x = 2\n")
    assert digests(["code.py"]) != first


def test_stale_names_every_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["stale"]) in (0, 1)
    printed = capsys.readouterr().out
    for name, table in TABLES.items():
        assert f"{table.page}, {name}: " in printed
    assert figures.main(["run", "nothing"]) == 2


def test_epsilons_of_pages_are_rounded_up() -> None:
    assert figures.epsilon(2.9901) == "3.00"
    assert figures.epsilon(6.65) == "6.65"
    assert figures.epsilon("inf") == "inf"
