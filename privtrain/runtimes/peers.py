"""A mesh of parties on several hosts without a parent: each watches the others.

Parties beat and report failures through a board that rank 0 hosts. A connection tells of
a process that died, but not of one that is frozen or cut off: only its silence does, hence
heartbeats. Whoever notices that another party is gone ends its own process with an error that names
it; a thread does it, since the main thread may be blocked in the network for good.
"""

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, TypeVar

from privtrain.core.errors import (
    DataError,
    PartyLostError,
    PrivtrainError,
    ProtocolError,
    TamperedShareError,
)
from privtrain.runtimes.board import Board, Entries, LocalBoard
from privtrain.runtimes.launcher import LaunchedBoard
from privtrain.runtimes.rendezvous import BoardServer, join, listening
from privtrain.runtimes.sockets import Plain, Transport

Result = TypeVar("Result")

SILENCE = 0.7
"""Fraction of the timeout after which a silent party counts as frozen.

The promise is that the run *ends* within the timeout; what is left is for ending it.
"""
_LOOK = 0.25
"""Seconds between two looks at who has come."""
_ENDING = 0.2
"""Fraction of the timeout for which the end waits for a thread that is blocked in the network."""

_LONGEST = 1000
"""Characters of a reason that others are told."""

_TAMPERED = f"{TamperedShareError.__name__}: "
"""How a report begins that a share was altered."""

FAILED = 1
"""Exit code of a process whose run was ended by another party."""


def _public(error: BaseException) -> str:
    """What others may read of an error: a `DataError` quotes rows, and so may a foreign one."""
    kind = type(error).__name__
    if isinstance(error, PrivtrainError) and not isinstance(error, DataError):
        return f"{kind}: {error}".splitlines()[0]
    return f"{kind}; why is said at that party alone, since it may quote its rows"


