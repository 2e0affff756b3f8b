"""The agent's main: it forks the key process, and then lives the life of a pod (`cloister.guest.lifecycle`).

The fork is the first thing that happens, when the process has one thread, no descriptor but the standard ones, and
next to nothing loaded: what the two load afterwards they load beside each other. So this module imports nothing that
is not needed for it, not even `typing`.

The console gets fixed words only: no argument, no secret, no text of a foreign error.
"""

from __future__ import annotations

import os
import sys

from cloister.guest.keyfork import fork_key_process

_CONSOLE = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; return the process' exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    sys.excepthook = _silent
    agent = os.getpid()

    def be_key_process(connection: int) -> None:
        from cloister.guest.keyservice import run

        run(connection, words, agent)

    try:
        child, connection = fork_key_process(be_key_process)
    except OSError:
        console("guest.keys.fork")
        return 1
    from cloister.guest.lifecycle import live

    return live(words, child, connection, console)


def console(text: str) -> None:
    """Write fixed words to the console, which the host reads."""
    try:
        os.write(_CONSOLE, b"cloister: " + text.encode() + b"\n")
    except OSError:
        return


def _silent(*_: object) -> None:
    """Replace the traceback of the interpreter, which would show source lines and values."""
    console("guest.internal")


if __name__ == "__main__":
    sys.exit(main())
