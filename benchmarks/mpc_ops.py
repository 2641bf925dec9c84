"""Operations on secret shares: `ring64` with its dealer against the CrypTen engine.

    python benchmarks/mpc_ops.py [--quick] [--json]

Two computing parties and a dealer, each a process with one thread, on loopback; both engines are
open in the same processes and timed in turn, at rank 0. "online" begins when everything that the
dealer deals for the operation has arrived; "total" is dealing, then online, one after the other.
What is opened by both engines is compared with float64 before anything is timed. Rounds and bytes
are those of the transcript: bytes sent by rank 0, and bytes of material.
"""

import sys
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness import Row, from_seconds, main
from torch import Tensor, nn

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from privtrain.core.links import Link
from privtrain.core.runtime import MeshReply, Party, Payload, link_of
from privtrain.core.transcript import Entry
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.dense import Descent
from privtrain.mpc.engine import Session, Shared, with_helpers
from privtrain.mpc.layers import sigmoid, softmax, step, trained, translate
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.ring64.streamed import DEALER
from privtrain.mpc.sharing import decode, encode
from privtrain.runtimes.processes.mesh import Processes

GO, DEALT = "go", "dealt"
Operation = Callable[[Session, list[Shared]], list[Shared]]
Plain = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Work:
    """An operation, what it is done to, and what it gives.

    Args:
        name: What it is called in the table.
        shapes: Shapes of the operands.
        run: Computes on shares.
        plain: Computes in float64.
        error: How far a result may be from float64.
        theirs: What CrypTen's engine does instead, and in float64, where it lacks the means.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    run: Operation
    plain: Plain
    error: float = 1e-3
    theirs: tuple[Operation, Plain] | None = None


def relu(session: Session, operands: list[Shared]) -> list[Shared]:
    """The rectifier, by each engine's best means."""
    return [session.relu(operands[0])[0]]


def descended(sizes: tuple[int, ...]) -> tuple[Operation, Plain]:
    """One step of gradient descent, on shares and in float64.

    Args:
        sizes: Widths of the layers, inputs first; one output is a logit under logistic loss.

    Operands are inputs and one-hot labels; of one logit the label is the last column.
    """
    outputs = sizes[-1]
    probabilities = softmax if outputs > 1 else sigmoid
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for before, after in pairwise(sizes):
        modules += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*modules[:-1])
    # Before anything is timed: seeding torch's generator takes a millisecond.
    translated = translate(model)

    def run(session: Session, operands: list[Shared]) -> list[Shared]:
        inputs, labels = operands
        layers = [layer.open(session) for layer in translated]
        descent = Descent(0.1 / inputs.size(0), 0.0)
        step(session, layers, inputs, labels[:, -outputs:], descent, probabilities)
        return trained(layers)

    def plain(operands: list[Tensor]) -> list[Tensor]:
        inputs, labels = operands
        twin = deepcopy(model).double()
        own, wanted = twin(inputs), labels[:, -outputs:]
        if outputs > 1:
            loss = nn.functional.cross_entropy(own, wanted)
        else:
            loss = nn.functional.binary_cross_entropy_with_logits(own, wanted)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        pairs = zip(twin.parameters(), gradients, strict=True)
        return [(weight - 0.1 * gradient).detach() for weight, gradient in pairs]

    return run, plain


def works(quick: bool) -> tuple[Work, ...]:
    """All operations; small ones where it has to be quick."""
    side, many, rows = (16, 100, 10) if quick else (256, 10_000, 1_000)
    logistic, perceptron = descended((30, 1)), descended((64, 32, 10))
    # CrypTen's engine has no sigmoid: its logistic regression has two classes.
    two_classes = descended((30, 2))
    return (
        Work(
            f"matmul-{side}",
            ((side, side), (side, side)),
            lambda session, x: [x[0].matmul(x[1])],
            lambda x: [x[0] @ x[1]],
            error=5e-3,
        ),
        Work(
            f"mul-{many}",
            ((many,), (many,)),
            lambda session, x: [x[0] * x[1]],
            lambda x: [x[0] * x[1]],
        ),
        Work(f"relu-{many}", ((many,),), relu, lambda x: [x[0].relu()]),
        Work(
            f"softmax-{rows}x10",
            ((rows, 10),),
            lambda session, x: [session.softmax(x[0])],
            lambda x: [x[0].softmax(dim=-1)],
        ),
        Work(
            "logistic-step, 30 features, B 64",
            ((64, 30), (64, 2)),
            *logistic,
            theirs=two_classes,
        ),
        Work("mlp-step 64-32-10, B 128", ((128, 64), (128, 10)), *perceptron),
    )


@dataclass
class Among:
    """A link to some of the parties of a mesh, by rank from the first one.

    Args:
        link: The link to all of them.
        names: The first ones.
    """

    link: Link
    names: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)


