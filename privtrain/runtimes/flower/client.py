"""Messages between a Flower coordinator and its clients, and what a client does with them.

A message holds tensors as Flower arrays and, for a step, the step itself as pickled bytes: this is
for simulation on one machine. The same client runs in this process and on Ray.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from types import MappingProxyType
from typing import Any, cast

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from privtrain.core import errors
from privtrain.core.cost import peak_memory
from privtrain.core.errors import PartyLostError, PrivtrainError, UnsupportedError
from privtrain.core.failures import (
    OWN_ERRORS,
    RaisedElsewhereError,
    printable,
    text_of,
    traceback_of,
)
from privtrain.core.runtime import Party, Payload, Reply, Seen, Step
from privtrain.core.seeding import Entropy, Seeds
from privtrain.core.task import Rows
from privtrain.runtimes.in_process import take_step


@contextmanager
def quiet_import() -> Iterator[None]:
    """Lets flwr be imported without calling out and without a warning users cannot act on.

    flwr reads both variables when it is imported; whoever set them to something else is obeyed.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    with warnings.catch_warnings():
        # flwr 1.41 imports a name that click 8.5 renamed.
        warnings.filterwarnings("ignore", message=".*click.*", category=DeprecationWarning)
        yield


with quiet_import():
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
    from flwr.clientapp import ClientApp

TAKE_STEP = "train.step"
SET_STATE = "train.restore"
TELL_STATE = "query.state"
KEEPS_STATE = "keeps-state"
"""Marks the reply of a party that keeps a state, which a checkpoint then has to ask for."""
PEAK_MEMORY = "peak-memory"
"""Holds, in the replies of other processes, the largest resident memory of that process."""

_ORDER, _TENSORS = "order", "tensors"
_HELD, _HELD_IN = "held", "held in"
"""Name what a client holds for one training round alone, and that round."""
_MAIL = "mail/"
"""Begins the names of records that go from party to party, before the other one's name."""
_SEEN, _USED = "seen", "used rows"
"""Hold the diagnostics of a reply, which are no message (decision 005)."""
_STEPS_AT_HAND = 8
"""How many steps a client keeps unpickled; a trainer has one or two."""
_RAISED = 2
"""Flower's number for an exception in a client."""


