"""Flower's own parts: its Grid in this process, and its simulation on Ray.

Names that flwr does not publish are used in this file alone, since any version may rename them:
its test holds them, and flwr is pinned to the minor versions 1.41 and 1.42, which have them all.
"""

import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch

from privtrain.core.errors import ProtocolError
from privtrain.core.runtime import Setting
from privtrain.runtimes.flower.client import Site, quiet_import

with quiet_import():
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.proto.task_pb2 import Task
    from flwr.server.superlink.fleet.vce.metrics import VceMetrics
    from flwr.server.superlink.fleet.vce.vce_api import (
        _register_node_info_stores,
        _register_nodes,
        run_api,
    )
    from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
    from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
    from flwr.serverapp import Grid
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.federation import NoOpFederationManager
    from flwr.superlink.grid import InMemoryGrid

_RUN_ID = 1
_POLL_SECONDS = 0.01
_PATIENCE_SECONDS = 10.0


@contextmanager
def coordinator() -> Iterator[None]:
    """Makes this process the sender of Flower messages, as Flower's launcher would."""
    # Flower keeps the sender in class attributes and sets them once, when it starts a process. Here
    # the process is the user's and may speak Flower itself: they are put back.
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def create(
    content: RecordDict, what: str, node: int, group: str, ttl: float | None = None
) -> Message:
    """A new message from the coordinator to a node."""
    with coordinator():
        return Message(content, node, what, ttl=ttl, group_id=group)


