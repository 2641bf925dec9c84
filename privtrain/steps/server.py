"""The server's side of federated rounds: the global model, and how a round's average moves it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.parameters import load_vector, to_vector
from privtrain.core.runtime import Payload, Seen
from privtrain.core.trainer import Run
from privtrain.core.transcript import UNPROTECTED
from privtrain.gradients.alone import ALONE
from privtrain.steps.optimizers import GradientVector, checked_optimizer

ServerOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the server's optimizer, such as `functools.partial(torch.optim.Adam, lr=0.01)`."""


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


NOTE = UNPROTECTED + "note/"
"""How the names of encoded notes begin, among the diagnostics beside a message."""

ASSUMPTION = UNPROTECTED + "assumption/"
"""How those of encoded assumptions begin."""

DRAWN = UNPROTECTED + "rows drawn"
"""The marks of the rows that a party drew in a round; for attacks alone."""


def as_keys(seen: Seen) -> Payload:
    """What a party's steps saw, as diagnostics beside its message, which holds tensors alone."""
    said = {
        f"{prefix}{place}": torch.tensor(list(text.encode()), dtype=torch.uint8)
        for prefix, texts in ((NOTE, seen.notes), (ASSUMPTION, seen.assumptions))
        for place, text in enumerate(texts)
    }
    numbers = {
        UNPROTECTED + name: torch.tensor(value, dtype=torch.float64)
        for name, value in seen.numbers.items()
    }
    return numbers | said | ({} if seen.used is None else {DRAWN: seen.used})


def _read_note(text: Tensor) -> str:
    """A note from its bytes, as one line of characters that can be printed."""
    said = bytes(text.tolist()).decode(errors="replace")
    return "".join(character for character in said if character.isprintable())


def record_diagnostics(replies: dict[str, Payload], round: int, run: Run) -> None:
    """Records the clients' diagnostics, averaged, and their notes.

    Args:
        replies: Client to message.
        round: Communication round, from 0.
        run: The run whose history, notes and assumptions grow.
    """
    diagnostics: dict[str, list[Tensor]] = {}
    for reply in replies.values():
        for name in reply:
            if name.startswith(UNPROTECTED):
                diagnostics.setdefault(name, []).append(reply[name])
    for name in sorted(diagnostics.keys() - {DRAWN}):
        if name.startswith((NOTE, ASSUMPTION)):
            # Parties with one model say the same; once will do.
            said = list(dict.fromkeys(_read_note(text) for text in diagnostics[name]))
            if name.startswith(NOTE):
                run.outcome.notes.extend(t for t in said if t not in run.outcome.notes)
            else:
                # A party may say what an engine says, and nothing else of what a promise rests on.
                run.outcome.assume(*(text for text in said if text.startswith(ALONE)))
        else:
            seen = [float(value) for value in diagnostics[name]]
            mean = sum(seen) / len(seen)
            run.outcome.history.record(round + 1, **{name.removeprefix(UNPROTECTED): mean})
