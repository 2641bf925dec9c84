"""Many federations at the same time: the clients of all of them train side by side."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parameters import load_vector, trainable
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Draws
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.report.progress import Report, silent
from privtrain.sampling.passes import batches
from privtrain.sampling.sampling import Sampling
from privtrain.steps.many import (
    MEMORY,
    OF_INPUTS,
    Models,
    initial_models,
    optimizer_of_all,
    train_together,
)
from privtrain.steps.optimizers import check_not_diverged
from privtrain.steps.plain import PlainSteps

_COPIES = 6
"""How often a client that trains beside others takes its weights."""


def train_federations(
    task: Task,
    data: FederatedData,
    included: Tensor,
    draws: Sequence[Draws],
    rounds: int,
    sampling: Sampling,
    local: PlainSteps,
    progress: Report = silent,
) -> list[nn.Module]:
    """Trains a model of each federation by rounds in which clients' models are averaged.

    Args:
        task: What is learned.
        data: Who holds which rows.
        included: Which of `data.pooled()` are in each federation, boolean, `(federations, rows)`.
        draws: The streams of each.
        rounds: Number of rounds.
        sampling: Which clients take part in a round; drawn by public seeds.
        local: How a client improves the model.
        progress: Called as `progress(done, total)`, in rounds.

    Returns:
        The models after the last round, up to rounding those that each federation has alone.

    Raises:
        UnsupportedError: If a client has no row in a federation, the model keeps statistics or
            draws, or all clients of a federation take too much memory.
        DataError: If training diverged.
    """
    device = draws[0].device
    rows = data.joined().to(device)
    models = initial_models(task, included, draws)
    if any(True for _ in models[0].buffers()):
        raise UnsupportedError("The model has buffers, which are averaged one by one.")
    held = [_numbers_of(data, own) for own in included.to(device)]
    size = sum(p.numel() * p.element_size() for p in models[0].parameters())
    most = max(len(numbers) for own in held for numbers in own)
    batch = min(most, local.batch_size or most)
    size = _COPIES * size + OF_INPUTS * batch * rows.inputs[:1].numel() * rows.inputs.element_size()
    at_once = MEMORY // max(1, size * len(data.parties))
    if at_once == 0:
        raise UnsupportedError(
            f"{len(data.parties)} clients take too much memory at the same time."
        )
    starts = range(0, len(models), at_once)
    for number, start in enumerate(starts):
        part = slice(start, start + at_once)
        own = models[part], held[part], draws[part]
        for round in range(rounds):
            _train_round(task, rows, *own, round, sampling, local, data.parties)
            progress(number * rounds + round + 1, len(starts) * rounds)
    for model in models:
        check_not_diverged(trainable(model), rows.inputs)
    return models


def _numbers_of(data: FederatedData, own: Tensor) -> list[Tensor]:
    """The numbers of the rows of each client in one federation."""
    ends = torch.tensor([len(data.train[name]) for name in data.parties]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    made = [own[a:b].nonzero().flatten() + a for a, b in zip(starts, ends, strict=True)]
    for name, numbers in zip(data.parties, made, strict=True):
        if not len(numbers):
            raise UnsupportedError(f"The client {name!r} has no row of its own in one of them.")
    return made


def _train_round(
    task: Task,
    rows: Rows,
    models: Sequence[nn.Module],
    held: Sequence[list[Tensor]],
    draws: Sequence[Draws],
    round: int,
    sampling: Sampling,
    local: PlainSteps,
    parties: Sequence[str],
) -> None:
    """McMahan et al. 2017, Algorithm 1, one round of "Server executes", for each federation."""
    clients = [
        (number, client)
        for number, own in enumerate(draws)
        for client in sampling.choose(
            len(parties), own.seeds["cohort", round, AGGREGATOR_NAME].numpy()
        )
    ]
    if not clients:
        return
    stacked = Models([models[number] for number, _ in clients], task.loss)
    optimizer = optimizer_of_all(stacked, models[0], local.optimizer, local.learning_rate)
    trained: dict[int, Tensor] = {}

    def take(place: int) -> None:
        trained[place] = stacked.vector(place)

    train_together(
        [
            _batches_of(local, held[number][client], draws[number], round, parties[client])
            for number, client in clients
        ],
        lambda number, taken: stacked.step(optimizer, taken, rows),
        take,
        draws[0].seeds["dropout", round, parties[clients[0][1]]],
    )
    # "w_{t+1} <- sum over k of w^k_{t+1} / m": in float64 and in the order of clients.
    for number, model in enumerate(models):
        own = [trained[place] for place, (whose, _) in enumerate(clients) if whose == number]
        if own:
            average = torch.stack(own).double().sum(dim=0) / len(own)
            load_vector(trainable(model), average)


def _batches_of(
    local: PlainSteps, own: Tensor, draws: Draws, round: int, name: str
) -> Iterator[Tensor]:
    order = draws.seeds["order", round, name].torch()
    for index in batches(len(own), local.batch_size, local.epochs, order):
        yield own if index is None else own[index.to(own.device)]
