"""``python -m mlxlab`` is the command line, for where scripts are not on PATH."""

import signal

__all__ = ["main"]


def main() -> None:
    """Import the command line and run it."""
    # Before the command line handles Ctrl-C and after it, nothing has to be cleaned up.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mlxlab.cli import main

    main()


if __name__ == "__main__":
    main()
