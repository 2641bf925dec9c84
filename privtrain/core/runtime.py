"""Where parties run: a star around a coordinator, or a mesh in which each runs a program."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.links import Link
from privtrain.core.seeding import Entropy, OnceOnly, Seeds
from privtrain.core.task import FederatedData, Rows, check_party_values
from privtrain.core.transcript import Entry, Setup, Transcript
from privtrain.core.validate import check_offers

# Tensors and nothing else, numbers too: whatever is sent has bytes that the transcript counts.
Payload = dict[str, Tensor]
"""What is sent: tensors by kind. Numbers travel as tensors without dimensions."""

# A worker plays many parties in turn. The rows of all of them would take the memory that loading
# them lazily saves.
ROWS_AT_HAND = 64
"""The number of parties whose loaded rows a worker keeps."""


@dataclass(frozen=True)
class Draws:
    """What one data holder's training draws from, wherever its rows lie.

    Args:
        seeds: Streams for data order and initialisation.
        entropy: Streams for noise; of a party, each of them is given out once.
        round: Training round, from 0.
        name: Whose streams they are: a party, or one of several models of a party.
        device: Where tensors are computed.
        cache: See `Party`.
    """

    seeds: Seeds
    entropy: Entropy | OnceOnly
    round: int
    name: str
    device: str = "cpu"
    cache: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Party:
    """A party's side of a run: what a step, or a program of a mesh, may use.

    Args:
        name: Name of the party.
        round: Training round, from 0: the name of this round's streams.
        train: Party to rows; a party reads its own only.
        state: What the party keeps from round to round; the runtime stores it. It reaches the
            coordinator, which keeps it in the run's checkpoint: no place for a secret.
        held: What the party holds until its training round ends, such as a private key. It never
            leaves the party: no coordinator and no checkpoint has it.
        seeds: Streams for data order and initialisation.
        entropy: Streams for noise, shares and masks; a step gets each of them once.
        device: Where tensors are computed.
        cache: A cache of the worker that runs the step, such as a model to overwrite. It may
            vanish at any time and must not change results.
        mail: Party to what it mailed in this training round, since this one's last exchange.
        sent: What the coordinator sent for this exchange; the payload of the step.
        link: Connections to the other parties of a mesh; None in a star.
    """

    name: str
    round: int
    train: Mapping[str, Rows] = field(repr=False)
    state: Payload
    seeds: Seeds
    entropy: Entropy | OnceOnly
    device: str = "cpu"
    cache: dict[str, Any] = field(default_factory=dict, repr=False)
    held: Payload = field(default_factory=dict, repr=False)
    mail: Mapping[str, Payload] = field(default_factory=dict, repr=False)
    # An aggregation has to find its own part of a message, which the step that a trainer wrote
    # knows nothing of.
    sent: Payload = field(default_factory=dict, repr=False)
    link: Link | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # Here and not in each runtime: no way of running parties can give a stream out twice.
        if not isinstance(self.entropy, OnceOnly):
            self.entropy = OnceOnly(self.entropy)

    @property
    def draws(self) -> Draws:
        """What training on the party's rows draws from; no stream is given out a second time."""
        return Draws(
            seeds=self.seeds,
            entropy=self.entropy,
            round=self.round,
            name=self.name,
            device=self.device,
            cache=self.cache,
        )

    @property
    def rows(self) -> Rows:
        """The party's own rows; the worker keeps those of a few parties at hand.

        Raises:
            DataError: If a value is not finite, or the party holds no rows, with its name.
        """
        held: dict[str, Rows] = self.cache.setdefault("rows", {})
        if self.name not in held:
            if self.name not in self.train:
                raise DataError(f"{self.name} takes part without rows: it has none to read.")
            # Which ones are dropped does not matter: they are loaded again, as the same rows.
            if len(held) >= ROWS_AT_HAND:
                held.clear()
            rows = self.train[self.name]
            # Where there are many parties, nobody looked at their rows before: a broken one would
            # count as a zero update without a word. An empty one is for the step to judge, since
            # under noise it takes part like any other.
            check_party_values(self.name, rows)
            held[self.name] = rows
        return held[self.name]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a step saw of private rows: diagnostics of a simulation, never a message.

    No channel sends or records them as messages, and a deployment withholds them (decision 005).

    Args:
        numbers: Figures by name, such as a training loss.
        notes: What the reader of the result should know.
        assumptions: What the step's promises rest on, as it turned out.
        used: Marks of the rows that were drawn, boolean, shape `(rows,)`; None where all were.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    used: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Reply:
    """What a party answers in one exchange.

    Args:
        message: What it sends to the coordinator.
        mail: Party to what it is sent; the coordinator passes it on and does not read it.
            Whatever computes on shares, such as `computing-0`, may be named, too: the coordinator
            of a simulation then hands it over to the mesh. Only that is in what `Star.map` returns.
        seen: Diagnostics of a simulation.
    """

    message: Payload
    mail: Mapping[str, Payload] = field(default_factory=dict)
    seen: Seen = Seen()


