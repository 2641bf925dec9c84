"""CrypTen as an engine: additive secret sharing between 2 or 3 processes, semi-honest.

The only file that imports CrypTen. What it changes in CrypTen 0.4.1, in this process only: random
ring elements come from AES-256-CTR under 256-bit keys agreed by X25519 (CrypTen draws from mt19937
under 32 bits that travel in clear), the communicator checks and records (`channel`), only the
dealer draws triples, signs come from a smaller circuit (`comparison`), and softmax is another
approximation (`functions`).
"""

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from privtrain.core.errors import PartyLostError, UnsupportedError
from privtrain.core.extras import check_installed
from privtrain.core.links import Link
from privtrain.core.runtime import Party, Program, link_of
from privtrain.core.statement import Adversary, InputPrivacy, Security
from privtrain.core.validate import check_flag, check_member
from privtrain.mpc.crypten.channel import Channel, Framed, Wire
from privtrain.mpc.crypten.comparison import CrypTenGates, negative
from privtrain.mpc.crypten.functions import one_hot_argmax, softmax
from privtrain.mpc.keystream import KeyAgreement, Keystream
from privtrain.mpc.sharing import PRECISION_BITS, SUM_BITS, encode

_CPU = torch.device("cpu")
_PACKAGES = ("crypten", "omegaconf", "onnx", "yaml")
_MOVED = "torch.onnx._internal.registration"

CAVEATS = (
    "CrypTen is semi-honest: a party that deviates is not noticed and can falsify the result; "
    "shares carry no MACs.",
    "The provider TFP makes rank 0 the dealer of all triples: it knows them, and a value opened "
    "under a triple it knows is readable to it, so rank 0 must be trusted with the inputs.",
    "Channels are gloo over TCP without TLS, and parties are not authenticated. Share seeds are "
    "drawn from the operating system and agreed by X25519, which stops a listener, not somebody "
    "who sits in between.",
    "Two parties truncate locally: a product whose integer is x goes wrong with probability "
    "|x| / 2^64, and then by 2^48 before scaling.",
    "CrypTen pickles what it sends as objects; privtrain's channel refuses such messages.",
    "Shapes, sequence and timing of messages, and which rows form a batch, are visible to every "
    "computing party.",
)


@dataclass(frozen=True)
class CrypTen:
    """The CrypTen engine.

    Args:
        provider: Who deals the triples; "TFP" means that rank 0 does.
        checks: Whether shapes are compared before each message; off only for measuring.
    """

    provider: str = "TFP"
    checks: bool = True

    def __post_init__(self) -> None:
        check_member({"TFP"}, provider=self.provider)
        check_flag(checks=self.checks)

    @property
    def name(self) -> str:
        return "CrypTen"

    @property
    def caveats(self) -> tuple[str, ...]:
        return CAVEATS

    @property
    def most_parties(self) -> int:
        return 3

    @property
    def exact_truncation(self) -> bool:
        return False

    @property
    def opens_to_some(self) -> bool:
        return False

    @property
    def pictures(self) -> bool:
        return False

    @property
    def sigmoid(self) -> bool:
        return False

    @property
    def keeps_shares(self) -> bool:
        return True

    @property
    def authenticated(self) -> bool:
        return False

    @property
    def adversary(self) -> Adversary:
        return Adversary.SEMI_HONEST

    @property
    def row_bits(self) -> int:
        return PRECISION_BITS

    @property
    def weight_bits(self) -> int:
        return PRECISION_BITS

    @property
    def gradient_bits(self) -> int:
        return PRECISION_BITS

    @property
    def sum_bits(self) -> int:
        return SUM_BITS

    @property
    def range_bits(self) -> int:
        # Where integers wrap around; truncations of large ones go wrong long before, see `Room`.
        return 62

    def check(self, parties: int) -> None:
        if parties not in (2, 3):
            raise UnsupportedError(f"CrypTen runs here with 2 or 3 parties, not with {parties}.")
        check_installed("The engine CrypTen", *_PACKAGES)

    def input_privacy(self, names: Sequence[str]) -> tuple[InputPrivacy, ...]:
        # A value opened under a triple (a, b, ab) is x - a: whoever dealt a reads x from it.
        dealer = InputPrivacy(
            reader=names[0],
            reads="every input, gradient and weight, since it deals the triples they are masked by",
            adversary=Adversary.TRUSTED,
            security=Security.NONE,
            dealer=names[0],
            honest=names[0],
        )
        others = (
            InputPrivacy(
                reader=name,
                reads="shares, masked values, public batch indices and what is opened",
                adversary=Adversary.SEMI_HONEST,
                security=Security.COMPUTATIONAL,
                dealer=names[0],
                honest=names[0],
            )
            for name in names[1:]
        )
        network = InputPrivacy(
            reader="a listener on the network between the computing parties",
            reads="masked values and what is opened; somebody who alters messages reads everything",
            adversary=Adversary.SEMI_HONEST,
            security=Security.COMPUTATIONAL,
            dealer=names[0],
            honest=names[0],
        )
        return (dealer, *others, network)

    @property
    def helper_names(self) -> tuple[str, ...]:
        # Rank 0 deals.
        return ()

    def helpers(self, programs: Mapping[str, Program]) -> Mapping[str, Program]:
        return {}

    @contextmanager
    def open(self, party: Party) -> Iterator["CrypTenSession"]:
        """Connects to the other parties over gloo, which meet where the party's link says.

        Args:
            party: This party; what it sends and knows is recorded in its link.

        Yields:
            The open session.

        Raises:
            PartyLostError: If another party is not there.
            ProtocolError: If another party does something else.
        """
        link = link_of(party)
        self.check(len(link.names))
        crypten = load()
        _connect(link)
        try:
            channel = _channel(crypten, link, checks=self.checks)
            _agree_on_keys(crypten, channel)
            if link.rank == 0:
                link.knows("every Beaver triple and random bit: it deals them to the other parties")
            yield CrypTenSession(crypten, channel)
        finally:
            # CrypTen keeps its communicator in a class attribute: the next session in this process
            # must not meet this one's.
            communicator_class = crypten.communicator.DistributedCommunicator
            communicator_class.instance = None
            sys.modules[communicator_class.__module__].dist = dist  # type: ignore[attr-defined]
            dist.destroy_process_group()


