"""The README's example, run as it stands but for the number of seeds."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    # One seed of three: the example trains each of seven rows for each seed.
    assert "seeds=range(3)" in code
    code = code.replace("seeds=range(3)", "seeds=range(1)")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    rows = names["comparison"].rows  # type: ignore[attr-defined]
    # Six trainers, and the plaintext twin of MPC.
    assert len(rows) == 7 and all(row.error is None for row in rows)
    private = [row for row in rows if row.epsilon_asked is not None]
    assert {row.label for row in private} == {"DP-SGD", "FedAvg, DP in each silo", "PATE"}
    assert all(0 < row.statement.epsilon("public") <= 3 and row.met for row in private)
    secure = [row for row in rows if row.label == "MPC"]
    twins = {row.seed: row for row in rows if row.label == "MPC, in plaintext"}
    assert {row.baseline for row in secure} == {"MPC, in plaintext"}
    assert all(abs(row.accuracy - twins[row.seed].accuracy) < 0.02 for row in secure)
    names_written = {path.name for path in (tmp_path / "runs" / "digits").iterdir()}
    assert names_written >= {"comparison.json", "table.csv", "table.tex", "report.html", "figures"}


def test_only_two_commands_stand_first() -> None:
    first = re.search(r"```sh\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert first is not None
    commands = [line.split("#")[0].strip() for line in first.group(1).splitlines()]
    assert commands == ["make demo", "make test"]