# A closure would not pickle, and could not be sent to a worker in another process.
Step = Callable[[Payload, Party], Reply]
"""What a party does with a message; a frozen dataclass with `__call__` that pickles."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a star runtime needs to start its parties.

    Args:
        data: Who holds which rows.
        seeds: Streams for data order and initialisation.
        entropy: Streams for noise, shares and masks.
        transcript: Where every message is recorded.
        device: Where tensors are computed.
        report_memory: Called with the largest resident memory, in bytes, of each other process in
            which a party runs.
        others: Names of the parties that hold no rows, such as a holder of keys.
        report_cpu: Called as `report_cpu(process, seconds)` with the processor time that another
            process in which parties run has taken since it began.
    """

    data: FederatedData
    seeds: Seeds
    entropy: Entropy
    transcript: Transcript
    device: str = "cpu"
    report_memory: Callable[[int], None] = field(default=lambda peak: None)
    others: tuple[str, ...] = ()
    report_cpu: Callable[[str, float], None] = field(default=lambda process, seconds: None)

    def __post_init__(self) -> None:
        held = [name for name in self.others if name in self.data.train]
        if held:
            raise ValueError(f"Expected others={self.others} to hold no rows; {held[0]} does.")
        # Whoever reads the transcript has to tell a participant from a party that helps.
        self.transcript.others = self.others

    def knows(self, name: str) -> bool:
        """Whether a name is that of a party, with rows or without; no rows are loaded."""
        return name in self.data.train or name in self.others


class Star(Protocol):
    """An open star: the coordinator's channel to its parties."""

    # Replies come in the order of `payloads`, however they arrive: floats are added in that order,
    # and every runtime has to give the same bits.
    def map(
        self,
        step: Step,
        payloads: Mapping[str, Payload],
        *,
        round: int,
        at_least: int | None = None,
    ) -> dict[str, Reply]:
        """Sends each named party its payload, lets it take the step, and gathers the replies.

        Each call is one exchange, which the transcript numbers. What parties mail to one another
        is handed over in the next exchange in which the receiver replies, within the same training
        round; what waits when another round begins is dropped. The replies that are returned do
        not hold it: it is no message to the coordinator.

        Args:
            step: What every named party does.
            payloads: Party to what it is sent; any party of the setting, with rows or without.
            round: Training round, from 0: the name of the parties' streams.
            at_least: How many have to reply; whoever is lost is then left out. None for all.

        Returns:
            Party to reply, in the order of `payloads`.

        Raises:
            ValueError: If a name is nobody's, or fewer are asked than have to reply.
            PartyLostError: If fewer reply, with the names of the lost; or if the code of one
                raises an error, however many have to reply.
            ProtocolError: If a party mails something to nobody, or a kind that it mailed already
                and that still waits.
        """
        ...

    def states(self) -> dict[str, Payload]:
        """What each party keeps from round to round, for a checkpoint; nothing that it holds.

        Of who is lost, what the last call told, or nothing: a round may go on without it.
        """
        ...

    def restore(self, states: Mapping[str, Payload]) -> None:
        """Hands each party the state that a checkpoint has of it; what it held is gone."""
        ...