# Flower's arrays are files of `np.save`: a header that tells type and shape, then the values. The
# header is made again and again for few types and shapes, and takes longer than copying a small
# tensor; hence the cache.
@lru_cache(maxsize=1024)
def _header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The bytes that `np.save` writes before the values."""
    buffer = BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def to_array(tensor: Tensor) -> Array:
    """A tensor as a Flower array, the bytes `Array(tensor)` would hold, at a third of the time.

    Args:
        tensor: Any shape, any type that numpy knows.

    Returns:
        A copy of the values.

    Raises:
        UnsupportedError: If numpy does not know the type.
    """
    try:
        values = tensor.detach().cpu().contiguous().numpy()
    except TypeError as error:
        raise UnsupportedError(
            f"A Flower array cannot hold {tensor.dtype}; send the tensor as torch.float32."
        ) from error
    data = b"".join((_header(values.dtype.str, values.shape), values.data))
    return Array(str(values.dtype), values.shape, "numpy.ndarray", data)


def to_tensor(array: Array) -> Tensor:
    """The tensor that `to_array` made an array of, with memory of its own."""
    # The values are the last bytes, whatever the header says; its length varies with its padding.
    dtype = np.dtype(array.dtype)
    start = len(array.data) - math.prod(array.shape) * dtype.itemsize
    values = np.ndarray(array.shape, dtype, buffer=array.data, offset=start)
    # A copy: bytes are read-only, and on a grid within one process all parties are sent the same
    # ones. A step that wrote into them would change what the others are sent.
    return torch.from_numpy(values.copy())


@dataclass
class Packer:
    """Makes the contents of messages; a tensor that goes to many parties is converted once.

    Args:
        order: What the parties are told to do with the tensors, if anything.
    """

    order: ConfigRecord | None = None
    # By id, since tensors compare by value. The tensor is stored along: were it freed, another one
    # could get its id, and be taken for it.
    _sent: dict[int, tuple[Tensor, Array]] = field(default_factory=dict, repr=False)

    def __call__(
        self, payload: Payload, mail: Mapping[str, Payload] = MappingProxyType({})
    ) -> RecordDict:
        """The content of one message, with what goes from party to party in it."""
        content = RecordDict({_TENSORS: self.record(payload)})
        for name, sent in mail.items():
            content[_MAIL + name] = self.record(sent)
        if self.order is not None:
            content[_ORDER] = self.order
        return content

    def record(self, payload: Payload) -> ArrayRecord:
        """Tensors as one record of a message."""
        record = ArrayRecord()
        for kind, tensor in payload.items():
            if id(tensor) not in self._sent:
                self._sent[id(tensor)] = (tensor, to_array(tensor))
            record[kind] = self._sent[id(tensor)][1]
        return record


def to_payload(content: RecordDict, name: str = _TENSORS) -> Payload:
    """The tensors of a message, on the CPU; none where it holds none."""
    if name not in content:
        return {}
    record = cast(ArrayRecord, content[name])
    return {kind: to_tensor(array) for kind, array in record.items()}


def mail_in(content: RecordDict) -> dict[str, Payload]:
    """Who mailed, or is mailed, which tensors in a message."""
    names = [name for name in content if name.startswith(_MAIL)]
    return {name.removeprefix(_MAIL): to_payload(content, name) for name in names}


def pack_reply(reply: Reply) -> RecordDict:
    """The content of a message that holds a reply."""
    content = Packer()(reply.message, reply.mail)
    seen = reply.seen
    if seen.numbers or seen.notes or seen.assumptions or seen.used is not None:
        content[_SEEN] = ConfigRecord(
            {
                "names": [printable(name) for name in seen.numbers],
                "numbers": [float(number) for number in seen.numbers.values()],
                "notes": [printable(text) for text in seen.notes],
                "assumptions": [printable(text) for text in seen.assumptions],
            }
        )
        if seen.used is not None:
            content[_USED] = ArrayRecord({_USED: to_array(seen.used)})
    return content


def read_reply(content: RecordDict) -> Reply:
    """The reply that `pack_reply` packed."""
    seen = Seen()
    if _SEEN in content:
        told = cast(ConfigRecord, content[_SEEN])
        names, numbers = cast(list[str], told["names"]), cast(list[float], told["numbers"])
        seen = Seen(
            numbers=dict(zip(names, numbers, strict=True)),
            notes=tuple(cast(list[str], told["notes"])),
            assumptions=tuple(cast(list[str], told["assumptions"])),
            used=to_payload(content, _USED).get(_USED),
        )
    return Reply(to_payload(content), mail_in(content), seen)


def to_order(step: Step) -> ConfigRecord:
    """The order to take a step: pickled, with the digest under which clients keep it."""
    pickled = cloudpickle.dumps(step)
    return ConfigRecord({"step": pickled, "digest": sha256(pickled).hexdigest()})


@dataclass
class Site:
    """What clients in one process share: this process, or one worker of Ray.

    Args:
        train: Party to rows.
        seeds: Streams for data order and initialisation.
        entropy: Streams for noise, shares and masks.
        device: Where tensors are computed.
        elsewhere: Whether it is in another process than the coordinator.
        others: Names of the parties that hold no rows.
        raised: Errors for a coordinator in the same process, by the number in their reply.
    """

    train: Mapping[str, Rows] = field(repr=False)
    seeds: Seeds
    entropy: Entropy
    device: str
    elsewhere: bool = False
    others: tuple[str, ...] = ()
    raised: dict[str, BaseException] = field(default_factory=dict, repr=False)
    cache: dict[str, Any] = field(default_factory=dict, repr=False)
    steps: dict[str, Step] = field(default_factory=dict, repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)

    def party(self, context: Context) -> str:
        """Whose client this is: named by our Grid, numbered by Flower's simulation."""
        if "party" in context.node_config:
            return str(context.node_config["party"])
        self.names = self.names or (*self.train, *self.others)
        return self.names[int(context.node_config["partition-id"])]

    def step(self, order: ConfigRecord) -> Step:
        """The step that was sent; the same object again where it was sent before."""
        # Every message carries the step, which may hold a model; it is unpickled only if it is new.
        digest = str(order["digest"])
        if digest not in self.steps:
            if len(self.steps) >= _STEPS_AT_HAND:
                self.steps.clear()
            self.steps[digest] = cloudpickle.loads(order["step"])
        return self.steps[digest]


