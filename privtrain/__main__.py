"""`python -m privtrain`: the command line; a party's process takes a short cut past it."""

import sys


def main() -> int:
    """Runs the command line.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:]
    # The first heartbeat must not wait for heavy imports.
    if arguments[:2] == ["party", "--child"]:
        from privtrain.runtimes.processes.worker import main as work

        return work(*arguments[2:])
    from privtrain.command.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
