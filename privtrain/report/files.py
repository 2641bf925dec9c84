"""A comparison on disk: JSON that can be read back, and its renderings."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from privtrain.core.cost import Basis, Cost
from privtrain.core.errors import DataError, PrivtrainError, Reason
from privtrain.core.observers import Observer
from privtrain.core.result import (
    Comparison,
    Curve,
    Failure,
    History,
    Leakage,
    Measurement,
    Row,
    VotesSeen,
)
from privtrain.core.schema import SCHEMA, checked_schema
from privtrain.core.statement import (
    Adversary,
    ExactCost,
    Guarantee,
    InputPrivacy,
    PrivacyCurves,
    PrivacyStatement,
    Relation,
    Security,
    Unit,
    to_json_text,
    to_plain,
)
from privtrain.core.writing import explained, write_file
from privtrain.report import attack_table
from privtrain.report.drawing import Picture
from privtrain.report.html import Drawn, comparison_fragment, comparison_html, draw
from privtrain.report.latex import to_latex
from privtrain.report.publishing import publishable_card, unprotected
from privtrain.report.records import records, to_csv
from privtrain.report.table import comparison_text

JSON_NAME = "comparison.json"
RESULT_NAME = "result.json"
"""What a comparison, and the result of a fit, are kept in."""
FIGURES = "figures"
"""The folder of the pictures."""

RENDERINGS: Mapping[str, Callable[[Comparison], str]] = {
    "table.csv": to_csv,
    "table.tex": to_latex,
    "report.html": comparison_html,
}
ATTACKS_NAME = "attacks.csv"
"""The table of attacks, where several were run, or from several places."""
"""What is written beside the JSON, by file name."""


def save(comparison: Comparison, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes comparison.json, table.csv, table.tex, report.html and the pictures in figures/.

    Where several attacks were run, or one from several places, also attacks.csv. Each picture is
    there as PDF and as SVG, where there is anything to draw. Each file is either written as a whole
    or not at all. The JSON file comes first: the others can be made from it again.

    Args:
        comparison: What was compared.
        folder: Where to; made where it does not exist.
        force: Whether to overwrite a comparison that is already there.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds a comparison and `force` is not set, or cannot be written.
        PrivtrainError: If the disk is full, or a rendering cannot be made. The other files are
            written.
    """
    where = Path(folder)
    with explained(where):
        where.mkdir(parents=True, exist_ok=True)
        # The JSON alone counts as a comparison: all other files can be made from it again.
        taken = (where / JSON_NAME).exists()
    if taken and not force:
        raise DataError(
            f"Expected folder={str(where)!r} to hold no comparison. Choose another folder, "
            "or overwrite it with --force (force=True)."
        )
    write_file(where / JSON_NAME, _json_text(comparison))
    problems = []
    # Drawn once, for the page and for the files.
    pictures = draw(comparison)
    renderings: dict[str, Callable[[Comparison], str]]
    renderings = {**RENDERINGS, "report.html": partial(comparison_html, pictures=pictures)}
    if attack_table.several(comparison):
        renderings[ATTACKS_NAME] = attack_table.attacks_csv
    else:
        with explained(where):  # of an earlier comparison there
            (where / ATTACKS_NAME).unlink(missing_ok=True)
    for name, render in renderings.items():
        # One that cannot be made or written is no reason to go without the others.
        try:
            write_file(where / name, _rendered(name, render, comparison))
        except PrivtrainError as error:
            problems.append(error)
    try:
        _write_figures(where / FIGURES, pictures)
    except PrivtrainError as error:
        problems.append(error)
    if problems:
        raise problems[0]
    return where


