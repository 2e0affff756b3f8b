"""A service on SQLite under load, killed at seeded instants: between releases, in them, while it starts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chaos.history import History
from chaos.load import Load
from chaos.owner import Owner
from trust_process import command

GUESTS = 4
PATIENCE = 0.05  # lives are short: a client that waited as long as usual would miss most of them
START_SECONDS = 30.0
RECOVERY_SECONDS = 15.0
PROGRAM_WORDS = 5  # of a command: interpreter, its options and the module
_POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class KillPlan:
    """When to kill: after the service answered, or, with a small chance, while it starts.

    Attributes:
        kills: how often.
        seed: of all choices.
        longest: seconds after readiness, at most.
        starting: chance of a kill before readiness.
    """

    kills: int
    seed: int
    longest: float = 0.3
    starting: float = 0.1


class Forked:
    """Services of one state directory, one after the other."""

    def __init__(self, state: Path) -> None:
        self.state, self.log = state, state.with_suffix(".log")
        self.port, self.pid = 0, 0
        self._ready = state.with_suffix(".ready")
        with self.log.open("ab") as log:
            self._zygote = subprocess.Popen(
                [sys.executable, "-W", "error", str(Path(__file__).with_name("zygote.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        arguments = ["--ready-file", str(self._ready), "--die-with-parent"]
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(command(self.state, *arguments)[PROGRAM_WORDS:]) + "\n")
        self._zygote.stdin.flush()
        self.pid = int(self._zygote.stdout.readline())

    def wait_ready(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._ready.exists():
                self.port = int(json.loads(self._ready.read_text())["port"])
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def lives(self) -> bool:
        with suppress(ProcessLookupError):
            os.kill(self.pid, 0)
            return True
        return False

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        while self.lives():
            time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        self.kill()
        self._zygote.kill()
        self._zygote.wait(20)
        for pipe in (self._zygote.stdin, self._zygote.stdout):
            if pipe is not None:
                pipe.close()


def kill_often(owner: Owner, history: History, plan: KillPlan) -> dict[str, bytes]:
    """Do it; return the logs. What is wrong already is in `history`."""
    choose = random.Random(f"{plan.seed} kills")
    service = Forked(owner.state)
    try:
        service.start()
        if not service.wait_ready(START_SECONDS):
            raise RuntimeError(f"the service does not start: {service.log.read_text()[-2000:]}")
        urls = [lambda: f"https://127.0.0.1:{service.port}"]
        with Load(urls, owner, history, seed=plan.seed, guests=GUESTS, patience=PATIENCE) as load:
            for _ in range(plan.kills):
                if not _one_life(service, history, choose, plan):
                    break
            if load.probe(0, RECOVERY_SECONDS) is None:
                history.fault(f"the service does not serve {RECOVERY_SECONDS:g} s after the last kill")
    finally:
        service.end()
    return {service.log.name: service.log.read_bytes()}


def _one_life(service: Forked, history: History, choose: random.Random, plan: KillPlan) -> bool:
    """Kill the service at an instant, start it, sometimes kill it while it starts; return whether it serves again."""
    time.sleep(choose.uniform(0.0, plan.longest))
    if not service.lives():
        history.fault("the service ended by itself")
        return False
    service.kill()
    history.count("fault: service killed")
    begun = time.monotonic()
    service.start()
    if choose.random() < plan.starting:
        time.sleep(choose.uniform(0.0, 0.15))
        service.kill()
        history.count("killed while it started")
        service.start()
    if not service.wait_ready(START_SECONDS):
        history.fault(f"the service does not start after {history.counts['fault: service killed']} kills")
        return False
    history.recoveries.append(time.monotonic() - begun)
    return True
