"""Starts trust services quickly: everything is imported once, then each start is a fork that runs the real `main`.

Reads one JSON list of arguments per line from standard input and prints the new process' id. For tests that kill a
service hundreds of times; what is killed is a whole process with the service's own code, started as any other. How a
process ended that was not killed is said on standard error.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from contextlib import suppress

from cloister.trust import app
from cloister.trust.verifier.loading import load_technology


def main() -> None:
    load_technology("cloister-simulated")  # as the first guest would; the pods here are of no other
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            faulthandler.enable()
            sys.stdin.close()
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(2, 1)
            os._exit(app.main(json.loads(line)))
        print(child, flush=True)


def _reap() -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if code != -signal.SIGKILL:
                os.write(2, f"process {pid} ended with {code}\n".encode())


if __name__ == "__main__":
    main()