def _write_figures(folder: Path, pictures: Drawn) -> None:
    """Each picture as PDF and SVG; what an earlier comparison drew there and this one not goes."""
    with explained(folder.parent):
        folder.mkdir(exist_ok=True)
        for name in pictures:
            for ending in ("svg", "pdf"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
    for name, picture in pictures.items():
        if isinstance(picture, Picture):
            for ending, contents in picture.files.items():
                write_file(folder / f"{name}.{ending}", contents)


def _rendered(name: str, render: Callable[[Comparison], str], comparison: Comparison) -> str:
    try:
        return render(comparison)
    except Exception as error:  # whatever a value of a user's own attack does
        raise PrivtrainError(
            f"Could not make {name}: {type(error).__name__}: {error}. The other files are whole; "
            f"{JSON_NAME} holds everything."
        ) from error


def _json_text(comparison: Comparison) -> str:
    """JSON with a line for each row: long curves would fill a line for each number."""
    plain = plain_comparison(replace(comparison, card=publishable_card(comparison.card)))
    rows = ",\n".join(json.dumps(row, allow_nan=False, ensure_ascii=False) for row in plain["rows"])
    rest = to_json_text({**{name: plain[name] for name in plain if name != "rows"}})
    return f'{{\n"rows": [\n{rows}\n],{rest[1:]}\n'


def plain_comparison(comparison: Comparison) -> dict[str, Any]:
    """The comparison as nested plain values, as comparison.json has them.

    Args:
        comparison: What was compared.

    Returns:
        `{"schema": 2, "rows": [...], "card": {...}, "study": {...} | None,
        "unprotected": {...}}`;
        infinity is the string "inf". A failed row has null for its statement and its cost.
        `unprotected` names the figures of a row that no guarantee covers, and says why.
    """
    return {
        "schema": SCHEMA,
        "rows": [_plain_row(row) for row in comparison.rows],
        "card": to_plain(comparison.card),
        "study": to_plain(comparison.study),
        "unprotected": unprotected(
            [row.statement for row in comparison.rows], [row.history for row in comparison.rows]
        ),
    }


def _plain_row(row: Row) -> dict[str, Any]:
    """A row as plain values. How long attacks took stands apart from what they found."""
    took = {_named(one): one.seconds for one in row.leakage if one.seconds is not None}
    plain: dict[str, Any] = to_plain(row)
    return {**plain, "attack_seconds": took} if took else plain


def _named(leakage: Leakage) -> str:
    return f"{leakage.attack}/{leakage.observer}"


def load(folder: str | os.PathLike[str]) -> Comparison:
    """Reads a comparison back.

    Args:
        folder: Where `save` wrote it, or the JSON file itself.

    Returns:
        The comparison, with "inf" as infinity again.

    Raises:
        DataError: If there is none, or if the file is damaged or of another version.
    """
    path = Path(folder)
    path = path / JSON_NAME if path.is_dir() else path
    try:
        return read_comparison(read_plain(path))
    except FileNotFoundError as error:
        if (Path(folder) / RESULT_NAME).exists():
            raise DataError(
                f"The folder={str(folder)!r} holds the result of a fit and no comparison. Read its "
                f"model with pt.load_model; the figures stand in {RESULT_NAME}."
            ) from error
        raise DataError(
            f"There is no {JSON_NAME} in folder={str(folder)!r}. Give the folder that a "
            "comparison was saved to with --out."
        ) from error
    except DataError:
        raise
    # Whatever a file of another shape runs into while it is read.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is not a comparison as this version of privtrain writes it "
            f"({type(error).__name__}: {error}). Repeat the comparison, or use the version that "
            "wrote the file."
        ) from error


