"""The command line in processes of their own, which are forked."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

from privtrain.command.cli import main
from tests.forking import SERVER


def _run(
    words: list[str], environment: dict[str, str], said: tuple[Path, Path], place: Path | None
) -> None:
    os.environ.update(environment)
    if place is not None:
        os.chdir(place)
        sys.path.insert(0, str(place))
    for descriptor, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.exit(main(words))


class Forked:
    """Such a process, with what tests use of `subprocess.Popen`.

    Args:
        words: What stands after `privtrain`.
        environment: Its variables, besides those of the process that it is forked from.
        folder: Where what it says is written, in files of its own.
        place: The folder that it is in, whose modules it finds.
    """

    def __init__(
        self,
        words: list[str],
        environment: dict[str, str],
        folder: Path,
        *,
        place: Path | None = None,
    ) -> None:
        said = Path(mkdtemp(dir=folder))
        self._said = said / "out", said / "err"
        self._process = SERVER.Process(target=_run, args=(words, environment, self._said, place))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("privtrain", timeout or 0.0)
        out, err = (path.read_text() for path in self._said)
        return out, err

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a process that is in a folder, and finds what lies there."""
    process = Forked(list(words), {}, folder, place=folder)
    out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode or 0, out, err)
