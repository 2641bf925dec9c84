"""`privtrain party`: one party of a training on several hosts, started by hand or by torchrun.

No coordinator and no pickles: parties meet at a key-value store that rank 0 hosts, share their own
rows among each other, and open the trained weights together.
"""

import hashlib
import inspect
import os
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import tyro

from privtrain.core.validate import check_positive

if TYPE_CHECKING:
    from torch import nn

    from privtrain.core.runtime import MeshParty
    from privtrain.core.task import Rows, Task
    from privtrain.mpc.descent import PeerDescent
    from privtrain.trainers.mpc_sgd import MPCSGD


@dataclass(frozen=True, kw_only=True)
class PartyArgs:
    """Take part in a secret-shared training on several hosts, one command a host.

    Example: privtrain party --rank 0 --world-size 3 --rendezvous tcp://HOST:29500 study.toml

    The study file names this host's task and data, and the trainer's settings, which must be the
    same everywhere:

        task = "my_data.py:make"      # make() or make(rank) -> (task, rows) or (task, rows, test)
        seed = 0
        split = "rows"                # or "columns"
        [mpc_sgd]
        epochs = 3

    Rows stay on their host; the others receive shares only. All parties open the weights.
    """

    study: tyro.conf.Positional[Path]
    """The study file."""
    rank: int | None = None
    """Number of this party, from 0 (default: the environment variable RANK)."""
    world_size: int | None = None
    """How many parties there are, 2 or 3 (default: WORLD_SIZE)."""
    rendezvous: str | None = None
    """tcp://HOST:PORT of rank 0 (default: MASTER_ADDR and MASTER_PORT)."""
    timeout: float = 60.0
    """Seconds within which a party that died or froze ends the run everywhere."""
    out: Path | None = None
    """Where the trained weights are saved (default: nowhere)."""


@dataclass(frozen=True)
class Place:
    """Where a party stands among the others.

    Args:
        rank: Its number, from 0.
        count: How many parties there are.
        host: Host of rank 0.
        port: Port of rank 0.
        hosts_store: Whether this party hosts the store; under torchrun, its agent does.
    """

    rank: int
    count: int
    host: str
    port: int
    hosts_store: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parties, by rank."""
        return tuple(f"party-{rank}" for rank in range(self.count))


def place(args: PartyArgs) -> Place:
    """Where the party stands, from its arguments and torchrun's variables.

    Raises:
        ValueError: If something is missing or out of range.
    """
    rank = _number(args.rank, "rank", "RANK")
    count = _number(args.world_size, "world_size", "WORLD_SIZE")
    if count not in (2, 3):
        raise ValueError(f"Expected world_size={count} to be 2 or 3.")
    if not 0 <= rank < count:
        raise ValueError(f"Expected rank={rank} in 0..{count - 1}.")
    if args.rendezvous is None:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(f"Expected --rendezvous tcp://HOST:PORT, or {' and '.join(missing)}.")
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun's agent hosts the store itself; a second one would find the port taken.
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Place(rank, count, host, port, rank == 0 and not agent)
    url = urlparse(args.rendezvous)
    if url.scheme != "tcp" or not url.hostname or url.port is None:
        raise ValueError(f"Expected rendezvous={args.rendezvous!r} to look like tcp://HOST:PORT.")
    return Place(rank, count, url.hostname, url.port, rank == 0)


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
        PartyLostError: If another party dies, freezes or does not come.
        ProtocolError: If a party has other settings or breaks the protocol.
    """
    import torch

    from privtrain.core.parameters import load_vector, trainable
    from privtrain.core.runtime import MeshParty
    from privtrain.mpc.descent import agreed
    from privtrain.mpc.ranges import wrong_truncations
    from privtrain.runtimes.peers import Peers

    check_positive(timeout=args.timeout)
    where = place(args)
    # With one thread sums are formed in one order, so every host computes the same bits.
    torch.set_num_threads(1)
    # Before any party is met: a misspelled study file must not leave the others waiting.
    trainer, model, task, test, program = _prepare(args, where)
    with Peers(
        rank=where.rank,
        names=where.names,
        host=where.host,
        port=where.port,
        hosts_store=where.hosts_store,
        timeout=args.timeout,
    ) as peers:
        name = where.names[where.rank]
        party = MeshParty(name=name, rank=where.rank, names=where.names, inputs={})
        opened = peers.run(lambda: program(party)["weights"])
    load_vector(trainable(model), agreed({name: opened}, program.rows.inputs))
    if program.descent.by_rows:
        wrong_truncations(model, program.rows, weights="opened")
    _tell(args, trainer, model, task, test, party)
    return 0


