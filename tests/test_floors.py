"""Imports point down the floors: a module imports from lower floors and from its own room only."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "privtrain"
FLOORS = [
    {"core"},
    {"privacy", "data"},
    {"runtimes"},
    {"mpc", "attacks"},
    {"aggregation"},
    {"release", "checkpoint"},
    {"steps"},
    {"trainers", "report"},
    {"training", "auditing"},
    {"comparison", "tuning"},
    {"study"},
    {"party"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "privtrain":
                names |= {f"privtrain.{alias.name}" for alias in node.names}
            names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("privtrain.")}


def room_of(path: Path, root: Path = ROOT) -> str:
    return path.relative_to(root).parts[0].removesuffix(".py")


def violations(root: Path = ROOT) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        room = room_of(path, root)
        if room == "__init__":  # the façade: lazy, holds names only
            continue
        for other in imported_rooms(path) - {room}:
            if FLOOR_OF[other] >= FLOOR_OF[room]:
                found.append(f"{path.relative_to(root)} imports {other}")
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms <= set(FLOOR_OF), rooms - set(FLOOR_OF)


def test_imports_point_down() -> None:
    assert violations() == []


def test_an_import_that_points_up_is_found(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "bad.py").write_text("from privtrain.release import Release\n")
    found = violations(tmp_path)
    assert found == ["core/bad.py imports release"]


def test_training_and_comparison_name_no_trainer() -> None:
    for name in ("training.py", "comparison.py"):
        assert "trainers" not in imported_rooms(ROOT / name)


def test_trainers_do_not_import_each_other() -> None:
    trainers = {path.stem for path in (ROOT / "trainers").glob("*.py")} - {"__init__"}
    for path in (ROOT / "trainers").glob("*.py"):
        text = path.read_text()
        for other in trainers - {path.stem}:
            assert f"privtrain.trainers.{other} import" not in text, (path.name, other)
