"""The fork that makes the key process, by the two system calls alone.

Loaded before everything else of the agent: it imports nothing that is not needed for it. Both ends of the connection
are closed in programs that either process starts (PEP 446).
"""

from __future__ import annotations

import _socket  # the C half of `socket`, which is enough and loads faster
import os

TYPE_CHECKING = False  # `typing` would be loaded for the name alone
if TYPE_CHECKING:
    from collections.abc import Callable


def fork_key_process(be_it: Callable[[int], None]) -> tuple[int, int]:
    """Return the process id of the key process, and the descriptor that leads to it.

    Args:
        be_it: what the child does, with its own end; the child ends when it returns or raises, without a word.

    Raises:
        OSError: the kernel does not make it.
    """
    ours, theirs = _socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            ours.close()
            be_it(theirs.detach())
        finally:
            os._exit(0)  # whatever happened: no traceback, and nothing of the agent's is run here
    theirs.close()
    return pid, ours.detach()