class StarRuntime(Protocol):
    """A way to run the parties of a star."""

    @property
    def name(self) -> str:
        """What the runtime is called."""
        ...

    @property
    def real(self) -> bool:
        """Whether parties are separate processes that must not share secrets."""
        ...

    def open(self, setting: Setting) -> AbstractContextManager[Star]:
        """Starts the parties."""
        ...


@runtime_checkable
class Importing(Protocol):
    """A runtime that starts processes, which a warm-up must not do."""

    def import_parts(self) -> None:
        """Imports in this process what starting would import; nothing where it is missing."""
        ...


def link_of(party: Party) -> Link:
    """The party's connections to the other parties of its mesh.

    Raises:
        UnsupportedError: If it is in none.
    """
    if party.link is None:
        raise UnsupportedError(f"{party.name} has no link to other parties: it is in no mesh.")
    return party.link


Program = Callable[[Payload, Party], Payload]
"""What one role of a mesh runs on its inputs; a frozen dataclass with `__call__` that pickles."""


@dataclass(frozen=True, kw_only=True)
class MeshReply:
    """What one party of a mesh gives back.

    Args:
        payload: Its result.
        entries: Messages it sent.
        setups: What it knew without a message.
        peak_memory_bytes: Largest resident memory of its process.
    """

    payload: Payload
    # Each process records what it sent: the transcript of the run lives in another one.
    entries: Sequence[Entry] = ()
    setups: Sequence[Setup] = ()
    peak_memory_bytes: int = 0


class MeshRuntime(Protocol):
    """A way to let several parties each run a program and talk to each other."""

    @property
    def name(self) -> str:
        """What the runtime is called."""
        ...

    @property
    def real(self) -> bool:
        """Whether parties are separate processes that must not share secrets."""
        ...

    def run(
        self,
        programs: Mapping[str, Program],
        inputs: Mapping[str, Payload],
        *,
        seeds: Seeds = Seeds(0),
        report: Callable[[int, int], None] | None = None,
    ) -> dict[str, MeshReply]:
        """Runs a program at every party; each draws secrets from entropy of its own.

        Args:
            programs: Party to what it runs, in the order of ranks.
            inputs: Party to what it brings; who brings nothing may be left out.
            seeds: Public streams, the same at every party.
            report: Called as `report(done, total)` while rank 0 makes progress.

        Returns:
            Party to reply, in the order of ranks.

        Raises:
            PartyLostError: If a party dies or freezes; its name is in the error.
            ProtocolError: If a party breaks the protocol.
            ValueError: If there is no program, or inputs of a party that runs none.
        """
        ...


def check_inputs(programs: Mapping[str, Program], inputs: Mapping[str, Payload]) -> None:
    """Refuses a mesh without programs, and inputs that no program would read.

    Raises:
        ValueError: With the names of the parties.
    """
    strangers = [name for name in inputs if name not in programs]
    if strangers or not programs:
        raise ValueError(
            f"Expected inputs of parties that run a program, which are {list(programs)}; there are "
            f"inputs of {strangers}."
        )


NO_STAR = (
    "This trainer needs rounds around a coordinator: give runtimes=Runtimes(star=InProcess())."
)
"""What is said where a star is missing."""

NO_MESH = (
    "This trainer needs processes that talk to each other: give "
    "runtimes=Runtimes(mesh=Processes())."
)
"""What is said where a mesh is missing."""


@dataclass(frozen=True, kw_only=True)
class Runtimes:
    """The runtimes a trainer may use; a trainer says which it needs.

    Args:
        star: For rounds around a coordinator.
        mesh: For secret-shared computation.

    Raises:
        ValueError: If one of them is something else.
    """

    # No defaults: the runtimes stand above this package, so `fit` and `compare` fill them in
    # (decision 009).
    star: StarRuntime | None = None
    mesh: MeshRuntime | None = None

    def __post_init__(self) -> None:
        if self.star is not None:
            check_offers("open", "pt.InProcess()", star=self.star)
        if self.mesh is not None:
            check_offers("run", "pt.Processes()", mesh=self.mesh)

    @property
    def real(self) -> bool:
        """Whether any of them runs real processes."""
        return any(runtime is not None and runtime.real for runtime in (self.star, self.mesh))
