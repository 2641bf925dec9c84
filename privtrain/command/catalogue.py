"""What there is, with its settings: read from the source, so that listing it loads nothing.

A trainer, an attack or a part of one is a dataclass, a data set a function; both are documented by
an `Args:` section.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import privtrain
from privtrain.attacks import taxonomy
from privtrain.attacks.taxonomy import About
from privtrain.command.arguments import DataArgs
from privtrain.command.tokens import (
    ATTACK_GROUP,
    ATTACK_TOKENS,
    DATA,
    TRAINER_GROUP,
    TRAINER_TOKENS,
    added_names,
    public_names,
)
from privtrain.core.nearest import nearest

PARTS = ("mechanisms", "release", "sampling", "steps", "gradients", "mpc")
"""Packages whose public dataclasses are settings of trainers."""

_ROOT = Path(privtrain.__file__).parent
_WIDTH = 100
_LOADERS = {
    ".csv": ("data/reading.py", "from_csv"),
    ".tsv": ("data/reading.py", "from_csv"),
    ".npz": ("data/arrays.py", "from_npz"),
}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        name: Its name.
        kind: Its type, as the source writes it.
        default: Its default, as the source writes it; None where it has to be given.
        words: What it means.
    """

    name: str
    kind: str
    default: str | None
    words: str

    def __str__(self) -> str:
        return self.name if self.default is None else f"{self.name}={self.default}"


