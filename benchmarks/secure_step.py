"""What a training step on secret shares costs, against plain torch and CrypTen's own parts.

    python benchmarks/secure_step.py [--quick] [--json]
    python benchmarks/secure_step.py --against CHECKOUT [--quick]

Two or three processes on loopback; both sides are timed in turn inside them, at rank 0. "without
checks" shows the price of comparing shapes before each message: the same step with and without.

`--against` runs this file of this checkout and of another one in turn, two parties each, and holds
their secure steps against each other: what a program on shares is given has changed over time, so
each checkout measures itself.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import PAIRS, ROOT, Row, from_seconds, main
from torch import nn

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.crypten.engine import CrypTen, CrypTenSession, load
from privtrain.mpc.dense import Descent
from privtrain.mpc.layers import step, translate
from privtrain.runtimes.processes.mesh import Processes


@dataclass(frozen=True)
class Work:
    """One step of a model.

    Args:
        name: What it is called in the table.
        sizes: Widths of the layers, inputs first.
        batch: Rows in the batch.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int

    def model(self) -> nn.Sequential:
        """Linear layers with ReLU in between."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, after in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


WORKS = (
    Work("logistic regression 30-2, B 64", (30, 2), 64),
    Work("logistic regression 64-10, B 128", (64, 10), 128),
    Work("MLP 64-32-10, B 128", (64, 32, 10), 128),
)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Measure:
    """Times steps at every party; what rank 0 saw is reported.

    Args:
        works: Which steps.
        repeats: Pairs of timings.
    """

    works: tuple[Work, ...]
    repeats: int

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        """Seconds by work and side, shape `(repeats,)`; rounds and bytes of one step."""
        measured: Payload = {}
        # An open session gives CrypTen our comparisons; its own softmax is timed with its own.
        comparison = load().mpc.MPCTensor._ltz
        with CrypTen().open(party) as session:
            for work in self.works:
                measured |= self._step(session, work, party)
            measured |= self._softmax(session, comparison)
        return measured

    def _step(self, session: CrypTenSession, work: Work, party: Party) -> Payload:
        model = work.model()
        layers = [layer.open(session) for layer in translate(model)]
        inputs = torch.randn(work.batch, work.sizes[0])
        labels = torch.arange(work.batch) % work.sizes[-1]
        x = session.public(inputs)
        y = session.public(nn.functional.one_hot(labels, work.sizes[-1]).double())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def secure() -> None:
            step(session, layers, x, y, Descent(0.1 / work.batch, 0.0))

        def unchecked() -> None:
            session.channel.checks = False
            secure()
            session.channel.checks = True

        def plain() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        sides = {"secure": secure, "unchecked": unchecked, "plain": plain}
        times = self._interleaved(sides)
        rounds, sent = session.channel.round, len(link_of(party).entries)
        secure()
        size = sum(entry.bytes for entry in link_of(party).entries[sent:])
        counts = torch.tensor([session.channel.round - rounds, size])
        return {f"{work.name}/{side}": value for side, value in times.items()} | {
            f"{work.name}/counts": counts
        }

    def _softmax(self, session: CrypTenSession, comparison: object) -> Payload:
        crypten = load()
        logits: Any = session.public(torch.randn(128, 10))
        ours = crypten.cfg.config
        crypten.cfg.load_config(None)
        theirs = crypten.cfg.config
        tensors = crypten.mpc.MPCTensor
        ours_compare = tensors._ltz

        def fewer_rounds() -> None:
            crypten.cfg.set_config(ours)
            tensors._ltz = ours_compare
            session.softmax(logits)

        def its_own() -> None:
            crypten.cfg.set_config(theirs)
            tensors._ltz = comparison
            logits.softmax(-1)

        times = self._interleaved({"ours": fewer_rounds, "crypten": its_own})
        crypten.cfg.set_config(ours)
        tensors._ltz = ours_compare
        return {f"softmax/{side}": value for side, value in times.items()}

    def _interleaved(self, sides: dict[str, Callable[[], None]]) -> Payload:
        for side in sides.values():
            side()
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(self.repeats):
            order = list(sides) if repeat % 2 == 0 else list(sides)[::-1]
            for name in order:
                taken[name].append(seconds(sides[name]))
        return {name: torch.tensor(values) for name, values in taken.items()}


def rows(quick: bool) -> list[Row]:
    """One row a model and question."""
    table = []
    for parties in (2,) if quick else (2, 3):
        names = [f"computing-{rank}" for rank in range(parties)]
        program = Measure(WORKS, 5 if quick else 15)
        reply = Processes(timeout=120).run(dict.fromkeys(names, program), {})[names[0]]
        times = {key: [float(second) for second in value] for key, value in reply.payload.items()}
        for work in WORKS:
            rounds, sent = times[f"{work.name}/counts"]
            secure = times[f"{work.name}/secure"]
            for side in ("plain", "unchecked"):
                row = from_seconds(
                    work.name,
                    secure,
                    times[f"{work.name}/{side}"],
                    ours_name=f"crypten-{parties}",
                    against_name="torch" if side == "plain" else "crypten without checks",
                )
                table.append(row | {"rounds": int(rounds), "bytes_sent_per_party": int(sent)})
        table.append(
            from_seconds(
                "softmax 128x10",
                times["softmax/ours"],
                times["softmax/crypten"],
                ours_name=f"softmax-{parties}",
                against_name="CrypTen's softmax",
            )
        )
    return table


def own_seconds(checkout: Path) -> dict[str, float]:
    """Median seconds of a secure step by work, as the file of a checkout measures them."""
    printed = subprocess.run(
        [sys.executable, str(checkout / "benchmarks" / "secure_step.py"), "--quick", "--json"],
        check=True,
        stdout=subprocess.PIPE,
        # Parties start with `python -m privtrain`, which looks in the working folder first.
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        text=True,
    ).stdout
    return {row["work"]: row["ours_ms"] / 1e3 for row in json.loads(printed)}


def against(other: Path, quick: bool) -> list[Row]:
    """Secure steps of this checkout against those of another one."""
    roots = (ROOT, other.resolve())
    taken: tuple[list[dict[str, float]], ...] = ([], [])
    for repeat in range(1 if quick else PAIRS):
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            taken[index].append(own_seconds(roots[index]))
    return [
        from_seconds(
            work,
            *([seconds[work] for seconds in side] for side in taken),
            ours_name="this",
            against_name="other",
        )
        for work in taken[0][0]
    ]


if __name__ == "__main__":
    main(rows, against=against)
