"""Asks Rego policies: one process, one question at a time, each with a deadline after which the answer is no.

A policy is CoCo's: package `policy`, rule `allow`; `data` holds `plugin`, `resource-path` and `query`, `input` what is
known of the guest. Only `true` allows. A policy that fails, ends the process or takes too long denies, and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Final

from cloister.errors import FormatRefused, Unavailable
from cloister.trust.rego.child import frame
from cloister.wire.limits import KIB, MIB

SECONDS: Final = 2.0  # for one decision; CoCo's shipped policies take milliseconds
MEMORY_BYTES: Final = 512 * MIB  # resident; past it an evaluation is ended
KEPT_BYTES: Final = 256 * MIB  # a process that holds more after an answer is replaced: the library forgets to free
INPUT_BYTES: Final = 1 * MIB  # a token has at most 384 KiB
_ANSWER_BYTES: Final = 64 * KIB
_LOOKED_EVERY_SECONDS: Final = 0.05
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_START_SECONDS: Final = 20.0
_SHOWN: Final = 60
_LENGTH: Final = 4
_MALFORMED: Final = "trust.release_policy.malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegoQuery:
    """What is asked for.

    Attributes:
        plugin: `resource`, or the name of another plugin.
        path: segments of the path below it.
        query: of the address.
    """

    plugin: str
    path: Sequence[str]
    query: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegoSaid:
    """What a policy came to.

    Attributes:
        allowed: whether it said `true`.
        words: what it said, for the record.
        failed: whether it could not be evaluated at all.
    """

    allowed: bool
    words: str
    failed: bool = False


class RegoEngine:
    """Evaluates policies. Its process starts with the first question; use as a context manager, or `close` it.

    Args:
        seconds: after which a decision is a denial.
    """

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sent: set[str] = set()

    def __enter__(self) -> RegoEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        with self._turn:
            self._end()

    def decide(
        self,
        text: str,
        query: RegoQuery,
        known: Mapping[str, Any],  # Any: JSON
        *,
        deadline: float | None = None,
    ) -> RegoSaid:
        """Ask a policy.

        Args:
            text: Rego source.
            query: what is asked for; becomes `data`.
            known: what is known of the guest; becomes `input`.
            deadline: on the monotonic clock; by then there must have been a turn.

        Raises:
            Unavailable: this installation cannot run Rego (`rats.rego.absent`), or others took all the time
                (`trust.rego.busy`).
        """
        question = {
            "query": {"plugin": query.plugin, "resource-path": list(query.path), "query": dict(query.query)},
            "input": known,
        }
        if len(json.dumps(question)) > INPUT_BYTES:
            return RegoSaid(allowed=False, words="the guest's claims are too long for it", failed=True)
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._turn.acquire(timeout=left):
            raise Unavailable("trust.rego.busy", "the Rego policies had no time left", hint="try again later")
        try:
            return self._said(self._ask(text, question))
        finally:
            self._turn.release()

    def check(self, text: str) -> None:
        """Return if a policy loads.

        Raises:
            FormatRefused: it does not (`trust.release_policy.malformed`).
            Unavailable: this installation cannot run Rego.
        """
        said = self.decide(text, RegoQuery(plugin="resource", path=("a", "b", "c"), query={}), {})
        if said.failed:
            raise FormatRefused(_MALFORMED, f"the Rego policy does not load: {said.words}", expected="package policy")

    def _ask(self, text: str, question: Mapping[str, Any]) -> dict[str, Any] | str:  # Any: JSON
        """Return the answer, or in words why there is none."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        ends = time.monotonic() + self._seconds + self._start()
        known = digest in self._sent
        answer = self._exchange({**question, "digest": digest, **({} if known else {"text": text})}, ends)
        if isinstance(answer, dict) and answer.get("unknown"):
            answer = self._exchange({**question, "digest": digest, "text": text}, ends)
        if isinstance(answer, dict):
            self._sent.add(digest)
        if self._process is not None and _resident(self._process.pid) > KEPT_BYTES:
            self._end()
        return answer

    def _exchange(self, question: Mapping[str, Any], ends: float) -> dict[str, Any] | str:  # Any: JSON
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return "the evaluation ended the process"
        try:
            process.stdin.write(frame(json.dumps(question).encode()))
            process.stdin.flush()
            length = int.from_bytes(_read(process, _LENGTH, ends), "big")
            if length > _ANSWER_BYTES:
                raise ValueError(length)
            answer: dict[str, Any] = json.loads(_read(process, length, ends))
        except TimeoutError:
            self._end()
            return f"took longer than {self._seconds:g} s"
        except MemoryError:
            self._end()
            return f"took more than {MEMORY_BYTES // MIB} MiB"
        except (OSError, ValueError):
            self._end()
            return "the evaluation ended the process"
        return answer

    def _said(self, answer: dict[str, Any] | str) -> RegoSaid:  # Any: JSON
        if isinstance(answer, str):
            return RegoSaid(allowed=False, words=answer, failed=True)
        if "error" in answer:
            return RegoSaid(allowed=False, words=str(answer["error"])[:_SHOWN], failed=True)
        value = answer.get("value")
        if isinstance(value, bool):
            return RegoSaid(allowed=value, words=json.dumps(value))
        return RegoSaid(allowed=False, words=f"no boolean: {json.dumps(value)}"[:_SHOWN] if answer else "undefined")

    def _start(self) -> float:
        """Start the process where there is none; return how much longer the first answer may take."""
        if self._process is not None:
            return 0.0
        if find_spec("regopy") is None:
            raise Unavailable(
                "rats.rego.absent",
                "this installation cannot run Rego policies",
                hint="install the extra: pip install 'cloister[rego]'",
            )
        command = [sys.executable, "-I", "-m", "cloister.trust.rego.child"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8"},
            close_fds=True,
        )
        self._sent = set()
        return _START_SECONDS

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not written any more
                    continue
        process.wait()


def check_rego(text: str) -> None:
    """Return if a policy loads, in a process for this one question.

    Raises:
        FormatRefused: it does not.
        Unavailable: this installation cannot run Rego.
    """
    with RegoEngine(seconds=5 * SECONDS) as engine:
        engine.check(text)


def _read(process: subprocess.Popen[bytes], length: int, ends: float) -> bytes:
    """Read exactly `length` bytes of its output, with an eye on its memory.

    Raises:
        TimeoutError: not by `ends`.
        MemoryError: it takes too much.
        ValueError: it ended.
    """
    if process.stdout is None:
        raise ValueError("no output")
    descriptor = process.stdout.fileno()
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    data = b""
    while len(data) < length:
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if not waiting.poll(1000 * min(left, _LOOKED_EVERY_SECONDS)):
            if _resident(process.pid) > MEMORY_BYTES:
                raise MemoryError
            continue
        chunk = os.read(descriptor, length - len(data))
        if not chunk:
            raise ValueError("the process ended")
        data += chunk
    return data


def _resident(pid: int) -> int:
    """Return the bytes of memory a process has, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123  read at every question
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
