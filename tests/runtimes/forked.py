"""`Processes` whose parties are forked, for tests of what parties compute."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import pytest

from privtrain.runtimes.processes import mesh, worker
from privtrain.runtimes.processes.children import Child
from privtrain.runtimes.processes.mesh import Processes
from tests.forking import SERVER


def _work(
    ends: tuple[Connection, ...], began: Connection, environment: dict[str, str], beat: float
) -> None:
    os.setsid()
    began.send(True)
    os.environ.update(environment)
    for descriptor, end in enumerate(ends):
        os.dup2(end.fileno(), descriptor)
        end.close()
    sys.stdin, sys.stderr = os.fdopen(0), os.fdopen(2, "w")
    worker.main(str(beat))


class _Started:
    """Such a party, with what `Child` uses of `subprocess.Popen`."""

    def __init__(self, environment: dict[str, str], beat: float) -> None:
        source, stdin = SERVER.Pipe(duplex=False)
        stdout, out = SERVER.Pipe(duplex=False)
        stderr, said = SERVER.Pipe(duplex=False)
        beginning, began = SERVER.Pipe(duplex=False)
        given = ((source, out, said), began, environment, beat)
        self._process = SERVER.Process(target=_work, args=given)
        self._process.start()
        beginning.recv()  # not before is it a group, which can be ended
        self.pid = self._process.pid
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(os.dup(end.fileno()), mode)
            for end, mode in ((stdin, "wb"), (stdout, "rb"), (stderr, "rb"))
        )
        for end in (source, stdin, stdout, out, stderr, said, beginning, began):
            end.close()

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


@dataclass(frozen=True, kw_only=True)
class Forked(Processes):
    """Processes as they are, but for the interpreter and the imports of each party."""

    @contextmanager
    def _children(self, names: tuple[str, ...]) -> Iterator[list[Child]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mesh, "_start", _Started)
            with super()._children(names) as children:
                yield children