def _prepare(
    args: PartyArgs, where: Place
) -> "tuple[MPCSGD, nn.Module, Task, Rows | None, PeerDescent]":
    from privtrain.command.tables import make_trainer
    from privtrain.command.user_code import import_named
    from privtrain.core.parameters import initial_model, to_vector
    from privtrain.core.seeding import Seeds
    from privtrain.core.task import ROWS, FederatedData, Split
    from privtrain.mpc.descent import PeerDescent
    from privtrain.mpc.ranges import check_weights, wrong_truncations
    from privtrain.trainers.mpc_sgd import MPCSGD

    table = read(args.study)
    # What the study file names may import its neighbours, wherever the command was started.
    sys.path.insert(0, str(args.study.resolve().parent))
    make = import_named(_reference(table["task"], args.study), "task")
    takes_rank = len(inspect.signature(make).parameters) > 0
    task, rows, *rest = make(where.rank) if takes_rank else make()
    test = rest[0] if rest else None
    # Here every party computes; a study file that says otherwise is refused below.
    settings = {"computing_parties": where.count} | table.get("mpc_sgd", {})
    trainer = make_trainer("mpc_sgd", settings)
    if not isinstance(trainer, MPCSGD) or trainer.computing_parties != where.count:
        raise ValueError(f"Expected computing_parties to be world_size={where.count}.")
    trainer.engine.check(where.count)
    seeds = Seeds(int(table.get("seed", 0)))
    split = Split(table.get("split", ROWS))
    model = initial_model(task, seeds["initialisation", 0, ""])
    shape_of_data = FederatedData(train={}, test=rows, split=split)
    descent = trainer.program(task, model, shape_of_data, seeds)
    check_weights(model)
    # Rows that are not finite, or of another width, are named at all parties once they are there.
    if split is ROWS and bool(rows.inputs.isfinite().all()):
        with suppress(RuntimeError):
            wrong_truncations(model, rows, weights="initial")
    # The others compare this digest before anything is shared: parties with other settings or
    # another start would train a model that is nobody's.
    start = to_vector(model.parameters()).double().numpy().tobytes()
    text = f"{trainer}/{model}/{seeds}/{split}".encode()
    digest = int.from_bytes(hashlib.sha256(text + start).digest()[:7], "big")
    return trainer, model, task, test, PeerDescent(descent=descent, rows=rows, digest=digest)


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
    known = ("task", "seed", "split", "mpc_sgd")
    for name in table:
        if name not in known:
            raise ValueError(f"{path}: no entry {name!r} for a party; there is {', '.join(known)}.")
    if "task" not in table:
        raise ValueError(f'{path} must name this host\'s task and data: task = "module:function".')
    return table


def _tell(
    args: PartyArgs,
    trainer: "MPCSGD",
    model: "nn.Module",
    task: "Task",
    test: "Rows | None",
    party: "MeshParty",
) -> None:
    import torch

    from privtrain.core.parameters import ModelPredictor

    # Printed and saved by every party: all of them opened the same weights.
    sent = sum(entry.bytes for entry in party.entries)
    parties, engine = len(party.names), trainer.engine.name
    print(f"{party.name}: trained {trainer.epochs} epochs with {parties} parties on {engine}")
    print(f"{party.name}: sent {sent} bytes in {len({e.round for e in party.entries})} rounds")
    if test is not None:
        logits = ModelPredictor(model)(test.inputs)
        for name, metric in task.metrics.items():
            # Copies: a metric may write into what it is given, and another one follows.
            value = metric(logits.clone(), test.labels.clone())
            print(f"{party.name}: {name} {value:.4f} on {len(test)} rows")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), args.out)
        print(f"{party.name}: weights saved to {args.out}")
    # Shares hide rows from the other parties, not from who reads the opened weights.
    opened = "the opened weights are exact: nothing is promised to whoever reads them"
    for line in (opened, *trainer.engine.input_privacy(party.names), *trainer.caveats):
        print(f"{party.name}: {line}")