def _take_step(site: Site, content: RecordDict, context: Context) -> RecordDict:
    order = cast(ConfigRecord, content[_ORDER])
    # A round that is taken once more, from a checkpoint, is another one.
    now = ConfigRecord({"round": order["round"], "restored": order["restored"]})
    party = Party(
        name=site.party(context),
        round=cast(int, order["round"]),
        train=site.train,
        state=to_payload(context.state),
        seeds=site.seeds,
        entropy=site.entropy,
        device=site.device,
        cache=site.cache,
        held=to_payload(context.state, _HELD) if context.state.get(_HELD_IN) == now else {},
        mail=mail_in(content),
    )
    # The same function as in one process: one thread, and errors that name the party.
    packed = pack_reply(take_step(site.step(order), to_payload(content), party))
    # Flower stores a client's context between messages, also where workers serve many clients.
    context.state = Packer()(party.state) if party.state else RecordDict()
    if party.held:
        context.state[_HELD] = Packer().record(party.held)
        context.state[_HELD_IN] = now
    if party.state:
        packed[KEEPS_STATE] = ConfigRecord()
    if site.elsewhere:
        packed[PEAK_MEMORY] = ConfigRecord(
            {
                "bytes": peak_memory(),
                "process": str(os.getpid()),
                "cpu_seconds": time.process_time(),
            }
        )
    return packed


def _tell_state(site: Site, content: RecordDict, context: Context) -> RecordDict:
    # Made anew: within one process a message and a context would hold the same record. What the
    # party holds is not told.
    return Packer()(to_payload(context.state))


def _set_state(site: Site, content: RecordDict, context: Context) -> RecordDict:
    context.state = content.copy()
    return RecordDict()


@dataclass(frozen=True)
class _Action:
    """One thing the client does when asked; whatever goes wrong becomes an error reply.

    Args:
        site: Gives the site of this process.
        do: What is done with a message.
    """

    site: Callable[[], Site]
    do: Callable[[Site, RecordDict, Context], RecordDict]

    def __call__(self, message: Message, context: Context) -> Message:
        try:
            return Message(self.do(self.site(), message.content, context), reply_to=message)
        # Whatever goes wrong here belongs to this party. Flower itself would pass on a text alone,
        # from which neither the type of the error nor the party could be told.
        except OWN_ERRORS as error:
            failed = isinstance(error, PartyLostError) and error.failed
            own = not isinstance(error, PrivtrainError) or failed or error.__cause__ is not None
            reason = {
                "type": type(error).__name__,
                "message": text_of(error),
                "where": traceback_of(error),
                "own": own,
                "failed": failed or not isinstance(error, PrivtrainError),
                "number": self._kept(error) if own else "",
            }
            return Message(Error(_RAISED, json.dumps(reason)), reply_to=message)

    def _kept(self, error: BaseException) -> str:
        """The number under which a coordinator in this process finds the error itself."""
        try:
            site = self.site()
        except OWN_ERRORS:  # the site is what failed
            return ""
        if site.elsewhere:
            return ""
        number = str(len(site.raised))
        # Of an error that wraps another one, that one: the coordinator wraps it in the same way.
        site.raised[number] = error.__cause__ or error
        return number


def client_app(site: Callable[[], Site]) -> ClientApp:
    """The Flower client of every party, in this process and on Ray alike.

    Args:
        site: Gives the site of the process in which the client runs.
    """
    app = ClientApp()
    app.train("step")(_Action(site, _take_step))
    app.train("restore")(_Action(site, _set_state))
    app.query("state")(_Action(site, _tell_state))
    return app


def raised_at(
    party: str, round: int, error: Error, raised: Mapping[str, BaseException] | None = None
) -> PrivtrainError:
    """What an error reply stands for: the error as it was raised, or that the party is lost.

    Args:
        party: Who replied.
        round: In which round.
        error: The reply.
        raised: The `raised` of the party's site where that is in this process.

    Returns:
        An error of privtrain's own type where one was raised, with the traceback in its notes. Of
        an error of user code, one that names the party; its cause is that error, or holds its text.
    """
    # Errors of Flower itself, such as a node that is gone, have other codes and a plain text.
    text = error.reason or f"Flower's error {error.code}"
    if error.code != _RAISED or not text.startswith("{"):
        return PartyLostError(f"{party} was lost in round {round}: {text}", party)
    reason = json.loads(text)
    lost = _rebuilt(party, round, reason)
    if reason["own"]:
        here = (raised or {}).get(reason["number"])
        lost.__cause__ = here or RaisedElsewhereError(reason["where"])
        lost.add_note(f"Raised at {party} in round {round}.")
    else:
        lost.add_note(f"Raised at {party} in round {round}:\n{reason['where']}")
    return lost


def _rebuilt(party: str, round: int, reason: Mapping[str, Any]) -> PrivtrainError:
    name, message, failed = reason["type"], reason["message"], bool(reason["failed"])
    if name == PartyLostError.__name__:
        return PartyLostError(message, party, failed=failed)
    # By name among our own errors, never by unpickling: what a party replies must not run code.
    kind = vars(errors).get(name)
    if kind is None:
        text = f"{party} failed in round {round}: {name}({message!r})"
        return PartyLostError(text, party, failed=failed)
    return cast(PrivtrainError, kind(message))