def _line(error: BaseException) -> str:
    """What an error says in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def heartbeat(timeout: float) -> float:
    """Seconds between two heartbeats: many in a timeout, so that a late one is no silence."""
    return min(0.5, timeout / 20)


@dataclass
class Peers:
    """The other parties, watched while a program runs.

    Args:
        rank: Own number.
        names: Names of all parties, by rank.
        host: Host of the board.
        port: Port of the board.
        timeout: Seconds within which a lost party ends the run.
        transport: How connections to the board are protected; with `Plain()` not at all.
        launched: Whether a launcher gave out the ranks, each once, and hosts a store, which is the
            board then and is not protected; else rank 0 hosts the board.
        tell: Called with a line about what is waited for.
    """

    rank: int
    names: tuple[str, ...]
    host: str
    port: int
    timeout: float
    transport: Transport = Plain()
    launched: bool = False
    tell: Callable[[str], None] = field(default=lambda line: None, repr=False)
    _board: Board | None = field(default=None, init=False, repr=False)
    _open: ExitStack = field(default_factory=ExitStack, init=False, repr=False)
    _beats: dict[int, tuple[str, float]] = field(default_factory=dict, init=False)
    _done: set[int] = field(default_factory=set, init=False)
    _failures: dict[int, tuple[int, str]] = field(default_factory=dict, init=False)
    _polled: float = field(default=0.0, init=False)
    _board_error: str = field(default="", init=False)
    _closing: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False, repr=False)

    @property
    def beat(self) -> float:
        """Seconds between two heartbeats."""
        return heartbeat(self.timeout)

    @property
    def board(self) -> Board:
        """The board, once this party is there."""
        if self._board is None:
            raise RuntimeError("Peers has to be entered before its board is asked for.")
        return self._board

    @property
    def _hosts(self) -> bool:
        return self.rank == 0 and not self.launched

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(len(self.names)) if rank != self.rank]

    def __enter__(self) -> "Peers":
        """Meets the other parties, and starts to watch them.

        Raises:
            PartyLostError: If one does not come within the timeout.
            ProtocolError: If two have one rank, or they do not expect the same parties.
        """
        try:
            self._meet()
        except BaseException:
            self._open.close()
            raise
        now = time.monotonic()
        self._polled = now
        self._beats = dict.fromkeys(self._others, ("", now))
        # Two threads: beating blocks where the board's host is frozen, and that has to be noticed.
        for target in (self._keep_beating, self._keep_watch):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tells the others how the run ended; the board's host stays until they know."""
        # If the host left first, its board would go with it, and the others would read "connection
        # closed" instead of who failed.
        try:
            if error is None:
                self.board.set(f"done/{self.rank}", "")
            else:
                self._accuse(error)
            if self._hosts:
                self._wait_for_others(time.monotonic() + min(5.0, self.timeout / 4))
        except (OSError, ProtocolError):  # the board went with its host; nobody is left to tell
            pass
        self._closing.set()
        # A daemon thread inside torch's store while the interpreter ends would abort the process.
        for thread in self._threads:
            thread.join(timeout=_ENDING * self.timeout)
        self._open.close()

    def run(self, program: Callable[[], Result]) -> Result:
        """The result of the program; where it lost contact with a party, an error that names it.

        Raises:
            PartyLostError: Naming the party that is gone.
            TamperedShareError: If another party left because a share was altered.
        """
        try:
            return program()
        except PartyLostError as error:
            raise self._culprit(error) from error

    def _meet(self) -> None:
        others = ", ".join(self.names[rank] for rank in self._others)
        where = f"tcp://{self.host}:{self.port}"
        if others:
            self.tell(f"waits for {others} at {where}, {self.timeout:g} s at most")
        try:
            self._board = self._hosted() if self._hosts else self._joined()
            if not self.launched:
                self._claim_place()
            self.board.set(f"here/{self.rank}", "")
        except OSError as error:
            raise PartyLostError(
                f"{self.names[0]} cannot be reached at {self.host}:{self.port}: {_line(error)}",
                self.names[0],
            ) from error
        self._wait_for_all(time.monotonic() + self.timeout)
        if others:
            self.tell(f"is there with {others}; training begins")

    def _hosted(self) -> Board:
        try:
            listener = listening(self.host, self.port)
        except OSError as error:
            raise ValueError(
                f"Expected rendezvous=tcp://{self.host}:{self.port} to be a free port of this "
                f"host: {error.strerror}. Another party of rank 0 may run there."
            ) from error
        board = LocalBoard(Entries(self.names), self.names[0], listener.getsockname()[0])
        self._open.enter_context(BoardServer(board.entries, listener, self.transport))
        return board

    def _joined(self) -> Board:
        if self.launched:
            return LaunchedBoard(self.host, self.port, self.timeout)
        client = join(
            (self.host, self.port),
            self.names[0],
            self.names[self.rank],
            self.transport,
            self.timeout,
        )
        self._open.callback(client.close)
        return client

    def _claim_place(self) -> None:
        """Refuses a rank that another party has, and other parties than theirs."""
        own, name = secrets.token_hex(8), self.names[self.rank]
        wanted = f"{name} was started for {len(self.names)} parties ({', '.join(self.names)})"
        said = self.board.claim("parties", wanted)
        if said.partition(" was")[2] != wanted.partition(" was")[2]:
            self._refuse(
                f"{wanted}, but {said}. Start all of them with the same study file and "
                "--world-size, and with --material or --deal everywhere or nowhere."
            )
        if self.board.claim(f"claim/{self.rank}", own) != own:
            self._refuse(
                f"{name} is there already: two parties were started as {name}. Give each of them "
                "its own --rank or --role."
            )

    def _refuse(self, text: str) -> NoReturn:
        # Those who wait would wait in vain; those who train already do not look there.
        self.board.claim("refused", text)
        self._leave_board()
        raise ProtocolError(text)

    def _leave_board(self) -> None:
        """Lets the others read why, before the board goes with its host."""
        if self._hosts:
            time.sleep(4 * _LOOK)

    def _wait_for_all(self, end: float) -> None:
        missing = self._others
        try:
            while missing:
                refused = self.board.get("refused") if not self.launched else None
                if refused is not None:
                    self._leave_board()
                    raise ProtocolError(refused)
                missing = [rank for rank in missing if self.board.get(f"here/{rank}") is None]
                if missing and time.monotonic() > end:
                    name = self.names[missing[0]]
                    text = f"{name} did not come within {self.timeout:g} s."
                    raise PartyLostError(text, name)
                time.sleep(_LOOK if missing else 0)
        except OSError as error:
            raise PartyLostError(
                f"{self.names[0]}, which hosts the rendezvous, is gone: {_line(error)}",
                self.names[0],
            ) from error

    def _accuse(self, error: BaseException) -> None:
        """Tells the others who failed: the one that is lost, else this party itself."""
        lost = error.party if isinstance(error, PartyLostError) else ""
        rank = self.names.index(lost) if lost in self.names else self.rank
        stopped = isinstance(error, KeyboardInterrupt)
        line = "it was stopped" if stopped else _public(error)
        # Under its own rank: whoever accuses another one is seen to be the one who does.
        said = "".join(letter if letter.isprintable() else " " for letter in line)
        self.board.set(f"failure/{self.rank}", f"{rank} {said[:_LONGEST]}")

    def _keep_beating(self) -> None:
        """Beats and looks at the others' beats; blocks where the board's host is frozen."""
        count = 0
        while not self._closing.is_set():
            try:
                self.board.set(f"beat/{self.rank}", str(count))
                for rank in self._others:
                    self._look_at(rank)
            except (OSError, PrivtrainError) as error:
                self._board_error = _line(error)
                return
            count += 1
            self._polled = time.monotonic()
            self._closing.wait(self.beat)

    def _look_at(self, rank: int) -> None:
        if self.board.get(f"done/{rank}") is not None:
            self._done.add(rank)
        failure = self.board.get(f"failure/{rank}")
        if failure is not None:
            # Acknowledged, so that a host that failed itself knows when it may leave.
            lost, _, text = failure.partition(" ")
            known = lost in map(str, range(len(self.names)))
            self._failures[rank] = (int(lost) if known else rank, text)
            self.board.set(f"heard/{self.rank}/{rank}", "")
        # A count, not a time: clocks of different hosts differ. When it last changed is read off
        # the own monotonic clock.
        beat = self.board.get(f"beat/{rank}")
        if beat is not None and beat != self._beats[rank][0]:
            self._beats[rank] = (beat, time.monotonic())

    def _lost(self, silence: float) -> PrivtrainError | None:
        """An error that names who is gone: reported, or silent for over `silence` seconds."""
        # The surest sign first: a report names its cause, a silence only its victim.
        now = time.monotonic()
        if self._failures:
            return self._reported()
        if self._done >= set(self._others):
            return None
        # Without the board nobody's beats can be read: only its host can be blamed.
        host = self.names[0]
        if self._board_error:
            return PartyLostError(
                f"{host}, which hosts the rendezvous, is gone: {self._board_error}", host
            )
        if now - self._polled > silence:
            text = f"{host}, which hosts the rendezvous, froze: it has not answered for "
            return PartyLostError(f"{text}{now - self._polled:.1f} s.", host)
        # Who is done beats no more, and is missed by nobody. Silent is who said nothing while the
        # board could be read: a host that froze holds back everybody's beats.
        ages = {
            rank: self._polled - seen
            for rank, (_, seen) in self._beats.items()
            if rank not in self._done
        }
        rank, age = max(ages.items(), key=lambda item: item[1])
        if age <= silence:
            return None
        name = self.names[rank]
        return PartyLostError(f"{name} died or froze: no sign of life for {age:.1f} s.", name)

    def _reported(self) -> ProtocolError:
        """What was reported; best by the party that failed, which knows why."""
        reports = dict(self._failures)
        # Whoever alters what others read may report anything besides, to be taken for the cause.
        # What is passed on is longer than what was said first.
        tampered = [each for each in reports.items() if each[1][1].startswith(_TAMPERED)]
        if tampered:
            by, (_, text) = min(tampered, key=lambda each: (len(each[1][1]), each[0]))
            return TamperedShareError(f"{self.names[by]} says: {text.removeprefix(_TAMPERED)}")
        by = min(reports, key=lambda rank: (reports[rank][0] != rank, rank))
        lost, text = reports[by]
        name, reporter = self.names[lost], self.names[by]
        if lost == by:
            return PartyLostError(f"{name} failed: {text}", name)
        if lost == self.rank:
            return PartyLostError(f"{reporter} has left; it says of {name}: {text}", reporter)
        return PartyLostError(f"{name} failed, as {reporter} says: {text}", name)

    def _keep_watch(self) -> None:
        while not self._closing.wait(self.beat):
            error = self._lost(SILENCE * self.timeout)
            if error is not None:
                # The main thread may raise the same error with a traceback, if it is not blocked.
                if self._closing.wait(4 * self.beat):
                    return
                print(f"privtrain: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                # `sys.exit` would end this thread alone.
                os._exit(FAILED)

    def _culprit(self, lost: PartyLostError) -> PrivtrainError:
        """The error that names with whom contact was lost, and why where that is known."""
        # A broken connection shows that somebody is gone: a much shorter silence tells who.
        end = time.monotonic() + SILENCE * self.timeout
        while time.monotonic() < end:
            error = self._lost(6 * self.beat)
            if error is not None:
                return error
            time.sleep(self.beat / 2)
        if lost.party:
            return lost
        return PartyLostError(f"contact was lost, but every party still beats: {lost}")

    def _wait_for_others(self, end: float) -> None:
        while time.monotonic() < end and self._board_error == "":
            # Each of the others has ended, has heard of the failure, or is gone itself.
            gone = set(self._failures) | {lost for lost, _ in self._failures.values()}
            informed = [
                rank
                for rank in self._others
                if rank in self._done | gone
                or self.board.get(f"heard/{rank}/{self.rank}") is not None
                or time.monotonic() - self._beats[rank][1] > 6 * self.beat
            ]
            if len(informed) == len(self._others):
                return
            time.sleep(self.beat / 2)
