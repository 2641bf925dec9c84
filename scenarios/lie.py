"""A lie on shares, and what comes of it under each engine; told by `bank_and_shop.py --cheat`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import privtrain as pt

LIAR = "computing-0"
"""The bank, to whose share alone public numbers are added: nobody else has to take part."""

ADDED = 4.0
"""What it adds to the bias of the second class: every customer is judged by it."""


def lying(engine: Any) -> Any:
    """An engine with which the bank adds to one weight, just before the weights are opened.

    All others run it as it is, and each message is one as they expect.
    """

    @contextmanager
    def opened(self: Any, party: Any) -> Iterator[Any]:
        with engine.open(party) as session:
            honest = session.reveal

            def reveal(values: Sequence[Any], **how: Any) -> list[Tensor]:
                *weights, bias = values
                opened: list[Tensor] = honest([*weights, bias + torch.tensor([0.0, ADDED])], **how)
                return opened

            if party.name == LIAR:
                session.reveal = reveal
            yield session

    return type("Lying", (type(engine),), {"open": opened})()


def told(fit: Callable[[Any], Any], engine: Any, inputs: Tensor) -> str:
    """What the shop reads, held against an honest run of the same seed.

    Args:
        fit: Trains with an engine.
        engine: The engine.
        inputs: Customers to judge, shape `(rows, columns)`.
    """
    try:
        agreed = fit(engine).predictor
    except pt.UnsupportedError as error:
        return f"not tried. {error}"
    try:
        read = fit(lying(engine)).predictor
    except pt.TamperedShareError as error:
        return f"caught, no weight was read. TamperedShareError: {error}"
    pairs = zip(_weights(read), _weights(agreed), strict=True)
    away = max(float((weight - honest).abs().max()) for weight, honest in pairs)
    others = int((read(inputs).argmax(dim=1) != agreed(inputs).argmax(dim=1)).sum())
    return (
        f"accepted. A weight that was read is {away:.3f} from the one that was agreed on, and "
        f"{others:,} of {len(inputs):,} test customers are judged otherwise."
    )


def _weights(predictor: Any) -> list[Tensor]:
    return [weight.detach() for weight in predictor.module.parameters()]


def tell(
    engines: Mapping[str, Any],
    trainer: pt.MPCSGD,
    task: pt.Task,
    data: pt.FederatedData,
    seed: int,
    mesh: Any,
) -> None:
    """Prints what comes of the lie under each engine, and what the authenticated one promises."""

    def fit(engine: Any) -> pt.TrainResult:
        runtimes, changed = pt.Runtimes(mesh=mesh), replace(trainer, engine=engine)
        return pt.fit(changed, task, data, seed=seed, runtimes=runtimes)

    print(f"The bank adds {ADDED:g} to one weight before the model is opened. The shop reads:\n")
    for name, engine in engines.items():
        print(f"{name}: {told(fit, engine, data.test.inputs)}\n")
    print(f"What spdz2k promises: {pt.SPDZ2k().caveats[0]}")
