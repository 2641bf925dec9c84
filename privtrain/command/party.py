"""`privtrain party`: one party of a training on several hosts, started by hand or by torchrun.

No coordinator and no pickles: parties meet at a key-value store that rank 0 hosts, and each runs
the program that the trainer has for its role. The trainer is any that can do so (`MeshTrainer`).
"""

import dataclasses
import inspect
import os
import sys
import time
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlparse

import tyro

from privtrain.command.ahead import Ahead
from privtrain.command.keys import transport_of
from privtrain.command.part import Part, check_out, kept_alone, tell_cost, tell_result
from privtrain.core.validate import check_positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from privtrain.core.abilities import Keeping, MeshTrainer
    from privtrain.core.links import Link


PARTY = "party"
"""The role of who holds rows."""

_ENTRIES = ("task", "seed", "split", "checkpoints")


@dataclass(frozen=True, kw_only=True)
class PartyArgs:
    """Take part in a training on several hosts without a coordinator, one command a host.

    Example: privtrain party --rank 0 --world-size 3 --rendezvous tcp://HOST:29500 study.toml

    The study file names this host's task and data, and the trainer's settings, which must be the
    same everywhere:

        task = "my_data.py:make"      # make() or make(rank) -> (task, rows) or (task, rows, test)
        seed = 0
        split = "rows"                # or "columns"
        checkpoints = "kept"          # a folder: an interrupted run goes on (default: it begins)
        [mpc_sgd]                     # or another trainer that needs no coordinator
        epochs = 3

    Rows stay on their host; the others receive shares only. All parties open the weights.
    Who helps without rows, such as the dealer of mpc_sgd's default engine, says --role dealer and
    has no rank: make(None). With engine = { kind = "CrypTen" } there is none.
    With --keys connections are encrypted and roles are proven: privtrain party keys --help.
    The dealer can deal first: --material FOLDER --deal at the parties and --deal at the dealer,
    then the same commands without --deal and without the dealer.
    """

    study: tyro.conf.Positional[Path]
    """The study file."""
    rank: int | None = None
    """Number of this party, from 0 (default: the environment variable RANK)."""
    world_size: int | None = None
    """How many parties hold rows, 2 to 5 (default: WORLD_SIZE)."""
    role: str = PARTY
    """What this process does: "party" holds rows; other roles are those of the trainer's engine."""
    rendezvous: str | None = None
    """tcp://HOST:PORT of rank 0 (default: MASTER_ADDR and MASTER_PORT)."""
    timeout: float = 60.0
    """Seconds within which a party that died or froze ends the run everywhere."""
    out: Path | None = None
    """Where the trained weights are saved (default: nowhere)."""
    keys: Path | None = None
    """Folder with this party's keys, from privtrain party keys: its links and the rendezvous then
    use mutual TLS 1.3, but not channels that an engine opens by itself, as CrypTen does (default:
    no TLS)."""
    material: Path | None = None
    """Where this party keeps what the dealer dealt ahead, for one run (default: the dealer deals
    while the parties train)."""
    deal: bool = False
    """Let the dealer deal into the folders of --material, and train nothing."""
    material_bound: int | None = None
    """Bytes that may lie in that folder; where it is full, dealing waits until a second command of
    this party has used some (default: 1 GiB)."""

    @property
    def ahead(self) -> Ahead:
        """The options of material that is made ahead."""
        return Ahead(folder=self.material, deal=self.deal, bound=self.material_bound)