@dataclass(frozen=True)
class Entry:
    """One thing that has settings.

    Args:
        name: How the command line calls it.
        words: What it is.
        settings: What can be set.
        about: Of an attack, where it stands among the others, in words.
    """

    name: str
    words: str
    settings: tuple[Setting, ...]
    about: str = ""


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _words(docstring: str, section: str = "Args") -> dict[str, str]:
    """Argument to what a docstring says of it."""
    text = inspect.cleandoc(docstring)
    found = re.search(rf"^{section}:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    entries = re.split(r"^    (\w+): ", found[1], flags=re.MULTILINE)[1:] if found else []
    names, said = entries[::2], entries[1::2]
    return {name: " ".join(words.split()) for name, words in zip(names, said, strict=True)}


def _summary(docstring: str) -> str:
    return inspect.cleandoc(docstring).partition("\n\n")[0].replace("\n", " ")


def _of_class(name: str, token: str) -> Entry | None:
    """A public dataclass; None where the public name is something else."""
    path = _ROOT.parent / f"{privtrain._HOME_OF[name].replace('.', '/')}.py"
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            said = ast.get_docstring(node) or ""
            return Entry(token, _summary(said), tuple(_fields(node, _words(said))), _about(node))
    return None


def _about(node: ast.ClassDef) -> str:
    """What an attack says of itself, in words; empty where it says nothing."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and ast.unparse(item.target) == "about" and item.value:
            # A call of `About` with names of `taxonomy`, which loads nothing heavy.
            made: About = eval(ast.unparse(item.value), dict(vars(taxonomy)))
            by = "everybody" if made.observers == taxonomy.EVERYBODY else ", ".join(made.observers)
            shadows = "trains shadow models" if made.shadows else "trains no shadow models"
            return (
                f"Goal: {made.goal}, of one {made.unit}; means: {made.capability}; by {by}; "
                f"{shadows}."
            )
    return ""


def _fields(node: ast.ClassDef, words: dict[str, str]) -> Iterator[Setting]:
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        kind, name = ast.unparse(item.annotation), item.target.id
        default = None if item.value is None else _default(item.value)
        if not kind.startswith("ClassVar") and default != "init=False":
            yield Setting(name, kind, default, words.get(name, ""))


def _default(value: ast.expr) -> str | None:
    if not isinstance(value, ast.Call) or ast.unparse(value.func) != "field":
        return ast.unparse(value)
    given = {str(each.arg): each.value for each in value.keywords}
    if "init" in given:
        return "init=False"
    if "default_factory" in given:
        return f"{ast.unparse(given['default_factory'])}()"
    return ast.unparse(given["default"]) if "default" in given else None


def _of_function(file: str, function: str, name: str) -> Entry:
    (node,) = (
        node
        for node in _tree(_ROOT / file).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    said = ast.get_docstring(node) or ""
    words, given = _words(said), node.args
    defaults = [*[None] * (len(given.args) - len(given.defaults)), *given.defaults]
    settings = [
        Setting(
            arg.arg,
            "" if arg.annotation is None else ast.unparse(arg.annotation),
            None if default is None else ast.unparse(default),
            words.get(arg.arg, ""),
        )
        for arg, default in [
            *zip(given.args, defaults, strict=True),
            *zip(given.kwonlyargs, given.kw_defaults, strict=True),
        ]
        # The file is the name on the command line.
        if arg.arg != "path"
    ]
    if given.kwarg is not None:
        # Loaders of files pass their other options on.
        own = {setting.name for setting in settings} | {"inputs", "targets"}
        passed = _of_function("data/arrays.py", "from_arrays", "").settings
        settings += [setting for setting in passed if setting.name not in own]
    return Entry(name, _summary(said), tuple(settings))


def trainers() -> list[Entry]:
    """The public trainers, by token."""
    return [e for token, name in sorted(TRAINER_TOKENS.items()) if (e := _of_class(name, token))]


def attacks() -> list[Entry]:
    """The public attacks, by token."""
    return [e for token, name in sorted(ATTACK_TOKENS.items()) if (e := _of_class(name, token))]


def data() -> list[Entry]:
    """The known data sets, and what files can be read."""
    known = [_of_function("data/datasets.py", name, name) for name in DATA]
    return known + [_of_function(*place, f"FILE{suffix}") for suffix, place in _LOADERS.items()]


def parts() -> list[Entry]:
    """The public dataclasses that a trainer's settings may hold."""
    return [e for name in sorted(public_names(*PARTS)) if (e := _of_class(name, name))]


_FOOT = {
    "trainers": (
        "Set one by --set dp_sgd.epochs=5, a setting of a part by --set "
        "dp_sgd.release.mechanism.clipping_norm=0.5, and a part by --set "
        "'fedavg.sampling=FixedSize(5)'. privtrain fit has one trainer: --set epochs=5. Your own "
        "trainer is my_file.py:MyTrainer."
    ),
    "attacks": (
        "Set one by --set loss_threshold.limit=1000. Your own attack is my_file.py:MyAttack."
    ),
    "data": (
        "On the command line: --data NAME, {options}; the others stand in a study file, below "
        "[data_options]."
    ),
}


def listing(what: str, name: str | None = None) -> str:
    """What there is, as text.

    Args:
        what: "trainers", "attacks" or "data".
        name: The one to show, or the name of a part such as "Gaussian"; None for all.

    Raises:
        ValueError: If there is none of that name; the nearest is named.
    """
    entries = {"trainers": trainers, "attacks": attacks, "data": data}[what]()
    also = parts() if what == "trainers" else []
    if name is not None:
        chosen = [entry for entry in (*entries, *also) if entry.name == name]
        if not chosen:
            known = [entry.name for entry in entries]
            said = nearest(name, [*known, *(entry.name for entry in also)])
            raise ValueError(f"Expected NAME={name!r} to be one of {', '.join(known)}.{said}")
        return "\n".join(map(_shown, chosen))
    shown = [_shown(entry) for entry in entries]
    group = {"trainers": TRAINER_GROUP, "attacks": ATTACK_GROUP}.get(what)
    for point in added_names(group) if group else ():
        shown.append(f"{point.name}\n    {point.value}, which another distribution adds.\n")
    if also:
        shown.append("Parts that a setting may hold:\n")
        lines = [f"{entry.name}({', '.join(map(str, entry.settings))})" for entry in also]
        shown.append("".join(f"{_wrapped(line, 4, 8)}\n" for line in lines))
    return "\n".join((*shown, _wrapped(_FOOT[what].replace("{options}", _options()), 0, 0)))


def _options() -> str:
    """What the command line takes on data, besides which."""
    return ", ".join(f"--{each.name}" for each in fields(DataArgs) if each.name != "data")


def _shown(entry: Entry) -> str:
    lines = [entry.name, _wrapped(entry.words, 4, 4)]
    lines += [_wrapped(entry.about, 4, 4)] if entry.about else []
    for setting in entry.settings:
        lines.append(_wrapped(f"{setting}  ({setting.kind})", 8, 12))
        if setting.words:
            lines.append(_wrapped(setting.words, 12, 12))
    return "\n".join(lines) + "\n"


def _wrapped(text: str, first: int, others: int) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * others,
        break_long_words=False,
        break_on_hyphens=False,
    )