def load() -> Any:
    """CrypTen, imported under a torch that moved a module it asks for.

    Raises:
        UnsupportedError: If it is not installed.
    """
    check_installed("The engine CrypTen", *_PACKAGES)
    try:
        importlib.import_module(_MOVED)
    except ModuleNotFoundError:
        # CrypTen 0.4.1 imports it by its old name, which newer versions of torch no longer have.
        moved_to = "torch.onnx._internal.torchscript_exporter.registration"
        sys.modules[_MOVED] = importlib.import_module(moved_to)
    return importlib.import_module("crypten")


def _connect(link: Link) -> None:
    host, port = link.meeting
    wait = timedelta(seconds=link.timeout)
    try:
        # A connection of its own to the store: gloo waits in it for the others.
        store = dist.TCPStore(host, port, is_master=False, timeout=wait)  # type: ignore[attr-defined]
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("crypten", store),  # type: ignore[attr-defined]
            rank=link.rank,
            world_size=len(link.names),
            timeout=wait,
        )
    except RuntimeError as error:
        raise PartyLostError(f"not all parties met within {link.timeout:g} s: {error}") from error


def _channel(crypten: Any, link: Link, *, checks: bool) -> Channel:
    """CrypTen's communicator over the open process group, inside our channel."""
    ranks = list(range(len(link.names)))
    communicator_class = crypten.communicator.DistributedCommunicator
    # Its constructor does nothing while a process group is open, so the fields are set here.
    inner = communicator_class()
    inner.rank, inner.world_size = link.rank, len(ranks)
    inner.main_group = inner.ttp_group = dist.new_group(ranks)
    inner.ttp_initialized = False
    inner.set_name(link.names[link.rank])
    inner.reset_communication_stats()
    _configure(crypten)
    _compare_by_carries(crypten)
    framed = Framed(dist, len(ranks), link.rank)
    # The communicator's module calls `dist`; CrypTen's own byte counter stays around that call.
    sys.modules[communicator_class.__module__].dist = framed  # type: ignore[attr-defined]
    channel = Channel(
        inner,
        _wire(len(ranks)),
        link.names,
        link.rank,
        link.entries,
        framed,
        checks=checks,
    )
    communicator_class.instance = channel
    return channel