def read_plain(path: Path) -> dict[str, Any]:
    """The values in a file that `save` wrote, of this schema or an older one.

    Raises:
        DataError: If it cannot be read, or a newer version wrote it.
        FileNotFoundError: If there is none.
        ValueError: If it is no JSON.
        TypeError: If it holds something else than a comparison.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    if not isinstance(plain, dict):
        raise TypeError(f"it holds a {type(plain).__name__}")
    checked_schema(plain.get("schema"), path)
    return plain


def read_comparison(plain: Mapping[str, Any]) -> Comparison:
    """The comparison that plain values stand for; the inverse of `plain_comparison`.

    Args:
        plain: What `plain_comparison` gave, also after a way through JSON.

    Returns:
        The comparison; it knows how to print itself.
    """
    return Comparison(
        rows=tuple(_row(row) for row in plain["rows"]),
        card=plain["card"],
        study=plain.get("study"),
        # Older files lack it.
        # Renderers are not in the file (decision 009).
        as_text=comparison_text,
        as_html=comparison_fragment,
        as_records=records,
    )


def _number(value: Any) -> Any:
    """A number as it was; "inf", "-inf" and "nan" become numbers again."""
    return float(value) if isinstance(value, str) else value


def _pair(value: Any) -> tuple[float, float]:
    return (_number(value[0]), _number(value[1]))


def _row(plain: Mapping[str, Any]) -> Row:
    # Older files lack it.
    plain, took = dict(plain), plain.get("attack_seconds", {})
    plain.pop("attack_seconds", None)
    interval, history = plain["accuracy_interval"], plain["history"]
    changed = {
        "epsilon_asked": _number(plain["epsilon_asked"]),
        "accuracy": _number(plain["accuracy"]),
        "accuracy_interval": None if interval is None else _pair(interval),
        "statement": None if plain["statement"] is None else read_statement(plain["statement"]),
        "cost": None if plain["cost"] is None else read_cost(plain["cost"]),
        "leakage": tuple(
            replace(one, seconds=_number(took.get(_named(one))))
            for one in map(_leakage, plain["leakage"])
        ),
        "history": None if history is None else read_history(history),
        "notes": tuple(plain["notes"]),
        "accuracy_failure": _failure(plain.get("accuracy_failure")),
        # Older files have the accuracy alone.
        "metrics": {name: _measurement(one) for name, one in plain.get("metrics", {}).items()},
    }
    # All fields of the file are passed on: one that this version does not know is an error and not
    # silently lost.
    return Row(**{**plain, **changed})


def read_statement(plain: Mapping[str, Any]) -> PrivacyStatement:
    """The statement that plain values stand for; the inverse of `PrivacyStatement.to_json`."""
    return PrivacyStatement(
        guarantees=tuple(_guarantee(guarantee) for guarantee in plain["guarantees"]),
        input_privacy=tuple(_reader(entry) for entry in plain["input_privacy"]),
        caveats=tuple(plain["caveats"]),
        # Older files may lack the curves, or in them the field "promised", and exact figures.
        curves=tuple(_curves(entry) for entry in plain.get("curves", ())),
        exact=tuple(_exact_cost(entry) for entry in plain.get("exact", ())),
    )


def _reader(plain: Mapping[str, Any]) -> InputPrivacy:
    changed = {
        "adversary": Adversary(plain.get("adversary", Adversary.TRUSTED)),
        "security": Security(plain.get("security", Security.NONE)),
    }
    return InputPrivacy(**{**plain, **changed})


def _curves(plain: Mapping[str, Any]) -> PrivacyCurves:
    changed = {
        "observer": Observer(plain["observer"]),
        "unit": Unit(plain["unit"]),
        "relation": Relation(plain["relation"]),
        "epsilon_by_delta": tuple(_pair(point) for point in plain["epsilon_by_delta"]),
        "trade_off": tuple(_pair(point) for point in plain["trade_off"]),
        "mu": _number(plain["mu"]),
        "promised": tuple(_pair(point) for point in plain.get("promised", ())),
    }
    return PrivacyCurves(**{**plain, **changed})


def _guarantee(plain: Mapping[str, Any]) -> Guarantee:
    changed = {
        "observer": Observer(plain["observer"]),
        "unit": Unit(plain["unit"]),
        "relation": Relation(plain["relation"]),
        "epsilon": _number(plain["epsilon"]),
        "cross_check": _number(plain["cross_check"]),
        "assumptions": tuple(plain["assumptions"]),
    }
    return Guarantee(**{**plain, **changed})


def _exact_cost(plain: Mapping[str, Any]) -> ExactCost:
    changed = {
        "observer": Observer(plain["observer"]),
        "unit": Unit(plain["unit"]),
        "relation": Relation(plain["relation"]),
        "epsilon": _number(plain["epsilon"]),
    }
    return ExactCost(**{**plain, **changed})


def read_cost(plain: Mapping[str, Any]) -> Cost:
    """The cost that plain values stand for; the inverse of `to_plain`."""
    # Older files lack the basis: all they hold was counted.
    basis = Basis(plain.get("basis", Basis.MEASURED))
    changed = {name: _number(plain.get(name)) for name in ("seconds", "cpu_seconds")}
    return Cost(**{**plain, **changed, "basis": basis})


def _leakage(plain: Mapping[str, Any]) -> Leakage:
    changed = {
        "metrics": {name: _number(value) for name, value in plain["metrics"].items()},
        "intervals": {name: _pair(value) for name, value in plain["intervals"].items()},
        "notes": tuple(plain["notes"]),
        "failure": _failure(plain.get("failure")),
        # Older files lack what follows.
        "unit": Unit(plain["unit"]) if "unit" in plain else None,
        "relation": Relation(plain["relation"]) if "relation" in plain else None,
        "roc": tuple(_pair(point) for point in plain.get("roc", ())),
    }
    return Leakage(**{**plain, **changed})


def _measurement(plain: Mapping[str, Any]) -> Measurement:
    interval = plain["interval"]
    changed = {
        "interval": None if interval is None else _pair(interval),
        "failure": _failure(plain["failure"]),
    }
    return Measurement(**{**plain, **changed})


def _failure(plain: Mapping[str, Any] | None) -> Failure | None:
    # Older files lack them: what failed there failed as a whole.
    if plain is None:
        return None
    reason = Reason(plain["reason"]) if "reason" in plain else None
    return Failure(**{**plain, "reason": reason})


def read_history(plain: Mapping[str, Any]) -> History:
    """The history that plain values stand for; the inverse of `to_plain`."""
    return History(
        unprotected={name: _curve(curve) for name, curve in plain["unprotected"].items()},
        epsilon=_curve(plain["epsilon"]),
        # Older files have none.
        votes=None if plain.get("votes") is None else _votes(plain["votes"]),
    )


def _votes(plain: Mapping[str, Any]) -> VotesSeen:
    changed = {
        "top_shares": tuple(plain["top_shares"]),
        "epsilon": tuple((point[0], _number(point[1])) for point in plain["epsilon"]),
    }
    return VotesSeen(**{**plain, **changed})


def _curve(plain: list[Any]) -> Curve:
    return [(point[0], _number(point[1])) for point in plain]