class LocalGrid(Grid):
    """Flower's Grid in this process: a message runs its client at once.

    Flower means `Grid` to be implemented, hence the base class. A client costs nothing before it
    is sent a message.

    Args:
        app: The client.
        parties: Names of all parties; only the names are read.
    """

    def __init__(self, app: ClientApp, parties: Mapping[str, object]) -> None:
        self._app = app
        self._parties = parties
        self._nodes: dict[str, int] = {}
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self._run = Run.create_empty(run_id=_RUN_ID)

    def set_run(self, run: Run) -> None:
        """Sets which run the messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run the messages belong to."""
        return self._run

    def node_of(self, party: str) -> int:
        """The number of a party's node, given out when it is first asked for."""
        if party not in self._nodes:
            node = SUPERLINK_NODE_ID + 1 + len(self._nodes)
            self._nodes[party] = node
            config: dict[str, Any] = {"party": party, "num-partitions": len(self._parties)}
            self._contexts[node] = Context(self._run.run_id, node, config, RecordDict(), {})
        return self._nodes[party]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A new message from the coordinator to a node."""
        return create(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of all nodes, in the order of the parties."""
        return [self.node_of(party) for party in self._parties]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Runs the client of each message and keeps its reply."""
        numbers = []
        for message in messages:
            number = str(next(self._numbers))
            # Flower's server numbers messages, and there is none; a message has no setter for it.
            message.metadata.__dict__["_message_id"] = number
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
            reply.metadata.__dict__["_message_id"] = f"{number}-reply"
            self._replies[number] = reply
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that nobody has pulled yet."""
        # Each reply is handed out once, as Flower's server does, so that none piles up here.
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Runs the client of each message and hands out the replies; nothing is waited for."""
        return self.pull_messages(self.push_messages(messages))


def site_of(setting: Setting, *, elsewhere: bool) -> Site:
    """What the clients of a setting share, in this process or elsewhere."""
    return Site(
        setting.data.train,
        setting.seeds,
        setting.entropy,
        setting.device,
        elsewhere,
        setting.others,
    )


@lru_cache(maxsize=1)
def site_in(file: Path) -> Site:
    """The site of this worker, read once in its life."""
    torch.set_num_threads(1)  # as everywhere, so that sums have the same bits
    # Written by the process that started this worker, hence a pickle that can be trusted.
    return cast(Site, torch.load(file, weights_only=False))


@dataclass
class Simulation:
    """Flower's own simulation, in a thread of its own, so that the trainer controls the rounds.

    Args:
        timeout_seconds: How long the replies of a round may take.
    """

    timeout_seconds: float
    _stop: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None
    _backend: Any = None
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @contextmanager
    def running(
        self, app: ClientApp, parties: tuple[str, ...], settings: dict[str, Any]
    ) -> Iterator[tuple[Grid, dict[str, int]]]:
        """Runs the simulation, with one node a party.

        Args:
            app: The client of every party.
            parties: Names of the parties.
            settings: Of Flower's Ray back end.

        Yields:
            Flower's Grid, and the number of each party's node.
        """
        states, run = _link_state()
        nodes = _register_nodes(len(parties), states)
        grid = InMemoryGrid(states)
        grid.set_run(run)
        simulate = partial(
            run_api,
            app_fn=lambda: app,
            backend_fn=partial(self._start_ray, settings),
            nodes_mapping=nodes,
            state_factory=states,
            node_info_stores=_register_node_info_stores(nodes, run),
            f_stop=self._stop,
            metrics=VceMetrics(),
        )
        thread = threading.Thread(target=self._run, args=(simulate,), name="flower-simulation")
        thread.start()
        try:
            yield grid, {parties[partition]: node for node, partition in nodes.items()}
        finally:
            self._end(thread)

    def _run(self, simulate: Callable[[], None]) -> None:
        try:
            simulate()
        # Nobody above this thread could catch it; it is raised where replies are awaited.
        except BaseException as error:
            self._failure = error

    def _start_ray(self, settings: dict[str, Any]) -> Any:
        from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
        from ray._private import worker

        self._backend = RayBackend(settings)
        # Ray does not wait for what it ends; to do so for it, its processes are noted here.
        node = worker._global_node
        started: Any = [] if node is None else node.all_processes.values()
        self._processes = [info.process for infos in started for info in infos]
        return self._backend

    def _end(self, thread: threading.Thread) -> None:
        # Asked first, killed afterwards: a worker that hangs in a step never reads the request.
        self._stop.set()
        thread.join(_PATIENCE_SECONDS)
        while thread.is_alive():
            self._kill_workers_that_hang()
            thread.join(1.0)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_SECONDS)
            process.kill()
            process.wait()

    def _kill_workers_that_hang(self) -> None:
        import ray

        pool = None if self._backend is None else self._backend.pool
        for actor in () if pool is None else tuple(pool._future_to_actor.values()):
            ray.kill(actor)

    def exchange(self, grid: Grid, messages: list[Message]) -> list[Message]:
        """Sends messages and gathers the replies that come in time.

        Raises:
            ProtocolError: If the simulation ended or refused a message.
        """
        # Flower's Grid has a call that waits; it would not notice that the simulation has ended.
        waiting = set(grid.push_messages(messages))
        if len(waiting) < len(messages):
            raise ProtocolError(f"Flower refused {len(messages) - len(waiting)} messages.")
        deadline = time.monotonic() + self.timeout_seconds
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            if self._failure is not None:
                what = f"Flower's simulation ended: {self._failure.__cause__ or self._failure!r}"
                raise ProtocolError(what) from self._failure
            arrived = list(grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
            time.sleep(_POLL_SECONDS if waiting else 0)
        return replies


def _link_state() -> tuple[LinkStateFactory, Run]:
    """Flower's server-side state, in memory, with one run registered."""
    # What `flwr run` would write into a database; the simulation refuses messages of unknown runs.
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    run = Run.create_empty(run_id=_RUN_ID)
    run.primary_task_id = _RUN_ID
    run.federation_id = NOOP_FEDERATION_ID
    state = cast(InMemoryLinkState, states.state())
    state.run_ids[_RUN_ID] = RunRecord(run=run)
    state.task_store[_RUN_ID] = Task(task_id=_RUN_ID, run_id=_RUN_ID)
    return states, run