def _configure(crypten: Any) -> None:
    """Replaces OmegaConf by plain attributes: its look-ups took a tenth of the time of a step."""

    def plain(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return SimpleNamespace(**{key: plain(item) for key, item in value.items()})

    settings = plain(crypten.cfg.config)
    # CrypTen's own byte counter, against which ours is tested.
    settings.communicator.verbose = True
    crypten.cfg.set_config(settings)


def _compare_by_carries(crypten: Any) -> None:
    """Replaces what CrypTen's comparisons of order come down to."""

    def below_zero(value: Any) -> Any:
        gates = CrypTenGates(
            crypten.mpc.get_default_provider(), crypten.communicator.get(), dist.ReduceOp.BXOR
        )
        return type(value).from_shares(negative(value.share, gates), precision=0)

    crypten.mpc.MPCTensor._ltz = below_zero


def _wire(count: int) -> Wire:
    def gather(line: Tensor) -> list[Tensor]:
        lines = [torch.empty_like(line) for _ in range(count)]
        dist.all_gather(lines, line)
        return lines

    def send(line: Tensor, rank: int) -> None:
        dist.send(line, rank)

    def recv(line: Tensor, rank: int) -> None:
        dist.recv(line, rank)

    return Wire(gather, send, recv)


def _agree_on_keys(crypten: Any, channel: Channel) -> None:
    """Gives each pair of neighbours in the ring a key, and each party one of its own."""
    agreement = KeyAgreement()
    public = torch.frombuffer(bytearray(agreement.public), dtype=torch.int64)
    kind, channel.kind = channel.kind, "public key"
    # Public keys in the clear: a listener learns nothing, somebody in between is not noticed.
    public_keys = [bytes(half.view(torch.uint8).tolist()) for half in channel.all_gather(public)]
    channel.kind = kind
    count, rank = len(public_keys), channel.rank
    after, before = (rank + 1) % count, (rank - 1) % count
    # Two parties are each other's neighbour on both sides: the purpose keeps the two keys apart.
    keys = {
        "next": agreement.key(public_keys[after], f"privtrain crypten {rank} to {after}"),
        "prev": agreement.key(public_keys[before], f"privtrain crypten {before} to {rank}"),
        "local": os.urandom(32),
    }
    for name, key in keys.items():
        crypten.generators[name][_CPU] = Keystream(key)
    _draw_from_keystreams(crypten, dealer=rank == 0)


def _draw_from_keystreams(crypten: Any, *, dealer: bool) -> None:
    """Replaces CrypTen's two random functions in every module that imported them."""

    def ring(
        size: Sequence[int], ring_size: int = 2**64, generator: Any = None, **_: Any
    ) -> Tensor:
        stream = crypten.generators["local"][_CPU] if generator is None else generator
        return stream.integers(size)  # type: ignore[no-any-return]  # a Keystream

    def bits(
        size: Sequence[int], bitlength: int | None = None, generator: Any = None, **_: Any
    ) -> Tensor:
        drawn = ring(size, generator=generator)
        return drawn if bitlength in (None, 64) else drawn & (2**bitlength - 1)

    def nothing(size: Sequence[int], *_: Any, **__: Any) -> Tensor:
        return torch.zeros(tuple(size), dtype=torch.int64)

    for name in ("primitives.arithmetic", "primitives.binary", "provider.tfp_provider"):
        module: ModuleType = importlib.import_module(f"crypten.mpc.{name}")
        # The provider's draws make the triples (a, b, ab). CrypTen lets every party draw them and
        # uses rank 0's; here the others draw nothing.
        deals_here = dealer or name != "provider.tfp_provider"
        for function, replacement in (
            ("generate_random_ring_element", ring),
            ("generate_kbit_random_tensor", bits),
        ):
            if hasattr(module, function):
                setattr(module, function, replacement if deals_here else nothing)


def _missing(what: str) -> UnsupportedError:
    return UnsupportedError(f"CrypTen has no {what} here. Use Ring64().")


class CrypTenSession:
    """An open CrypTen session; its values are CrypTen's own `MPCTensor`s.

    Args:
        crypten: The package.
        channel: The communicator.
    """

    def __init__(self, crypten: Any, channel: Channel) -> None:
        self._crypten = crypten
        self.channel = channel
        # `mpc.layers` computes gradients itself; CrypTen would record a graph that nobody reads.
        crypten.CrypTensor.set_grad_enabled(False)

    @property
    def counted_bytes(self) -> int:
        """The bytes that this party sent and received, by CrypTen's own counter."""
        return int(self.channel.inner.comm_bytes)

    def take(
        self, share: Tensor, *, largest: float | None = None, proof: Tensor | None = None
    ) -> Any:
        return self._crypten.mpc.MPCTensor.from_shares(share)

    def take_all(
        self,
        shares: Sequence[Tensor],
        *,
        proofs: Sequence[Tensor | None],
        largest: float | None = None,
    ) -> list[Any]:
        return [self.take(share, largest=largest) for share in shares]

    def own(
        self,
        integers: Tensor | None,
        shape: tuple[int, ...],
        owner: int,
        *,
        largest: float | None = None,
    ) -> Any:
        """Shares a value that one party holds: the owner adds it to its share of a random zero."""
        zero_share = self._zero_share(shape)
        if self.channel.rank != owner:
            return self.take(zero_share)
        if integers is None or tuple(integers.shape) != shape:
            raise ValueError(f"Expected the owner to bring integers of shape {shape}.")
        return self.take(zero_share + integers)

    def announce(self, values: Tensor) -> list[Tensor]:
        before, self.channel.kind = self.channel.kind, "announcement"
        try:
            announced: list[Tensor] = self.channel.all_gather(values)
        finally:
            self.channel.kind = before
        return announced

    def join(self, values: Sequence[Any], *, dim: int) -> Any:
        return self.take(torch.cat([value.share for value in values], dim=dim))

    def public(self, values: Tensor) -> Any:
        """Public values as a shared tensor: rank 0's share is the value, the others' are zero."""
        integers = encode(values, name="public values")
        return self.take(integers if self.channel.rank == 0 else torch.zeros_like(integers))

    def scale(self, shared: Any, factor: float) -> Any:
        """The product of a shared value and a public number, of which 16 significant bits count."""
        if factor == 0:
            return shared * 0
        # CrypTen would keep 16 bits after the binary point, of which a learning rate over a batch
        # size fills few. Here factor * 2^shift lies in [2^15, 2^16); the truncation undoes 2^shift.
        shift = PRECISION_BITS - 1 - math.floor(math.log2(abs(factor)))
        result = shared.clone()
        if shift <= 0:
            result.share = result.share * round(factor)
            return result
        result.share = result.share * round(factor * 2**shift)
        return result.div_(2**shift)

    def positive(self, shared: Any) -> Any:
        return shared.gt(0)

    def relu(self, shared: Any) -> tuple[Any, Any]:
        above = self.positive(shared)
        return shared * above, above

    def sigmoid(self, logits: Any) -> Any:
        raise _missing("sigmoid")

    def bilinear(self, function: Callable[[Tensor, Tensor], Tensor], left: Any, right: Any) -> Any:
        raise _missing("bilinear functions")

    def linear(self, function: Callable[[Tensor], Tensor], shared: Any) -> Any:
        raise _missing("linear functions")

    def softmax(self, logits: Any) -> Any:
        """Probabilities along the last dimension, whatever the gaps between logits."""
        return softmax(logits)

    def largest(self, shared: Any) -> Any:
        return one_hot_argmax(shared)

    def maximum(self, shared: Any) -> Any:
        raise _missing("maximum")

    def shares(self, values: Sequence[Any]) -> list[Tensor]:
        return [value.share for value in values]

    def reveal(
        self, values: Sequence[Any], *, kind: str, readers: Sequence[int] | None = None
    ) -> list[Tensor]:
        if readers is not None:
            raise _missing("opening to some parties alone")
        before, self.channel.kind = self.channel.kind, kind
        try:
            shares = [value.share for value in values]
            opened = self.channel.all_reduce(shares, batched=True)
        finally:
            self.channel.kind = before
        return [
            integers.to(torch.float64) / float(value.encoder.scale)
            for integers, value in zip(opened, values, strict=True)
        ]

    def _zero_share(self, shape: tuple[int, ...]) -> Tensor:
        # Pseudo-random zero sharing (Cramer, Damgard and Ishai 2005): what one party adds, its
        # neighbour in the ring subtracts, from the key that these two share. Nothing is sent.
        streams = self._crypten.generators
        share: Tensor = streams["prev"][_CPU].integers(shape)
        share -= streams["next"][_CPU].integers(shape)
        return share
