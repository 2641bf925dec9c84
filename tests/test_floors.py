"""Imports point down the floors, between packages and between files; no circle anywhere."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import privtrain

ROOT = Path(__file__).parent.parent / "privtrain"
FLOORS = [
    {"core"},
    {"accounting", "runtimes", "data", "report"},
    {"mechanisms", "sampling", "ledgers", "attacks"},
    {"mpc", "gradients", "runs"},
    {"release", "steps"},
    {"trainers"},
    {"command"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
Graph = Mapping[str, set[str]]
HOMES = set(vars(privtrain)["_HOME_OF"].values())


def modules(root: Path) -> dict[str, Path]:
    """Dotted name of every file below a package's folder; the package's own names only, no file."""
    paths = {path: path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py")}
    named = {".".join(parts).removesuffix(".__init__"): path for path, parts in paths.items()}
    return {name: path for name, path in sorted(named.items()) if name != "__init__"}


def imports(path: Path, known: set[str]) -> set[str]:
    """The files of the package that a file imports, at whatever depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {name for name in inside if name.removeprefix("privtrain.") in known}
            found |= files or {node.module}
    within = {name.removeprefix("privtrain.") for name in found if name.startswith("privtrain.")}
    return within & known


def graph_of(root: Path = ROOT) -> Graph:
    """Which file imports which."""
    files = modules(root)
    return {name: imports(path, set(files)) - {name} for name, path in files.items()}


def room_of(name: str) -> str:
    return name.split(".")[0]


def floors_of(graph: Graph) -> dict[str, int]:
    """The floor of each package as its imports lie: one above the highest that it imports."""
    below: dict[str, set[str]] = {room_of(name): set() for name in graph}
    for name, others in graph.items():
        below[room_of(name)] |= {room_of(other) for other in others} - {room_of(name)}
    floors: dict[str, int] = {}
    while len(floors) < len(below):
        ready = [r for r, o in below.items() if r not in floors and o <= floors.keys()]
        assert ready, f"packages in a circle: {sorted(below.keys() - floors.keys())}"
        for room in ready:
            floors[room] = 1 + max((floors[other] for other in below[room]), default=-1)
    return floors


def circle(graph: Graph) -> list[str]:
    """The files that import each other in a circle, or lead to one; empty where there is none."""
    left = {name: set(others) for name, others in graph.items()}
    while ends := [name for name, others in left.items() if not others & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


def violations(graph: Graph) -> Iterator[str]:
    for name, others in graph.items():
        for other in sorted(others):
            here, there = room_of(name), room_of(other)
            if here != there and FLOOR_OF[there] >= FLOOR_OF[here]:
                yield f"{name} imports {other}"


def test_imports_point_down() -> None:
    assert list(violations(graph_of())) == []


def test_the_floors_are_those_that_imports_make() -> None:
    assert floors_of(graph_of()) == FLOOR_OF


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(graph_of()) == []


def test_what_breaks_a_rule_is_found(tmp_path: Path) -> None:
    for folder in ("core", "release"):
        (tmp_path / folder).mkdir()
    (tmp_path / "core" / "bad.py").write_text("from privtrain.release.door import Release\n")
    (tmp_path / "release" / "door.py").write_text("from privtrain.release import finish\n")
    (tmp_path / "release" / "finish.py").write_text(
        "def late():\n    import privtrain.release.door\n"
    )
    graph = graph_of(tmp_path)
    assert list(violations(graph)) == ["core.bad imports release.door"]
    assert {"release.door", "release.finish"} <= set(circle(graph))


def test_runs_name_no_trainer() -> None:
    graph = graph_of()
    for name in graph:
        if room_of(name) == "runs":
            assert not {other for other in graph[name] if room_of(other) == "trainers"}


def test_trainers_do_not_import_each_other() -> None:
    graph = graph_of()
    # The parts of one trainer, such as the teachers of PATE, are in files of their own.
    trainers = {name for name in graph if name.startswith("trainers.")}
    parts = {name for name in trainers if f"privtrain.{name}" not in HOMES}
    for name in trainers:
        assert not graph[name] & (trainers - parts), name
    # A part may have parts; all of them belong to one trainer.
    used = {name: graph[name] & parts for name in trainers}
    for _ in parts:
        used = {n: found.union(*(graph[p] & parts for p in found)) for n, found in used.items()}
    for part in parts:
        assert len([name for name in trainers - parts if part in used[name]]) == 1, part