@dataclass(frozen=True)
class Measure:
    """Times operations; what rank 0 saw is reported.

    Args:
        quick: Whether operations are small.
        repeats: Pairs of timings.
    """

    quick: bool
    repeats: int

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        """Seconds by work and side, shape `(repeats,)`, and rounds and bytes of one run."""
        link = link_of(party)
        measured: Payload = {}
        with Ring64().open(party) as ours:
            if ours.deals:
                for work in works(self.quick):
                    for _ in range(self.repeats + 1):
                        _ours(ours, work, _operands(work), link)
                return {}
            computing = tuple(name for name in link.names if name != DEALER)
            among: Any = Among(link, computing)
            with CrypTen().open(replace(party, link=among)) as theirs:
                for work in works(self.quick):
                    measured |= self._work(ours, theirs, work, link)
        return measured

    def _work(self, ours: Ring64Session, theirs: Session, work: Work, link: Link) -> Payload:
        operands = _operands(work)
        total, online, crypten, counts = [], [], [], torch.zeros(2)
        for repeat in range(self.repeats + 1):
            sent = len(link.entries)
            dealt_and_computed, computed, result = _ours(ours, work, operands, link)
            own = [entry for entry in link.entries[sent:] if entry.kind == "masked share"]
            counts = torch.tensor([len(own), sum(entry.bytes for entry in own)])
            against, other = _theirs(theirs, work, operands, link)
            if repeat == 0:
                _check(work, operands, {"ring64": (ours, result), "CrypTen": (theirs, other)})
                continue
            total.append(dealt_and_computed)
            online.append(computed)
            crypten.append(against)
        return {
            f"{work.name}/total": torch.tensor(total),
            f"{work.name}/online": torch.tensor(online),
            f"{work.name}/crypten": torch.tensor(crypten),
            f"{work.name}/counts": counts,
        }


def _operands(work: Work) -> list[Tensor]:
    """The same at every party: labels where a second operand has fewer columns than the first."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in work.shapes]
    if "step" in work.name:
        drawn[1] = nn.functional.one_hot(drawn[1].argmax(dim=1), drawn[1].shape[1]).double()
    return drawn


def _taken(session: Session, operands: list[Tensor], *, first: bool) -> list[Shared]:
    """Operands as shares of values that nobody opened before."""
    integers = [encode(values, name="an operand") for values in operands]
    return [session.take(one if first else torch.zeros_like(one)) for one in integers]


def _ours(
    session: Ring64Session, work: Work, operands: list[Tensor], link: Link
) -> tuple[float, float, list[Shared]]:
    """Seconds of dealing and computing, of computing alone, and the result."""
    first, second, _ = link.names
    started = time.perf_counter()
    if session.deals:
        link.receive(first, GO)
    elif link.rank == 0:
        link.send(DEALER, GO, torch.zeros(0))
        # Sent after all material; the party that reads material hears of it from the other one.
        link.receive(DEALER, DEALT)
        link.send(second, GO, torch.zeros(0))
    else:
        link.receive(first, GO)
    dealt = time.perf_counter()
    result: list[Any] = work.run(session, _taken(session, operands, first=session.leader))
    # What waits for its truncation belongs to the operation.
    settled: list[Any] = session.settled(result)
    session.finish()
    ended = time.perf_counter()
    if session.deals:
        session.wires.material.flush()  # type: ignore[attr-defined]  # the dealer's wires
        link.send(first, DEALT, torch.zeros(0))
    return ended - started, ended - dealt, settled


def _theirs(
    session: Session, work: Work, operands: list[Tensor], link: Link
) -> tuple[float, list[Shared]]:
    if link.rank == 0:
        link.send(link.names[1], GO, torch.zeros(0))
    else:
        link.receive(link.names[0], GO)
    started = time.perf_counter()
    run = work.run if work.theirs is None else work.theirs[0]
    result = run(session, _taken(session, operands, first=link.rank == 0))
    return time.perf_counter() - started, result


def _check(
    work: Work, operands: list[Tensor], sides: Mapping[str, tuple[Session, list[Shared]]]
) -> None:
    """Stops the benchmark where a side does not compute what float64 does."""
    rounded = [decode(encode(values, name="an operand")) for values in operands]
    for name, (session, result) in sides.items():
        ours = isinstance(session, Ring64Session)
        plain = work.plain if work.theirs is None or ours else work.theirs[1]
        exact = plain(rounded)
        opened = session.reveal(result, kind="result share")
        far = max(
            float((one - (other if one.shape == other.shape else other.t())).abs().max())
            for one, other in zip(exact, opened, strict=True)
        )
        if far > work.error:
            raise RuntimeError(f"{work.name}: {name} is {far:.2g} away from float64.")


def _material(entries: list[Entry], runs: int) -> list[int]:
    """Bytes of material of the last run of each work, from what the dealer sent."""
    sizes, size = [], 0
    for entry in entries:
        if entry.kind == "material":
            size += entry.bytes
        elif entry.kind == DEALT:
            sizes.append(size)
            size = 0
    return sizes[runs - 1 :: runs]


def rows(quick: bool) -> list[Row]:
    """Two rows an operation."""
    repeats = 5 if quick else 31
    names = ("computing-0", "computing-1")
    programs = with_helpers(Ring64(), dict.fromkeys(names, Measure(quick, repeats)))
    replies: Mapping[str, MeshReply] = Processes(timeout=120).run(programs, {})
    measured = {key: value.tolist() for key, value in replies[names[0]].payload.items()}
    material = _material(list(replies[DEALER].entries), repeats + 1)
    table = []
    for work, dealt in zip(works(quick), material, strict=True):
        rounds, sent = measured[f"{work.name}/counts"]
        for side in ("online", "total"):
            ours, crypten = measured[f"{work.name}/{side}"], measured[f"{work.name}/crypten"]
            row = from_seconds(
                work.name, ours, crypten, ours_name=f"ring64 {side}", against_name="crypten"
            )
            counts = {"rounds": int(rounds), "bytes_sent": int(sent), "material_bytes": dealt}
            fastest = {"ours_min_ms": 1e3 * min(ours), "against_min_ms": 1e3 * min(crypten)}
            table.append(row | counts | fastest)
    return table


if __name__ == "__main__":
    main(rows)
