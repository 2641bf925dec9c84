"""The README's example, run as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    rows = names["comparison"].rows  # type: ignore[attr-defined]
    assert len(rows) == 18 and all(row.error is None for row in rows)
    private = [row for row in rows if row.label == "DP-SGD"]
    assert all(0 < row.statement.epsilon("public") <= 3 for row in private)
    names_written = {path.name for path in (tmp_path / "runs" / "digits").iterdir()}
    assert names_written >= {"comparison.json", "table.csv", "table.tex", "report.html"}


def test_only_two_commands_stand_first() -> None:
    first = re.search(r"```sh\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert first is not None
    commands = [line.split("#")[0].strip() for line in first.group(1).splitlines()]
    assert commands == ["make demo", "make test"]
