"""The server's side of federated rounds: the global model, and how a round's average moves it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.parameters import load_vector, to_vector
from privtrain.core.runtime import Reply
from privtrain.core.trainer import Run
from privtrain.core.validate import brief
from privtrain.gradients.alone import ALONE
from privtrain.steps.optimizers import GradientVector, checked_optimizer

ServerOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the server's optimizer, such as `functools.partial(torch.optim.Adam, lr=0.01)`."""


def check_server_optimizer(optimizer: object) -> None:
    """Refuses what makes no optimizer; whether it fits the model is for `make_server_optimizer`.

    Raises:
        ValueError: If it is neither None nor a factory.
    """
    if optimizer is not None and not callable(optimizer):
        raise ValueError(
            f"Expected server_optimizer={brief(optimizer)} to be a factory that is given the "
            "parameters, such as functools.partial(torch.optim.Adam, lr=0.01), or None."
        )


def make_server_optimizer(
    optimizer: ServerOptimizer, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """The server's optimizer of some parameters.

    Raises:
        ValueError: If something else is made, as `checked_optimizer` says.
    """
    return checked_optimizer(
        lambda: optimizer(parameters), parameters, f"server_optimizer={optimizer!r}"
    )


class Server:
    """The server's side: the global model and, where there is one, its optimizer.

    Args:
        tensors: What is exchanged; written in place.
        parameters: The trainable ones among them, which come first.
        optimizer: Makes the server's optimizer, or None.
    """

    def __init__(
        self,
        tensors: list[Tensor],
        parameters: list[nn.Parameter],
        optimizer: ServerOptimizer | None,
    ) -> None:
        self._tensors = tensors
        self._parameters = parameters
        self._gradient = GradientVector(parameters)
        self._optimizer = (
            None if optimizer is None else make_server_optimizer(optimizer, parameters)
        )

    def vector(self) -> Tensor:
        """The global model as a new vector, shape `(values,)`."""
        return to_vector(self._tensors)

    def step(self, average: Tensor | None, *, change: bool) -> None:
        """Takes the average of a round, float64, shape `(values,)`; None changes nothing.

        Args:
            average: The average of what clients sent.
            change: Whether they sent changes rather than models.
        """
        if average is None:
            return
        if self._optimizer is None:
            # McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, the server's line: the average
            # becomes the model. In float64, so that a small change of a large weight survives.
            start = self.vector().double() if change else torch.zeros_like(average)
            load_vector(self._tensors, start + average)
            return
        trained = sum(parameter.numel() for parameter in self._parameters)
        # Reddi et al. 2021 (arXiv:2003.00295), Algorithm 1, ServerOpt: the average change is the
        # negative of a gradient.
        self._gradient.set(average[:trained], -1.0)
        self._optimizer.step()
        # Statistics are no parameters: momentum would carry them past what any client saw.
        buffers = self._tensors[len(self._parameters) :]
        load_vector(buffers, to_vector(buffers) + average[trained:])

    def state(self) -> dict[str, Any]:
        """What an interrupted run needs to go on."""
        optimizer = None if self._optimizer is None else self._optimizer.state_dict()
        return {"model": self.vector(), "optimizer": optimizer}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of an interrupted run."""
        load_vector(self._tensors, state["model"])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])


def record_diagnostics(replies: Mapping[str, Reply], round: int, run: Run) -> None:
    """Records what clients saw, averaged, and their notes.

    Args:
        replies: Client to reply.
        round: Training round, from 0.
        run: The run whose history, notes and assumptions grow.
    """
    numbers: dict[str, list[float]] = {}
    for reply in replies.values():
        for name, number in reply.seen.numbers.items():
            numbers.setdefault(name, []).append(float(number))
    for name in sorted(numbers):
        run.outcome.history.record(round + 1, **{name: sum(numbers[name]) / len(numbers[name])})
    # Parties with one model say the same; once will do.
    _take_up(run.outcome.notes, (text for r in replies.values() for text in r.seen.notes))
    assumed = (text for reply in replies.values() for text in reply.seen.assumptions)
    # A party may say what an engine says, and nothing else of what a promise rests on.
    _take_up(run.outcome.assumptions, (text for text in assumed if text.startswith(ALONE)))


def _take_up(texts: list[str], said: Iterable[str]) -> None:
    """Adds texts that are new, as one line each of characters that can be printed."""
    for text in said:
        line = "".join(character for character in text if character.isprintable())
        if line not in texts:
            texts.append(line)