@dataclass(frozen=True)
class Place:
    """Where a party stands among the others.

    Args:
        rank: Its number, from 0; None for one without rows, which is known by its role.
        count: How many parties hold rows.
        host: Host of rank 0.
        port: Port of rank 0.
        launched: Whether torchrun gave out the ranks and hosts the store; else rank 0 hosts it.
    """

    rank: int | None
    count: int
    host: str
    port: int
    launched: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parties that hold rows, by rank."""
        return tuple(f"party-{rank}" for rank in range(self.count))


def place(args: PartyArgs) -> Place:
    """Where the party stands, from its arguments and torchrun's variables.

    Raises:
        ValueError: If something is missing or out of range.
    """
    rank = _number(args.rank, "rank", "RANK") if args.role == PARTY else None
    count = _number(args.world_size, "world_size", "WORLD_SIZE")
    if not 2 <= count <= 5:
        raise ValueError(f"Expected world_size={count} in 2..5.")
    if rank is None and args.rank is not None:
        raise ValueError(f"Expected no --rank with --role {args.role}: it has no rows.")
    if rank is not None and not 0 <= rank < count:
        raise ValueError(f"Expected rank={rank} in 0..{count - 1}.")
    if args.rendezvous is None:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(f"Expected --rendezvous tcp://HOST:PORT, or {' and '.join(missing)}.")
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun's agent hosts the store itself; a second one would find the port taken.
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Place(rank, count, host, port, agent)
    url = urlparse(args.rendezvous)
    if url.scheme != "tcp" or not url.hostname or url.port is None:
        raise ValueError(f"Expected rendezvous={args.rendezvous!r} to look like tcp://HOST:PORT.")
    return Place(rank, count, url.hostname, url.port)


def _number(given: int | None, name: str, variable: str) -> int:
    if given is not None:
        return given
    if not os.environ.get(variable, "").isdigit():
        option = name.replace("_", "-")
        raise ValueError(f"Expected --{option} or the environment variable {variable}.")
    return int(os.environ[variable])


def run_party(args: PartyArgs) -> int:
    """Takes part in a training.

    Args:
        args: The command's arguments.

    Returns:
        0; everything else is an error.

    Raises:
        ValueError: If an argument or an entry of the study file is wrong.
        UnsupportedError: If the trainer needs a coordinator.
        PartyLostError: If another party dies, freezes or does not come.
        ProtocolError: If a party has other settings or breaks the protocol.
    """
    check_positive(timeout=args.timeout)
    where = place(args)
    args.ahead.check(args.role, holds_rows=where.rank is not None)
    # What torch's store says in C++ of a lost party is twenty lines before the one that names it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from privtrain.core.runtime import Party
    from privtrain.core.seeding import SystemEntropy
    from privtrain.mpc.checkpoints import forget, leave
    from privtrain.report.progress import progress_bar
    from privtrain.runtimes.links import SocketLink
    from privtrain.runtimes.peers import Peers

    # With one thread sums are formed in one order, so every host computes the same bits.
    torch.set_num_threads(1)
    # Before any party is met: a misspelled study file must not leave the others waiting.
    check_out(args.out)
    part = _prepare(args, where)
    transport = transport_of(args.keys, part.name, launched=where.launched)
    rank = part.names.index(part.name)
    with (
        kept_alone(part),
        Peers(
            rank=rank,
            names=part.names,
            host=where.host,
            port=where.port,
            timeout=args.timeout,
            transport=transport,
            launched=where.launched,
            tell=lambda line: print(f"{part.name}: {line}", file=sys.stderr, flush=True),
        ) as peers,
        progress_bar(part.name) as progress,
        SocketLink(
            names=part.names,
            rank=rank,
            board=peers.board,
            timeout=args.timeout,
            watch=progress,
            transport=transport,
        ) as link,
    ):
        party = Party(
            name=part.name,
            round=0,
            train={} if part.rows is None else {part.name: part.rows},
            state={},
            seeds=part.seeds,
            entropy=SystemEntropy(),
            link=link,
        )

        def take_part() -> "dict[str, Tensor]":
            _compare(part.digest, link)
            return part.program({}, party)

        began = time.monotonic()
        result = peers.run(take_part)
        seconds = time.monotonic() - began
        trained = (
            part.rows is not None
            and not args.deal
            and part.trainer.finish_peer(part.model, result, part.rows, part.split)
        )
        if "start" in result and int(result["start"][0]):
            print(f"{part.name}: taken up after {int(result['start'][0])} steps")
        tell_cost(part, link, seconds)
        if not args.deal:
            tell_result(part, where.names, args.out, trained=trained)
        if part.keeping is not None and trained and args.out is not None:
            # Not before the weights are saved: nothing that was finished is lost.
            forget(part.keeping)
    if part.keeping is not None:
        leave(part.keeping)
    return 0


def _prepare(args: PartyArgs, where: Place) -> Part:
    from privtrain.command.user_code import import_named
    from privtrain.core.parameters import initial_model
    from privtrain.core.seeding import Seeds
    from privtrain.core.task import ROWS, Split
    from privtrain.mpc.checkpoints import study_digest

    table = read(args.study)
    # What the study file names may import its neighbours, wherever the command was started.
    sys.path.insert(0, str(args.study.resolve().parent))
    trainer = _trainer(table, where.count)
    make = import_named(_reference(table["task"], args.study), "task")
    takes_rank = len(inspect.signature(make).parameters) > 0
    task, rows, *rest = make(where.rank) if takes_rank else make()
    seeds, split = Seeds(int(table.get("seed", 0))), Split(table.get("split", ROWS))
    model = initial_model(task, seeds["initialisation", 0, ""])
    own = rows if where.rank is not None else None
    if where.rank is not None and own is None:
        raise ValueError(
            f"Expected task={table['task']!r} to give rows: this is a party with rows."
        )
    name = args.role if where.rank is None else where.names[where.rank]
    args.ahead.check_checkpoints(table.get("checkpoints"))
    start = study_digest(f"{model}/{seeds}/{split}/{where.names}", model)
    keeping = _keeping(table, args.study, name, start)
    programs = trainer.peer_programs(
        where.names, task=task, model=model, split=split, rows=own, keeping=keeping
    )
    text = f"{trainer}/{model}/{seeds}/{split}/{tuple(programs)}"
    if args.ahead.phase:
        # The study is the same, and its digest knows no folder: material is bound to it, and to
        # the version, since another one may draw in another order.
        trainer = args.ahead.applied(
            trainer,
            study=study_digest(text + version("privtrain"), model),
            tell=lambda line: print(f"{name}: {line}", file=sys.stderr, flush=True),
        )
        programs = trainer.peer_programs(where.names, task=task, model=model, split=split, rows=own)
    helpers = [other for other in programs if other not in where.names]
    if name not in programs or (where.rank is None and name not in helpers):
        raise ValueError(
            f"Expected role={args.role!r} to be one of {', '.join([PARTY, *helpers])}: there is no "
            f"other with {trainer}."
        )
    names = tuple(programs)
    return Part(
        name=name,
        names=names,
        program=programs[name],
        trainer=trainer,
        task=task,
        model=model,
        rows=own,
        test=rest[0] if rest else None,
        seeds=seeds,
        split=split,
        digest=_digest(
            text + args.ahead.phase + ("" if keeping is None else "/checkpoints"), model
        ),
        phase=args.ahead.phase,
        keeping=keeping,
    )


def _keeping(table: dict[str, Any], study: Path, name: str, digest: str) -> "Keeping | None":
    """Where a party keeps its part of the run: a folder beside the study file."""
    from privtrain.core.abilities import Keeping
    from privtrain.mpc.checkpoints import own_folder

    folder = table.get("checkpoints")
    if folder is None:
        return None
    if not isinstance(folder, str) or not folder:
        raise ValueError(
            f'{study}: expected checkpoints={folder!r} to be a folder, such as "kept".'
        )
    home = study.resolve().parent / folder
    return Keeping(folder=own_folder(home, name), name=name, study=digest)


def _trainer(table: dict[str, Any], count: int) -> "MeshTrainer":
    """The trainer of a study file, for so many parties with rows.

    Raises:
        UnsupportedError: If it needs a coordinator.
    """
    from privtrain.command.names import TRAINERS
    from privtrain.command.tables import make_trainer
    from privtrain.core.abilities import MeshTrainer
    from privtrain.core.errors import UnsupportedError
    from privtrain.trainers.mpc_sgd import MPCSGD

    token = next((name for name in table if name not in _ENTRIES), MPCSGD.token)
    kind: type[Any] = TRAINERS[token]
    if not issubclass(kind, MeshTrainer):
        able = [name for name in TRAINERS if issubclass(TRAINERS[name], MeshTrainer)]
        raise UnsupportedError(
            f"{token} cannot be trained among parties alone: it needs a coordinator or all rows in "
            f"one place. Use {', '.join(able)} here, or privtrain fit for {token}."
        )
    # Here every party with rows computes; a study file that says otherwise is refused.
    known = {item.name for item in dataclasses.fields(TRAINERS[token])} & {"computing_parties"}
    trainer = make_trainer(token, dict.fromkeys(known, count) | table.get(token, {}))
    # `issubclass` said so; mypy knows the instance by the protocol of trainers alone.
    return cast("MeshTrainer", trainer)


def _digest(text: str, model: "nn.Module") -> "Tensor":
    import torch

    from privtrain.mpc.checkpoints import study_digest

    # Parties with other settings or another start would train a model that is nobody's.
    return torch.frombuffer(bytearray.fromhex(study_digest(text, model)), dtype=torch.uint8)


def _compare(digest: "Tensor", link: "Link") -> None:
    """Compares what must be equal with all parties, before anything is shared.

    Raises:
        ProtocolError: Naming the first party that differs from rank 0.
    """
    import torch

    from privtrain.core.errors import ProtocolError

    others = [name for rank, name in enumerate(link.names) if rank != link.rank]
    for name in others:
        link.send(name, "settings", digest)
    said = {name: link.receive(name, "settings") for name in others}
    said[link.names[link.rank]] = digest
    first = link.names[0]
    for name in link.names:
        if not torch.equal(said[name], said[first]):
            raise ProtocolError(
                f"{name} has other settings, roles or initial weights than {first}; all parties "
                "need the same study file and task, and --deal, where it is given, everywhere."
            )


def _reference(task: str, study: Path) -> str:
    """A file is looked for beside the study that names it."""
    place, _, name = task.rpartition(":")
    return f"{study.resolve().parent / place}:{name}" if place.endswith(".py") else task


def read(path: Path) -> dict[str, Any]:
    """The study file of a party.

    Raises:
        ValueError: If it is missing, no TOML, or has unknown entries.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"Cannot read the study file {path}: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"The study file {path} is not valid TOML: {error}.") from error
    trainers = [name for name, entry in table.items() if isinstance(entry, dict)]
    for name in table:
        if name not in _ENTRIES and name not in trainers:
            raise ValueError(
                f"{path}: no entry {name!r} for a party; there is {', '.join(_ENTRIES)}, and the "
                "table of a trainer, such as [mpc_sgd]."
            )
    if len(trainers) > 1:
        raise ValueError(f"{path} must have the table of one trainer; it has {trainers}.")
    if "task" not in table:
        raise ValueError(f'{path} must name this host\'s task and data: task = "module:function".')
    return table
