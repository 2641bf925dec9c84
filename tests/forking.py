"""Processes that are forked from one that has imported torch already.

Imports are most of what the process of a small training does; all it does afterwards is the same.
Fresh interpreters are tested in `tests/runtimes/processes` and, by hand, in `tests/command`.
"""

from multiprocessing import forkserver, get_context, resource_tracker

SERVER = get_context("forkserver")
# What is missing is passed over.
SERVER.set_forkserver_preload(
    [
        *("torch", "torch._dynamo", "sklearn.datasets", "matplotlib.backends.backend_agg"),
        *("dp_accounting", "cloudpickle", "privtrain.command.cli", "privtrain.command.party"),
        *("privtrain.runs.comparing", "privtrain.runtimes.links", "privtrain.mpc.descent"),
        *("privtrain.trainers.mpc_sgd", "privtrain.trainers.pate"),
        "tests.mpc.crypten.loaded",
    ]
)


def start_server() -> None:
    """Starts what forks, before somebody counts processes."""
    forkserver.ensure_running()
    resource_tracker.ensure_running()
