"""Flower as a star: its Grid in this process, or its own simulation on Ray.

Flower is an extra and takes a second to import: it is loaded where a star is opened.
"""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import torch

from privtrain.core.extras import check_installed
from privtrain.core.runtime import Setting
from privtrain.core.validate import check_non_negative, check_positive
from privtrain.runtimes.flower.surroundings import silence, temporary_folder, variables

if TYPE_CHECKING:
    from privtrain.runtimes.flower.star import FlowerStar

_CHANGED_BY_RAY = (
    "PYTHONBREAKPOINT",
    "PYTHONPATH",
    "RAY_CLIENT_MODE",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
)
_LONGEST_RAY_FOLDER = 40
"""Ray's sockets live below its folder, and the path of a socket may have 107 characters."""


@dataclass(frozen=True)
class FlowerGrid:
    """A star through Flower's Grid in this process: Flower's messages and clients, without Ray.

    Raises:
        UnsupportedError: If flwr is not installed.
    """

    def __post_init__(self) -> None:
        check_installed("FlowerGrid()", "flwr")

    @property
    def name(self) -> str:
        return "flower-grid"

    @property
    def real(self) -> bool:
        return False

    @contextmanager
    def open(self, setting: Setting) -> Iterator["FlowerStar"]:
        from privtrain.runtimes.flower.client import client_app
        from privtrain.runtimes.flower.simulation import LocalGrid, site_of
        from privtrain.runtimes.flower.star import FlowerStar

        # One site for all parties: rows and the unpickled step are loaded once in this process.
        site = site_of(setting, elsewhere=False)
        grid = LocalGrid(client_app(lambda: site), setting.data.train)
        send = grid.send_and_receive
        yield FlowerStar(setting, grid.node_of, grid.create_message, send, site.raised)


@dataclass(frozen=True, kw_only=True)
class FlowerRay:
    """A star through Flower's own simulation: its clients in worker processes that Ray starts.

    Starting takes some 20 seconds, and a round at least a tenth of one; it pays where a step
    takes seconds and there are many cores.

    Args:
        cpus_per_party: Cores a party takes while it works; there are as many workers as fit.
        gpus_per_party: GPUs a party takes while it works; a fraction shares one.
        timeout_seconds: How long the replies of a round may take.

    Raises:
        UnsupportedError: If flwr or Ray is not installed.
    """

    cpus_per_party: float = 1.0
    gpus_per_party: float = 0.0
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_installed("FlowerRay()", "flwr", "ray")
        check_positive(cpus_per_party=self.cpus_per_party, timeout_seconds=self.timeout_seconds)
        check_non_negative(gpus_per_party=self.gpus_per_party)

    @property
    def name(self) -> str:
        return "flower-ray"

    @property
    def real(self) -> bool:
        return False  # they are processes, but a worker serves many parties

    @contextmanager
    def open(self, setting: Setting) -> Iterator["FlowerStar"]:
        """Starts the workers, and ends them again; the setting's rows and streams must pickle."""
        from privtrain.runtimes.flower.client import client_app
        from privtrain.runtimes.flower.simulation import Simulation, create, site_in, site_of
        from privtrain.runtimes.flower.star import FlowerStar

        simulation = Simulation(self.timeout_seconds)
        with (
            silence("flwr"),
            temporary_folder() as folder,
            variables(_quiet(folder), *_CHANGED_BY_RAY),
        ):
            # By a file, which each worker reads once: in messages, rows would travel every round.
            file = folder / "site"
            torch.save(site_of(setting, elsewhere=True), file, pickle_module=cloudpickle)
            app = client_app(partial(site_in, file))
            names = (*setting.data.parties, *setting.others)
            running = simulation.running(app, names, self._backend(folder))
            with running as (grid, nodes):
                send = partial(simulation.exchange, grid)
                yield FlowerStar(setting, nodes.__getitem__, create, send)

    def import_parts(self) -> None:
        # The workers import for themselves, in every run alike.
        with suppress(ImportError), silence("flwr"):
            importlib.import_module("ray")
            importlib.import_module("flwr.server.superlink.fleet.vce.vce_api")

    def _backend(self, folder: Path) -> dict[str, Any]:
        init: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if len(str(folder)) <= _LONGEST_RAY_FOLDER:
            init["_temp_dir"] = str(folder / "ray")
        resources = {"num_cpus": self.cpus_per_party, "num_gpus": self.gpus_per_party}
        return {"init_args": init, "client_resources": resources, "actor": {"tensorflow": 0}}


def _quiet(folder: Path) -> dict[str, str]:
    """What keeps Flower and Ray from calling out, from the user's home and from the screen."""
    return {
        "FLWR_HOME": str(folder / "flwr"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
    }
