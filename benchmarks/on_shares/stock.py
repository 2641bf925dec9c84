"""CrypTen 0.4.1 as it comes, with its first or a third party as the dealer of triples.

    python -m on_shares.stock PORT      # the third party

It is a package of its own here: in processes where the CrypTen engine of this project has opened a
session, which replaces parts of it, this side must not be opened.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from on_shares.sides import Cost, Prepared, Side, computing_parties, prepared, together
from on_shares.works import Work
from torch import Tensor

from privtrain.core.links import Link
from privtrain.core.runtime import Party, link_of
from privtrain.mpc.crypten.engine import load
from privtrain.mpc.ring64.streamed import DEALER
from privtrain.mpc.sharing import encode

PROVIDERS = ("TFP", "TTP")
PARTIES = 2


@dataclass
class Counting:
    """A communicator of CrypTen that counts what this party sends, and what the dealer does.

    Args:
        inner: The communicator.
    """

    inner: Any
    rounds: int = 0
    sent: int = 0
    material: int = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        return partial(self._counted, name, value) if name in _MESSAGES else value

    def _counted(self, name: str, function: Any, message: Any, *args: Any, **options: Any) -> Any:
        if name == "all_reduce":
            tensors = message if isinstance(message, list) else [message]
            self.rounds += 1
            self.sent += sum(each.nelement() * each.element_size() for each in tensors)
        elif name == "send_obj":
            # The party waits for the dealer's answer: two messages in sequence.
            self.rounds += 2
        elif name == "broadcast":
            self.material += message.nelement() * message.element_size()
        elif name != "recv_obj":
            raise RuntimeError(f"CrypTen sends by {name!r}, which is not counted.")
        return function(message, *args, **options)


_MESSAGES = {
    *("all_reduce", "reduce", "gather", "all_gather", "broadcast", "broadcast_obj", "scatter"),
    *("send", "recv", "isend", "irecv", "send_obj", "recv_obj"),
}


@dataclass
class StockSession:
    """What `on_shares.works` asks of a session, by CrypTen's own means.

    Args:
        crypten: The package.
        rank: Own rank.
    """

    crypten: Any
    rank: int

    def take(self, share: Tensor, *, largest: float | None = None) -> Any:
        """A share of a value, as CrypTen's tensor."""
        return self.crypten.mpc.MPCTensor.from_shares(share)

    def public(self, values: Tensor) -> Any:
        """Public values; rank 0's share is the value."""
        integers = encode(values, name="public values")
        return self.take(integers if self.rank == 0 else torch.zeros_like(integers))

    def scale(self, shared: Any, factor: float) -> Any:
        """The product with a public number."""
        return shared * factor

    def relu(self, shared: Any) -> tuple[Any, Any]:
        """As CrypTen's own, whose bit the backward pass needs as well."""
        above = shared.gt(0)
        return shared * above, above

    def sigmoid(self, logits: Any) -> Any:
        """CrypTen's."""
        return logits.sigmoid()

    def softmax(self, logits: Any) -> Any:
        """CrypTen's."""
        return logits.softmax(-1)


@dataclass
class StockSide:
    """CrypTen under one provider.

    Args:
        session: CrypTen's means.
        provider: Who deals: "TFP", rank 0, or "TTP", a third process.
        link: To the other party; not what CrypTen sends by.
    """

    session: StockSession
    provider: str
    link: Link
    error: float = field(default=5e-2, init=False)
    _prepared: Prepared = field(init=False)
    _result: list[Any] = field(default_factory=list, init=False)

    @property
    def name(self) -> str:
        return f"crypten-stock {self.provider.lower()}"

    def prepare(self, work: Work) -> Work:
        self._prepared = prepared(work, first=self.link.rank == 0)
        return work

    def run(self) -> tuple[float, float]:
        crypten: Any = self.session.crypten
        crypten.cfg.mpc.provider = self.provider
        own: Any = self.session
        together(self.link, computing_parties(self.link))
        started = perf_counter()
        with crypten.no_grad():
            self._result = self._prepared.run(own)
        seconds = perf_counter() - started
        return seconds, seconds

    def opened(self) -> list[Tensor]:
        # CrypTen's decoding is wrong by 1 next to some whole numbers: not the sharing's fault.
        return [value.reveal().double() / float(value.encoder.scale) for value in self._result]

    def cost(self) -> Cost:
        """Of a run that is not timed, since counting takes time."""
        communicator_class = self.session.crypten.communicator.DistributedCommunicator
        counting = Counting(communicator_class.instance)
        communicator_class.instance = counting
        try:
            self.run()
        finally:
            communicator_class.instance = counting.inner
        dealt = counting.material
        return Cost(counting.rounds, counting.sent, dealt, dealt)


@dataclass(frozen=True)
class CrypTenStock:
    """Opens CrypTen under both providers between two parties, on gloo.

    Args:
        port: A free port of loopback, where the two parties and the third one meet.
    """

    port: int

    @contextmanager
    def open(self, party: Party) -> Iterator[Sequence[Side]]:
        link = link_of(party)
        if link.names[link.rank] == DEALER:
            yield []
            return
        crypten = started(self.port, link.rank)
        try:
            session = StockSession(crypten, link.rank)
            yield [StockSide(session, provider, link) for provider in PROVIDERS]
        finally:
            # Ends the third party, too.
            crypten.uninit()


def surroundings(port: int, rank: int) -> Mapping[str, str]:
    """The variables that CrypTen reads; the third party is no part of its world's size."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(PARTIES),
        "RENDEZVOUS": f"tcp://127.0.0.1:{port}",
        "DISTRIBUTED_BACKEND": "gloo",
    }


def started(port: int, rank: int) -> Any:
    """CrypTen at one of the two parties, with a third one."""
    os.environ |= surroundings(port, rank)
    crypten = load()
    crypten.cfg.mpc.provider = "TTP"
    crypten.init()
    return crypten


@contextmanager
def third_party(port: int) -> Iterator[None]:
    """The process that deals under the provider TTP, while parties need it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "on_shares.stock", str(port)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        },
    )
    try:
        yield
    finally:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    os.environ |= surroundings(int(sys.argv[1]), PARTIES)
    # Deals until rank 0 says that it is done.
    _package = load()
    _package.cfg.mpc.provider = "TTP"
    _package.mpc.provider.TTPServer()
