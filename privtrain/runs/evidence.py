"""Evidence of a run: what a later audit needs, in a private folder. Never publish it.

It tells who was a member, and what every party sent. Nothing in it is run, imported or unpickled.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privtrain.core.abilities import trained_task
from privtrain.core.errors import DataError, NotApplicableError, Reason, UnsupportedError
from privtrain.core.identity import Snapshot
from privtrain.core.keys import PRIVATE, has_key, home_of_key
from privtrain.core.parameters import ModelPredictor
from privtrain.core.payloads import Filed, TensorFile
from privtrain.core.result import Members, Predictor, TrainResult
from privtrain.core.schema import SCHEMA, checked_schema
from privtrain.core.seeding import SEEDED
from privtrain.core.statement import to_json_text
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer
from privtrain.core.transcript import Entry, Setup, Transcript
from privtrain.core.writing import explained, fill, new_folder
from privtrain.report.files import read_cost, read_history, read_statement
from privtrain.runs.checkpoint import Identity
from privtrain.runs.keeping import INSIDE, MODEL, load_model, save_model
from privtrain.runs.marks import identity_of

EVIDENCE = "evidence"
"""The folder of the evidence in that of a row."""

INDEX, ABOUT, RECORD, PAYLOADS = "evidence.json", "about.json", "record.pt", "payloads.bin"
"""Its files: digests of the others and of what it belongs to; statement, cost and history;
headers of messages and who was a member; tensors of messages, one behind the other."""

_WAY_OUT = "Bring back the file as it was, or repeat the comparison with keep_for_audit=True."


@dataclass(frozen=True)
class Unkept:
    """Stands for a predictor that is no torch model.

    Args:
        why: Why it was not kept.
    """

    why: str

    def __call__(self, inputs: Tensor) -> Tensor:
        raise NotApplicableError(
            f"The predictor was not kept: {self.why} Use an attack that reads messages, or audit "
            "it within compare.",
            Reason.NOT_KEPT,
        )


def keep_evidence(
    result: TrainResult,
    folder: str | os.PathLike[str],
    task: Task,
    data: FederatedData,
    *,
    earlier: Snapshot | None = None,
    everything: bool = False,
) -> Path:
    """Writes what a later audit of a run needs; see `kept_evidence`.

    These are the predictor, the statement with its curves, cost and history, the headers of all
    messages and the tensors of those that the run kept, and which rows it used. Rows and canaries
    are not written: who audits brings the same data. The folder is readable by its owner alone,
    and written as a whole or not at all; evidence that is there is replaced.

    Args:
        result: What `fit` returned.
        folder: Where to; new, or with evidence in it.
        task: What was learned.
        data: The rows that were trained on; a keyed digest of them is written.
        earlier: What of trainer and task counts as it was before the run.
        everything: Whether the run kept the messages of everybody; see `is_kept`.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds something else, or cannot be written.
        PrivtrainError: If the disk is full.
    """
    where = Path(folder)
    names = (INDEX, ABOUT, RECORD, PAYLOADS, INSIDE, PRIVATE)
    with new_folder(where, ours=names, force=True, mode=0o700) as fresh:
        unkept = None
        try:
            # Of the rows, only what the evidence itself says.
            save_model(replace(result, card={}), fresh / INSIDE)
        except UnsupportedError as error:
            unkept = str(error)
        predictor = result.predictor
        about = {
            "statement": result.statement,
            "cost": result.cost,
            "history": result.history,
            "halted": result.halted,
            "notes": result.notes,
            "unkept": unkept,
            "buffers_released": isinstance(predictor, ModelPredictor)
            and predictor.buffers_released,
        }
        fill(fresh, ABOUT, f"{to_json_text(about)}\n")
        places = _write_payloads(fresh / PAYLOADS, result.transcript)
        fill(fresh, RECORD, _record(result, places))
        identity = _identity(result.trainer, task, data, earlier)
        # Under the key of the comparison, where there is one: so that there is one secret to keep.
        key = where.parent if has_key(home_of_key(where.parent)) else fresh
        index = {
            "schema": SCHEMA,
            "kind": "evidence",
            "everything": everything,
            "of": {n: identity.written(f"{n} {d}", key) for n, d in identity.parts.items()},
            "sha256": {name: _digest(fresh / name) for name in _parts(model=unkept is None)},
        }
        fill(fresh, INDEX, f"{to_json_text(index)}\n")
    return where


def is_kept(folder: Path, *, everything: bool) -> bool:
    """Whether a folder has evidence.

    Args:
        folder: Where `keep_evidence` would have written it.
        everything: Whether it has to be of a run that kept the messages of everybody.

    Raises:
        DataError: If its index is torn or was changed.
    """
    path = folder / INDEX
    if not path.exists() or not everything:
        return path.exists()
    return _json(path.read_bytes(), path).get("everything") is True


def kept_evidence(
    folder: str | os.PathLike[str],
    trainer: Trainer | None,
    task: Task,
    data: FederatedData,
    *,
    device: str = "cpu",
) -> TrainResult:
    """Reads a run back: `audit` finds of it what it found when the run had ended.

    Who could write to the folder could write other evidence into it, with digests that fit: trust
    it as far as you trust them.

    Args:
        folder: Where `keep_evidence` wrote it.
        trainer: What trained it, as it was given then; None where it was trained elsewhere.
        task: What was learned.
        data: The rows that were trained on.
        device: Where the predictor is to lie.

    Returns:
        The result, without its card. Tensors of messages are read when an attack asks for them.

    Raises:
        NotApplicableError: If nothing was kept.
        DataError: If a file is torn or was changed, or the run had another trainer, task or data.
    """
    where = Path(folder)
    if not (where / INDEX).exists():
        raise NotApplicableError(
            f"The run was not kept for audits: there is no {INDEX} in {where}. Repeat with "
            "compare(..., folder=..., keep_for_audit=True).",
            Reason.NOT_KEPT,
        )
    index = _json((where / INDEX).read_bytes(), where / INDEX)
    checked_schema(index.get("schema"), where / INDEX)
    try:
        of, digests = dict(index["of"]), dict(index["sha256"])
        _check_same(of, _identity(trainer, task, data, None), where)
        for name in _parts(model=f"{INSIDE}/{MODEL}" in digests):
            if _digest(where / name) != digests[name]:
                raise DataError(
                    f"{where / name} is torn or was changed: its SHA-256 is not the one in "
                    f"{INDEX}. {_WAY_OUT}"
                )
        about = _json((where / ABOUT).read_bytes(), where / ABOUT)
        record = torch.load(where / RECORD, weights_only=True)
        return TrainResult(
            predictor=_predictor(where, about, trainer, task, device),
            statement=read_statement(about["statement"]),
            cost=read_cost(about["cost"]),
            history=read_history(about["history"]),
            transcript=_transcript(record, where / PAYLOADS, device),
            halted=about["halted"],
            notes=tuple(about["notes"]),
            members=None if record["members"] is None else Members(**record["members"]),
            trainer=trainer,
        )
    except (NotApplicableError, DataError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing. {_WAY_OUT}") from error
    # Whatever a file of another shape runs into while it is read.
    except Exception as error:
        raise DataError(
            f"The evidence in {where} is not as privtrain writes it ({type(error).__name__}: "
            f"{error}). {_WAY_OUT}"
        ) from error


def _parts(*, model: bool) -> tuple[str, ...]:
    # The model's own index has the digests of its files.
    return (ABOUT, RECORD, PAYLOADS, *((f"{INSIDE}/{MODEL}",) if model else ()))


def _identity(
    trainer: Trainer | None, task: Task, data: FederatedData, earlier: Snapshot | None
) -> Identity:
    """What a run and its audit share: what was trained how on which rows."""
    given = None if trainer is None else (trainer.token, trainer)
    whole = identity_of(task, data, SEEDED, earlier=earlier, trainer=given)
    # Where its noise came from is no matter any more.
    parts = {name: digest for name, digest in whole.parts.items() if name != "entropy"}
    return replace(whole, parts=parts)


def _check_same(of: Mapping[str, str], identity: Identity, where: Path) -> None:
    key = where if has_key(where) else where.parent
    if not identity.can_be_told(key):
        raise DataError(
            f"The key of the evidence in {where} is gone, without which nobody can tell which rows "
            "it belongs to. Bring the key back, or repeat the comparison."
        )
    mine = {n: identity.written(f"{n} {d}", key) for n, d in identity.parts.items()}
    other = sorted(name for name in {*mine, *of} if mine.get(name) != of.get(name))
    if other:
        raise DataError(
            f"The evidence in {where} belongs to another run: other {', '.join(other)}. Audit with "
            "the trainer, task and data of that run; an object that keeps a count of its calls is "
            "another one once it was used, and so is code under another version of Python."
        )


def _write_payloads(path: Path, transcript: Transcript) -> list[tuple[Any, ...] | None]:
    """Writes the kept tensors, one at a time; where each lies, or None, for each message."""
    places: list[tuple[Any, ...] | None] = []
    with explained(path.parent.parent), path.open("wb") as file:
        tensors = TensorFile(file)
        for entry in transcript.entries:
            payload = entry.payload
            if payload is None:
                places.append(None)
                continue
            filed = tensors.add(payload)
            places.append((filed.start, filed.shape, filed.dtype, filed.device == "cpu"))
        os.fsync(file.fileno())
    return places


def _record(result: TrainResult, places: list[tuple[Any, ...] | None]) -> bytes:
    transcript, members = result.transcript, result.members
    document = {
        "entries": [
            (e.sender, e.receiver, e.kind, e.shape, e.bytes, e.round, place)
            for e, place in zip(transcript.entries, places, strict=True)
        ],
        "setups": [(s.party, s.what) for s in transcript.setups],
        "exchanges": transcript.exchanges,
        "others": transcript.others,
        "keep_payloads": transcript.keep_payloads,
        "members": None if members is None else vars(members),
    }
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def _transcript(record: Mapping[str, Any], path: Path, device: str) -> Transcript:
    with path.open("rb") as named:
        # By its number alone: with its path, an attack would reach the folder.
        file = TensorFile(os.fdopen(os.dup(named.fileno()), "rb"))
    entries = []
    for sender, receiver, kind, shape, size, round, place in record["entries"]:
        kept = None
        if place is not None:
            start, whole, dtype, on_cpu = place
            kept = Filed(file, start, tuple(whole), dtype, "cpu" if on_cpu else device)
        entries.append(Entry(sender, receiver, kind, tuple(shape), size, round, kept))
    return Transcript(
        keep_payloads=record["keep_payloads"],
        entries=entries,
        setups=[Setup(*setup) for setup in record["setups"]],
        exchanges=record["exchanges"],
        others=tuple(record["others"]),
    )


def _predictor(
    where: Path, about: Mapping[str, Any], trainer: Trainer | None, task: Task, device: str
) -> Predictor:
    if about["unkept"] is not None:
        return Unkept(about["unkept"])
    model = trained_task(trainer, task).model
    module = load_model(where / INSIDE, model=model, device=device).module
    return ModelPredictor(module, buffers_released=about["buffers_released"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(content)
        if not isinstance(plain, dict):
            raise TypeError(f"it holds a {type(plain).__name__}")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is torn or was changed ({type(error).__name__}: {error}). {_WAY_OUT}"
        ) from error
    return plain
