"""Models on disk: weights, how they are made and asked, and what is promised of them.

A folder of another's may hold anything: nothing in it is run, imported or unpickled.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core import shown
from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.models import Model, made_anew
from privtrain.core.parameters import ModelPredictor
from privtrain.core.recipe import Encoder
from privtrain.core.result import Predictor, TrainResult
from privtrain.core.schema import SCHEMA, checked_schema
from privtrain.core.seeding import Seeds, Stream
from privtrain.core.statement import PrivacyStatement, to_json_text
from privtrain.core.writing import fill, new_folder
from privtrain.data.encoding import encode, encoder_from_plain, encoder_to_plain
from privtrain.data.factories import factory_from_plain
from privtrain.report.files import read_statement
from privtrain.report.publishing import unprotected
from privtrain.runs.asking import asked
from privtrain.runs.evaluating import Evaluation
from privtrain.runs.model_card import model_card
from privtrain.runs.weights import check_weights, load_weights, read_weights, weights_of

MODEL, WEIGHTS, STATEMENT, CARD, README = (
    *("model.json", "model.safetensors", "statement.json", "card.json"),
    "model_card.md",
)
"""The files of a model: how it is made and asked, weights, statement, run card, and for readers."""

FILES = (MODEL, WEIGHTS, STATEMENT, CARD, README)

INSIDE = "model"
"""The folder of the model in that of a run."""

_LARGEST = 64 * 2**20
_INITIAL = ("initialisation", 0, "")


def save_model(
    result: TrainResult,
    folder: str | os.PathLike[str],
    *,
    evaluation: Evaluation | None = None,
    force: bool = False,
) -> Path:
    """Writes a trained model with all that is needed to use it and to judge it.

    The folder holds `model.safetensors` (parameters and buffers), `model.json` (what made the
    model, its inputs, digests of the other files), `statement.json`, `card.json` (settings, seed,
    versions) and `model_card.md`. It is written as a whole or not at all, and may be published:
    it holds no row, no diagnostic and no key.

    Args:
        result: What `fit` returned.
        folder: Where to; new or empty.
        evaluation: What `evaluate` measured, for the model card.
        force: Whether to replace a model that is already there.

    Returns:
        The folder.

    Raises:
        UnsupportedError: If the predictor is no torch model, or has tensors that cannot be kept.
        DataError: If the folder holds something else, or cannot be written.
        PrivtrainError: If the disk is full.
    """
    where = Path(folder)
    files = model_files(result, evaluation)
    with new_folder(where, ours=FILES, force=force) as fresh:
        for name, content in files.items():
            fill(fresh, name, content)
    return where


def model_files(result: TrainResult, evaluation: Evaluation | None = None) -> dict[str, bytes]:
    """The files of a model, by name; see `save_model`."""
    if not isinstance(result, TrainResult):
        raise ValueError(f"Expected result={result!r:.80} to be what pt.fit returned.")
    module = _module_of(result.predictor)
    weights, table = weights_of(module)
    statement = {
        "schema": SCHEMA,
        "statement": result.statement,
        "halted": result.halted,
        "notes": result.notes,
        "unprotected": {
            name: why
            for name, why in unprotected([result.statement], []).items()
            if name in ("statement.guarantees", "statement.exact")
        },
    }
    files = {
        WEIGHTS: weights,
        STATEMENT: f"{to_json_text(statement)}\n".encode(),
        CARD: f"{to_json_text(result.card)}\n".encode(),
    }
    recipe = result.recipe
    kind = type(module)
    printed = {"printed": f"a module given as a value: {kind.__module__}:{kind.__qualname__}"}
    about = {
        "schema": SCHEMA,
        "kind": "model",
        "factory": printed if recipe is None else recipe.factory,
        "seed": 0 if recipe is None else recipe.seed,
        "tensors": table,
        "inputs": None if recipe is None else encoder_to_plain(recipe.encoder),
        "sha256": {name: _digest(content) for name, content in files.items()},
    }
    text = model_card(result, None if evaluation is None else dict(evaluation.shown()))
    return {
        **files,
        MODEL: f"{to_json_text(about)}\n".encode(),
        README: text.encode("utf-8", "backslashreplace"),
    }


def _module_of(predictor: Predictor) -> nn.Module:
    module = predictor
    if isinstance(predictor, (ModelPredictor, KeptModel)):
        module = predictor.module
    if not isinstance(module, nn.Module):
        raise UnsupportedError(
            f"The predictor is a {type(predictor).__qualname__}, which is no torch model: its "
            "values cannot be kept as tensors by name. Keep it in a way of your own; "
            "pt.save(result, folder) writes all the rest."
        )
    return module


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class UnmadeModelError(DataError):
    """A folder that cannot hold what makes its model was read without it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptModel:
    """A model that was read from a folder, as a predictor.

    Args:
        module: The model.
        statement: What is promised, as the folder says it.
        card: How it was trained, as the folder says it.
        encoder: How its inputs were made; None where nobody knew.
        notes: What the reader should know.
    """

    module: nn.Module = field(repr=False)
    statement: PrivacyStatement
    card: Mapping[str, Any] = field(repr=False)
    encoder: Encoder | None = field(repr=False)
    notes: tuple[str, ...] = ()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs for inputs as the model was trained on them; see `encode` for others.

        Args:
            inputs: Shape `(rows, ...)`.

        Returns:
            Logits `(rows, classes)`, or whatever the model returns.
        """
        return ModelPredictor(self.module)(inputs)

    def encode(self, rows: Any) -> Tensor:
        """New rows as inputs: a .csv file or a frame with columns by name, an .npz file, an array.

        Args:
            rows: Values as they are in the world, not scaled; see `data.encoding.encode`.

        Returns:
            Shape `(rows, ...)`.

        Raises:
            DataError: If a column, a value or a word is not as the model knows it.
        """
        if self.encoder is None:
            raise DataError(
                "Nobody knows how the inputs of this model were made. Call it on tensors."
            )
        return encode(self.encoder, rows)

    def predict(self, rows: Any) -> list[str]:
        """The class of each new row, by its name or number.

        Args:
            rows: As for `encode`.

        Returns:
            A text for each row.

        Raises:
            DataError: If the rows cannot be encoded or put through the model, or it does not tell
                classes apart.
        """
        outputs = asked(self.module, self.encode(rows))
        if not self.tells_classes(outputs):
            raise DataError(
                f"The model tells no classes apart: of these rows it says values of shape "
                f"{tuple(outputs.shape)}. Call it, as model(model.encode(rows))."
            )
        return classes_of(outputs, self.encoder)

    def tells_classes(self, outputs: Tensor) -> bool:
        """Whether outputs `(rows, ...)` are those of classes: named ones, or two and no values."""
        if self.encoder is not None and self.encoder.classes is not None:
            return True
        values = self.encoder is not None and self.encoder.values
        return outputs.ndim == 2 and outputs.shape[1] > 1 and not values

    def __repr__(self) -> str:
        promised = shown.first((g.claim for g in self.statement.guarantees), 2)
        return shown.lines(
            f"KeptModel of {type(self.module).__name__}",
            promised=f"{promised or 'nothing'} (as the folder says)",
            inputs="" if self.encoder is None else f"shape {self.encoder.shape}",
        )


def classes_of(outputs: Tensor, encoder: Encoder | None) -> list[str]:
    """The name or number of the class that each row of outputs says.

    Args:
        outputs: Logits, shape `(rows, classes)`; or one logit a row, which says class 1 where it
            is above zero.
        encoder: Knows the names.

    Raises:
        DataError: If there are not as many outputs as classes.
    """
    names = None if encoder is None else encoder.classes
    single = outputs.numel() == len(outputs)
    count = 2 if single else outputs.shape[1]
    if outputs.ndim > 2 or (names is not None and len(names) != count):
        raise DataError(
            f"The outputs of shape {tuple(outputs.shape)} name no class of "
            f"{'unknown number' if names is None else len(names)}. Call the model for its outputs."
        )
    numbers = (outputs.reshape(-1) > 0).long() if single else outputs.argmax(dim=1)
    return [str(n) if names is None else names[n] for n in numbers.tolist()]


def load_model(
    folder: str | os.PathLike[str], *, model: Model | None = None, device: str = "cpu"
) -> KeptModel:
    """Reads a model that `save_model` wrote, and checks all of it.

    Nothing in the folder is run: weights are plain numbers, and the only factories that a file may
    name are those of `pt.data`. Who could write to the folder could write another model and another
    statement into it, with digests that fit: trust it as far as you trust them.

    Args:
        folder: The folder of a model, or of a run with one in `model/`.
        model: What made the model, a function or a module, where a file cannot say it.
        device: Where the model is to lie.

    Returns:
        The model as a predictor, which answers as the trained one did.

    Raises:
        DataError: If there is no model, a file is torn or was changed, or `model` is another one.
    """
    where = _place(Path(folder))
    path = where / MODEL
    about = _json(path)
    checked_schema(about.get("schema"), path)
    try:
        digests = about["sha256"]
        contents = {name: _checked(where / name, digests[name]) for name in _DIGESTED}
        factory = factory_from_plain(about["factory"])
        encoder = None if about["inputs"] is None else encoder_from_plain(about["inputs"])
        tensors = read_weights(contents[WEIGHTS], about["tensors"])
        seed, printed = about["seed"], about["factory"].get("printed")
        said = json.loads(contents[STATEMENT])
        statement, notes = read_statement(said["statement"]), tuple(map(str, said["notes"]))
        card = dict(json.loads(contents[CARD]))
        # From the same stream as then: what is neither parameter nor buffer has its values, too.
        made = Seeds(seed)[_INITIAL]
        str(statement)  # now, and not when somebody prints it
    except DataError:
        raise
    # Whatever a file of another shape runs into while it is read.
    except _OF_OTHER_SHAPES as error:
        raise DataError(
            f"{path} or a file beside it is not as privtrain writes it ({type(error).__name__}: "
            f"{error}). Save the model again."
        ) from error
    if model is not None:
        module = made_anew(model, made)
        check_weights(module, tensors, "model=")
    elif factory is not None:
        module = _made(factory, made, tensors, f"the factory in {path}")
    else:
        raise UnmadeModelError(
            f"The model in {where} was made by {printed}, which no file can hold. Give what makes "
            "it: load_model(folder, model=...), or privtrain predict --made-by FILE.py:make."
        )
    load_weights(module, tensors, str(where))
    return KeptModel(
        module=module.eval().to(device),
        statement=statement,
        card=card,
        encoder=encoder,
        notes=notes,
    )


_DIGESTED = (WEIGHTS, STATEMENT, CARD)
_OF_OTHER_SHAPES = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RecursionError, OverflowError, MemoryError, RuntimeError),
)


def _made(
    factory: Callable[[], nn.Module], stream: Stream, tensors: Mapping[str, Tensor], what: str
) -> nn.Module:
    # Without memory first: a file may ask for a model of any size.
    with torch.device("meta"):
        check_weights(factory(), tensors, what)
    return made_anew(factory, stream)


def _place(folder: Path) -> Path:
    for place in (folder, folder / INSIDE):
        if (place / MODEL).is_file():
            return place
    raise DataError(
        f"There is no model in folder={str(folder)!r}: no {MODEL}. Give a folder that "
        "pt.save_model, pt.save or privtrain fit wrote."
    )


def _bytes(path: Path) -> bytes:
    """The contents of a plain file: no link, no pipe, nothing outside of the folder."""
    try:
        # Neither `is_file`, which follows links, nor `open`, which waits at a pipe.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise DataError(f"Expected {path} to be a plain file; it is a link or something else.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: the model is torn. Save it again.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error


def _checked(path: Path, digest: object) -> bytes:
    content = _bytes(path)
    if _digest(content) != digest:
        raise DataError(
            f"{path} is torn or was changed: its SHA-256 is not the one in {MODEL}. Save the model "
            "again, or bring back the file as it was."
        )
    return content


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.lstat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        plain = json.loads(_bytes(path))
        if not isinstance(plain, dict):
            raise TypeError(f"it holds a {type(plain).__name__}")
    except DataError:
        raise
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise DataError(
            f"{path} is torn or was changed ({type(error).__name__}: {error}). Save the model "
            "again, or bring back the file as it was."
        ) from error
    return plain
