"""The page that lies beside a model: what is promised, how it was trained, how it is used."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from privtrain.core.recipe import Column, Encoder
from privtrain.core.result import TrainResult
from privtrain.core.rounding import printed_up
from privtrain.core.statement import SIMULATED, STATED, Guarantee

_USE = """```python
import privtrain as pt

model = pt.load_model("FOLDER"{further})
{how}
```
"""


def model_card(result: TrainResult, measured: Mapping[str, str] | None = None) -> str:
    """A model card in Markdown.

    Args:
        result: What `fit` returned.
        measured: Metric to value, as text, where it was measured.

    Returns:
        The page. What a user named, such as a column, is escaped.
    """
    card, recipe = result.card, result.recipe
    configuration = card.get("configuration", {})
    name = card.get("data", {}).get("name", "")
    trained = next(iter(configuration.get("trainers", {}).values()), "")
    title = f"# A model trained on {_escaped(name)}" if name else "# A trained model"
    parts = [
        title,
        *_promised(result),
        *_section("What the figures rest on", _unique(result.statement.guarantees)),
        *_section("Who reads what while it is trained", map(str, result.statement.input_privacy)),
        *_section("What the figures leave out", result.statement.caveats),
        *_section("Notes", [*([result.halted] if result.halted else []), *result.notes]),
        *_measured(measured),
        "## How it was trained",
        *_list(_training(card, trained)),
        *([] if recipe is None else _inputs(recipe.encoder)),
        "## Use",
        _use(result),
        "The folder holds no code, and none in it is run. Everything in full: `statement.json` and "
        "`card.json`.",
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _promised(result: TrainResult) -> Iterator[str]:
    yield "## What is promised"
    made = result.statement.guarantees
    if not made:
        yield "Nothing."
        return
    header = ("Observer", "Unit", "Relation", "Epsilon", "Delta", "Computed by")
    yield _table(header, [_row(guarantee) for guarantee in made])
    if any(SIMULATED in guarantee.assumptions for guarantee in made):
        yield (
            "**Simulated.** The noise follows from the public seed below, so that these figures "
            "protect from nobody who reads this page. Train with `entropy=pt.SYSTEM` to publish."
        )
    if all(math.isinf(guarantee.epsilon) for guarantee in made):
        yield "An epsilon of inf promises nothing: who has the model may learn about single rows."


def _row(guarantee: Guarantee) -> tuple[str, ...]:
    epsilon, delta = printed_up(guarantee.epsilon), printed_up(guarantee.delta, 6)
    # Computed from private votes without noise: on a page that is published it would be a release.
    epsilon = "data-dependent: not shown" if guarantee.data_dependent else epsilon
    by = f"nobody here: {STATED}" if guarantee.stated else guarantee.accountant
    relation = guarantee.relation.replace("_", "-")
    return str(guarantee.observer), guarantee.unit, relation, epsilon, delta, by


def _unique(guarantees: Iterable[Guarantee]) -> list[str]:
    return list(dict.fromkeys(text for g in guarantees for text in g.rests_on))


def _measured(measured: Mapping[str, str] | None) -> Iterator[str]:
    if measured:
        yield "## How good it is"
        yield "On test rows, which no guarantee covers:"
        yield from _list(f"{name}: {value}" for name, value in measured.items())


def _training(card: Mapping[str, Any], trained: str) -> Iterator[str]:
    configuration = card.get("configuration", {})
    yield f"by {trained}" if trained else "elsewhere"
    for name in ("model", "entropy", "delta", "device"):
        if configuration.get(name) not in (None, ""):
            yield f"{name}: {configuration[name]}"
    if "public_seeds" in card:
        yield f"public seed: {', '.join(map(str, card['public_seeds']))}"
    for name, value in card.get("data", {}).items():
        yield f"data, {name.replace('_', ' ')}: {value}"
    versions = card.get("versions", {})
    named = ", ".join(f"{n} {v}" for n, v in versions.items() if v != "not installed")
    if named:
        yield f"versions: {named}"
    if "date" in card:
        yield f"on {card['date']}"


def _inputs(encoder: Encoder) -> Iterator[str]:
    yield "## Its inputs"
    yield f"Rows of shape {encoder.shape}, type {encoder.dtype}."
    if encoder.columns is not None:
        yield _table(("Column", "Values"), [(c.name, _values(c)) for c in encoder.columns])
    elif encoder.scale is not None:
        yield "Values are clamped to the public constants in `model.json` and mapped to [0, 1]."
    if encoder.classes is not None:
        yield f"Classes, by their numbers from 0: {_escaped(', '.join(encoder.classes))}."
    if encoder.read:
        yield (
            f"Read from the rows, and not stated: {_escaped(', '.join(encoder.read))}. Whoever has "
            "this folder has them, and every guarantee assumes that they are public knowledge."
        )


def _values(column: Column) -> str:
    said = "numbers"
    if column.words is not None:
        said = f"one of {', '.join(map(repr, column.words))}"
    elif column.range is not None:
        said = f"numbers, clamped to {column.range[0]:g} to {column.range[1]:g}"
    if column.indicator:
        return f"{said}; a further column says where it is missing"
    return said if column.stand_in is None else f"{said}; {column.stand_in!r} where it is missing"


def _use(result: TrainResult) -> str:
    recipe = result.recipe
    named = recipe is not None and "name" in recipe.factory
    how = 'model.predict("new.csv")' if recipe and recipe.encoder.columns else "model(inputs)"
    return _USE.format(further="" if named else ", model=WHAT_MADE_IT", how=how)


def _section(title: str, texts: Iterable[str]) -> list[str]:
    items = list(texts)
    return [f"## {title}", *_list(items)] if items else []


def _list(texts: Iterable[str]) -> list[str]:
    return ["\n".join(f"- {_escaped(text)}" for text in texts)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: object) -> str:
    """A text on one line in which nothing is markup."""
    line = " ".join(str(text).split()).replace("\\", "\\\\").replace("&", "&amp;")
    for mark in "<>":
        line = line.replace(mark, {"<": "&lt;", ">": "&gt;"}[mark])
    for mark in "`*_[]#":
        line = line.replace(mark, f"\\{mark}")
    return line
