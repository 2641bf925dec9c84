"""Names that the command line knows without loading what they stand for: half a second of torch.

They are read from the imports of `privtrain/__init__.py`: a new trainer, attack or runtime is one
line there. What they stand for is looked up in `names`.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import privtrain
from privtrain.command.user_code import check_reference
from privtrain.core.errors import DataError
from privtrain.core.validate import check_member

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

TRAINER_GROUP, ATTACK_GROUP = "privtrain.trainers", "privtrain.attacks"
"""Entry points by which other distributions add trainers and attacks."""

DATA = ("adult", "breast_cancer", "digits", "mnist")
"""Known data sets; anything else is the path of a file."""


def public_names(*packages: str) -> list[str]:
    """The public names that come from some packages; nothing is loaded."""
    homes = privtrain._HOME_OF.items()
    return [name for name, home in homes if f"{home}.".split(".")[1] in packages]


def _spelled(package: str, joint: str) -> dict[str, str]:
    """Public names by how options spell them: `one_run` to `OneRun`; nothing is loaded."""
    names = public_names(package)
    return {re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", joint, name).lower(): name for name in names}


_LINES = re.MULTILINE | re.DOTALL


def _source(name: str) -> str:
    """The file that has a public name."""
    home = privtrain._HOME_OF[name].split(".")[1:]
    return Path(privtrain.__file__).parent.joinpath(*home).with_suffix(".py").read_text("utf-8")


def _token(name: str) -> str:
    """The token of a public trainer, as its class says it; nothing is loaded."""
    # Of DPSGD it is dp_sgd: no rule about letters would know.
    own = re.search(rf'^class {name}\b.*?^    token\b[^=\n]*= "(\w+)"', _source(name), _LINES)
    return own[1] if own else privtrain._HOME_OF[name].split(".")[-1]


TRAINER_TOKENS = {_token(name): name for name in public_names("trainers")}
"""Token to public name."""


def _is_attack(name: str) -> bool:
    """Whether a public name is that of an attack, and of nothing that attacks are made of."""
    # The class up to the next line that is not indented and closes no bracket.
    own = re.search(rf"^class {name}\b(?:\((.*?)\))?:((?:(?!^[^\s)]).)*)", _source(name), _LINES)
    if own is None or re.search("Protocol|Enum", own[1] or ""):
        return False
    # What every attack says of itself, unless it has it from another one.
    return bool(own[1]) or re.search(r"^    needs_messages\b", own[2], re.MULTILINE) is not None


ATTACK_TOKENS = {t: name for t, name in _spelled("attacks", "_").items() if _is_attack(name)}
"""Token to public name: all attacks that there are, each one file and one line of the imports."""

# A mesh runs what has no coordinator; it is Processes, and need not be chosen.
_MESHES = ("processes", "threads")
STARS = {token: name for token, name in _spelled("runtimes", "-").items() if token not in _MESHES}
"""Name on the command line to public name, of the runtimes with a coordinator."""


@cache
def added_names(group: str) -> "tuple[EntryPoint, ...]":
    """The entry points of a group."""
    from importlib.metadata import entry_points  # not for --help

    # Cached: every installed distribution is looked into, for each setting of a study.
    return tuple(entry_points(group=group))


def check_names(
    *,
    trainers: Iterable[object] = (),
    attacks: Iterable[object] = (),
    runtime: object = None,
    data: object = None,
    model: object = None,
) -> None:
    """Refuses misspelt names before anything heavy is loaded.

    Args:
        trainers: Tokens or references of trainers.
        attacks: Tokens or references of attacks.
        runtime: Name of a star runtime; None where none is given.
        data: Name of a data set or path of a file; None where none is given.
        model: Reference of a function; None where none is given.

    Raises:
        ValueError: If a name is not known; the nearest is named.
        DataError: If the file of a reference is not there.
    """
    for argument, given, tokens, group in (
        ("trainer", trainers, TRAINER_TOKENS, TRAINER_GROUP),
        ("attack", attacks, ATTACK_TOKENS, ATTACK_GROUP),
    ):
        for name in given:
            _check_name(argument, name, tokens, group)
    if runtime is not None:
        check_member(STARS, runtime=str(runtime))
    if isinstance(model, str):
        check_reference(model, "model")
    # A path has a suffix, or a folder.
    if isinstance(data, str) and data not in DATA and not {".", "/", "\\"} & set(data):
        check_member(DATA, "the path of a .csv or .npz file", data=data)


def _check_name(argument: str, name: object, tokens: Mapping[str, str], group: str) -> None:
    # What is no text is said where a study is read whole.
    if not isinstance(name, str) or name in tokens:
        return
    if ":" in name:
        check_reference(name, argument)
    elif name not in (added := {entry.name for entry in added_names(group)}):
        check_member({*tokens, *added}, **{argument: name})


def read_toml(path: Path) -> dict[str, Any]:
    """A study file as a table.

    Raises:
        DataError: If the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read the study file {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"The study file {path} is not valid TOML: {error}.") from error


def check_study_names(path: Path) -> None:
    """Refuses a study file that names what is not known; see `check_names`."""
    table = read_toml(path)
    trainers, attacks = table.get("trainers", {}), table.get("attacks", ())
    try:
        check_names(
            trainers=[
                settings.get("trainer", label) if isinstance(settings, Mapping) else None
                for label, settings in (trainers.items() if isinstance(trainers, Mapping) else ())
            ],
            attacks=[each.get("attack") if isinstance(each, Mapping) else each for each in attacks]
            if isinstance(attacks, list)
            else (),
            runtime=table.get("runtime"),
            data=table.get("data"),
            model=table.get("model"),
        )
    except ValueError as error:
        raise type(error)(f"{path}: {error}") from error
