"""SPU semi2k as a side: two processes of an environment of its own, started by rank 0."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from on_shares.sides import Cost, Side
from on_shares.works import Work
from torch import Tensor

from privtrain.core.runtime import Party, link_of


@dataclass
class SpuSide:
    """The two processes, as seen from rank 0; they wait while other sides are timed.

    Args:
        process: The first of them.
        folder: Where operands and results lie.
    """

    process: subprocess.Popen[str]
    folder: Path
    name: str = field(default="spu semi2k", init=False)
    error: float = field(default=5e-2, init=False)
    _cost: Cost = field(default=Cost(), init=False)

    def prepare(self, work: Work) -> Work:
        file = self.folder / "operands.npz"
        numbered: Any = {
            f"{number:02}": each.numpy()
            for number, each in enumerate((*work.operands(), *work.weights))
        }
        np.savez(file, **numbered)
        counted = self._ask({"prepare": work.kind, "operands": str(file)})
        self._cost = Cost(**counted)
        return work

    def run(self) -> tuple[float, float]:
        seconds = float(self._ask({"run": True}))
        return seconds, seconds

    def opened(self) -> list[Tensor]:
        file = self.folder / "result.npz"
        self._ask({"open": str(file)})
        results = np.load(file)
        return [torch.from_numpy(results[name]) for name in sorted(results.files)]

    def cost(self) -> Cost:
        """Messages that were sent, of which some may go in one round."""
        return self._cost

    def _ask(self, request: dict[str, Any]) -> Any:
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("Expected SPU's first process to have pipes.")
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"SPU ended at {request}.")
        return json.loads(answer)


@dataclass(frozen=True)
class Spu:
    """Starts SPU at rank 0.

    Args:
        python: The interpreter of the environment that has it.
    """

    python: str

    @contextmanager
    def open(self, party: Party) -> Iterator[Sequence[Side]]:
        if link_of(party).rank != 0:
            yield []
            return
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(
                [self.python, str(Path(__file__).with_name("semi2k_processes.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Not PYTHONPATH: this environment's packages are not that one's.
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "NO_PROXY": "*",
                    "no_proxy": "*",
                    "OMP_NUM_THREADS": "1",
                },
                text=True,
            )
            try:
                yield [SpuSide(process, Path(folder))]
            finally:
                process.communicate(timeout=30)


def versions(python: str) -> dict[str, str]:
    """What that environment has installed."""
    said = subprocess.run(
        [
            python,
            "-c",
            "import json; from importlib.metadata import version as v; "
            "print(json.dumps({n: v(n) for n in ('spu', 'jax', 'numpy')}))",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(said.stdout))
