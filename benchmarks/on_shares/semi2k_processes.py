"""SPU semi2k between two processes; runs in an environment of its own, which has `spu` and `jax`.

    NO_PROXY='*' python semi2k_processes.py

Reads one request a line, JSON, and answers each by one: `{"prepare": KIND, "operands": FILE}`,
`{"run": true}`, `{"open": FILE}`. Functions are compiled and operands shared before the clock
starts. Nothing of this project is imported.
"""

import json
import multiprocessing
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RATE = 0.1
FRACTION_BITS = 16


def functions() -> dict[str, Callable[..., tuple[Any, ...]]]:
    """Each work on jax arrays; weights come behind the operands, `(out, in)` and `(out,)`."""
    import jax
    import jax.numpy as jnp

    def logistic(x: Any, labels: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        rate = RATE / x.shape[0]
        gradient = jax.nn.sigmoid(x @ weight.T + bias) - labels[:, -1:]
        return weight - rate * (gradient.T @ x), bias - rate * gradient.sum(0)

    def perceptron(x: Any, labels: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> tuple[Any, ...]:
        rate = RATE / x.shape[0]
        before = x @ w1.T + b1
        above = before > 0
        hidden = before * above
        outer = jax.nn.softmax(hidden @ w2.T + b2) - labels
        inner = (outer @ w2) * above
        return (
            *(w1 - rate * (inner.T @ x), b1 - rate * inner.sum(0)),
            *(w2 - rate * (outer.T @ hidden), b2 - rate * outer.sum(0)),
        )

    return {
        "matmul": lambda x, y: (x @ y,),
        "mul": lambda x, y: (x * y,),
        "relu": lambda x: (jnp.maximum(x, 0),),
        "softmax": lambda x: (jax.nn.softmax(x),),
        "logistic-step": logistic,
        "mlp-step": perceptron,
    }


class Party:
    """One of the two processes.

    Args:
        rank: 0 or 1.
        ports: Where both listen.
        pipe: To the other process: shares and results pass by it, outside the clock.
    """

    def __init__(self, rank: int, ports: list[int], pipe: Connection) -> None:
        import spu

        self.spu, self.rank, self.pipe = spu, rank, pipe
        parties = spu.link.Desc()
        for number, port in enumerate(ports):
            parties.add_party(f"party-{number}", f"127.0.0.1:{port}")
        self.link = spu.link.create_brpc(parties, rank)
        self.config = spu.RuntimeConfig(
            protocol=spu.ProtocolKind.SEMI2K,
            field=spu.FieldType.FM64,
            fxp_fraction_bits=FRACTION_BITS,
        )
        self.config.max_concurrency = 1
        self.runtime = spu.Runtime(self.link, self.config)
        self.program: Any = None
        self.shares: dict[str, Any] = {}

    def prepare(self, kind: str, file: str) -> dict[str, Any]:
        """Compiles, shares the operands, and counts bytes and messages of a first run."""
        import numpy as np
        from spu.utils import frontend

        secret = self.spu.Visibility.VIS_SECRET
        loaded = np.load(file)
        operands = [loaded[name].astype(np.float32) for name in sorted(loaded.files)]
        names = [f"operand-{number}" for number in range(len(operands))]
        if self.rank == 0:
            made = [self.spu.Io(2, self.config).make_shares(each, secret) for each in operands]
            self.pipe.send([shares[1] for shares in made])
            own = [shares[0] for shares in made]
        else:
            own = self.pipe.recv()
        self.shares = dict(zip(names, own, strict=True))
        self.program, _ = frontend.compile(
            frontend.Kind.JAX,
            functions()[kind],
            operands,
            {},
            names,
            [secret] * len(names),
            lambda outputs: [f"result-{number}" for number in range(len(outputs))],
        )
        counted = self.counted()
        for name, share in self.shares.items():
            self.runtime.set_var(name, share)
        return counted

    def counted(self) -> dict[str, Any]:
        """Messages and bytes that this party sends in a run, as SPU's own profile says."""
        config = self.spu.RuntimeConfig(self.config)
        config.enable_pphlo_profile = True
        runtime = self.spu.Runtime(self.link, config)
        for name, share in self.shares.items():
            runtime.set_var(name, share)
        with tempfile.NamedTemporaryFile() as log:
            # It is printed by SPU itself, past Python's streams.
            kept = os.dup(1)
            os.dup2(log.fileno(), 1)
            try:
                runtime.run(self.program)
                found = said_in(Path(log.name))
            finally:
                os.dup2(kept, 1)
                os.close(kept)
        return {"sent": int(found.group(1)), "rounds": int(found.group(2))}

    def run(self) -> float:
        """Seconds of one run; both processes start together."""
        self.link.barrier()
        started = time.perf_counter()
        self.runtime.run(self.program)
        return time.perf_counter() - started

    def open(self, file: str) -> None:
        """Writes the last result, from both shares."""
        import numpy as np

        own = [self.runtime.get_var(name) for name in self.program.output_names]
        if self.rank == 1:
            self.pipe.send(own)
            return
        io = self.spu.Io(2, self.config)
        pairs = zip(own, self.pipe.recv(), strict=True)
        opened = [io.reconstruct(list(pair)) for pair in pairs]
        np.savez(file, **{f"{number:02}": values for number, values in enumerate(opened)})

    def answer(self, request: dict[str, Any]) -> Any:
        """Does what is asked for."""
        if "prepare" in request:
            return self.prepare(request["prepare"], request["operands"])
        return self.open(request["open"]) if "open" in request else self.run()


def said_in(log: Path) -> re.Match[str]:
    """Bytes and messages, once they are printed."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        text = log.read_text(errors="replace")
        if found := re.search(r"total send bytes (\d+), .*send actions (\d+)", text):
            return found
        time.sleep(0.05)
    raise RuntimeError(f"SPU's profile names no bytes: {text[-500:]!r}")


def follow(ports: list[int], pipe: Connection) -> None:
    """The second process."""
    party = Party(1, ports, pipe)
    while (request := pipe.recv()) is not None:
        party.answer(request)
    party.link.stop_link()


def free_ports() -> list[int]:
    """Two ports of loopback that are free now."""
    places = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [place.getsockname()[1] for place in places]
    for place in places:
        place.close()
    return ports


def main() -> None:
    """The first process: answers until its input ends."""
    # What others print must not look like an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    here, there = multiprocessing.get_context("spawn").Pipe()
    ports = free_ports()
    other = multiprocessing.get_context("spawn").Process(
        target=follow, args=(ports, there), daemon=True
    )
    other.start()
    party = Party(0, ports, here)
    for line in sys.stdin:
        request = json.loads(line)
        here.send(request)
        print(json.dumps(party.answer(request)), file=answers, flush=True)
    here.send(None)
    party.link.stop_link()
    other.join(timeout=5)


if __name__ == "__main__":
    main()
