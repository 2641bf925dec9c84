"""The root of a simulation's noise: no two fits share noise, whatever else they share.

Where two fits of one seed drew the same normals, a statistic of both results would hold no noise.
"""

import hashlib
import os

import torch
from torch import Tensor, nn

from privtrain.core.identity import value_digest
from privtrain.core.task import FederatedData, Task
from privtrain.core.trainer import Trainer
from privtrain.runs.checkpoint import LOADED_BEFOREHAND


def noise_root(trainer: Trainer, task: Task, data: FederatedData, model: nn.Module) -> bytes:
    """What the streams of a seeded fit start from, beside the seed.

    A value that cannot be read without loading it all, such as very many parties without a digest,
    counts as one of its kind: two fits on it share nothing, and none can be repeated.

    Args:
        trainer: Its token and its settings by value; an own trainer by its code, too.
        task: Its loss.
        data: All that the parties hold; of very many parties the digest and their names.
        model: The initial model, by its print, its weights and its code.

    Returns:
        32 bytes, the same wherever the code lies and wherever the parties run. Never sent or
        recorded: whoever has it and the seed knows the noise.
    """
    return value_digest(trainer.token, trainer, task.loss, model, rows_digest(data))


def data_digest(data: FederatedData) -> bytes:
    """What identifies everything that a comparison reads: the rows of all parts.

    Args:
        data: Who holds which rows.

    Returns:
        32 bytes.
    """
    parts = (data.test, data.validation, data.public, data.canaries)
    return value_digest(data.name, rows_digest(data), parts)


def rows_digest(data: FederatedData) -> bytes:
    """What identifies the rows that are trained on, whatever digest the data state.

    Args:
        data: Who holds which rows.

    Returns:
        32 bytes.
    """
    known = (data.digest, data.parties, data.split, data.label_holder, data.public_rows)
    state = hashlib.sha256(repr(known).encode())
    if data.public is not None:
        _update(state, data.public.inputs)
    # Rows are the user's to exchange: the digest of a table says nothing of who trains on what.
    if len(data.parties) > LOADED_BEFOREHAND:
        if not data.digest:
            state.update(os.urandom(32))
    else:
        for party in data.parties:
            rows = data.train[party]
            for tensor in (rows.inputs, rows.targets, rows.users):
                _update(state, tensor)
    return state.digest()


def _update(state: "hashlib._Hash", tensor: Tensor | None) -> None:
    if tensor is None:
        state.update(b"none;")
        return
    whole = tensor.detach().cpu().contiguous()
    state.update(f"{tuple(whole.shape)} {whole.dtype};".encode())
    state.update(whole.reshape(-1).view(torch.uint8).numpy().data)
