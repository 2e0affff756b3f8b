"""Asks Rego policies: one process, one question at a time, each with a deadline after which the answer is no.

A release policy is CoCo's: package `policy`, rule `allow`; `data` holds `plugin`, `resource-path` and `query`, `input`
what is known of the guest. Only `true` allows. A policy that fails, ends the process or takes too long denies, and says
so. An appraisal policy is CoCo's, too: rule `trust_claims`, perhaps `extensions`, and the function
`query_reference_value`; one that comes to no answer is answered by a vector that says so, and nothing is affirmed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
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
from cloister.tee.regopolicy import GLUE, VECTOR, RegoVector, checked_vector
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
_NO_VECTOR: Final = "rats.rego.malformed"
_ALLOW: Final = "data.policy.allow"
_EXTENSIONS: Final = "data.policy.extensions"
_EXTENSION: Final = re.compile(r"ear\.[a-z0-9_-]{1,32}\.[a-z0-9_-]{1,32}")
EXTENSION_BYTES: Final = 16 * KIB  # of all members that a policy adds to a result


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
        documents = {
            "data.plugin": query.plugin,
            'data["resource-path"]': list(query.path),
            "data.query": dict(query.query),
        }
        return _said(self._values(text, {"ask": [_ALLOW], "data": documents, "input": known}, deadline))

    def appraise(
        self,
        text: str,
        values: Mapping[str, Any],  # Any: JSON
        seen: Mapping[str, Any],  # Any: JSON
        *,
        deadline: float | None = None,
    ) -> RegoVector:
        """Ask an appraisal policy.

        Args:
            text: Rego source.
            values: reference values by name, for `query_reference_value`; older policies read `data.reference`.
            seen: claims of the evidence; becomes `input`.
            deadline: on the monotonic clock; by then there must have been a turn.

        Raises:
            Unavailable: as `decide`.
        """
        documents = {"data.rvps": dict(values), "data.reference": dict(values)}
        question = {"ask": [VECTOR, _EXTENSIONS], "data": documents, "input": seen, "besides": GLUE}
        found = self._values(text, question, deadline)
        if isinstance(found, str):
            return RegoVector(failure=found)
        if VECTOR not in found:
            return RegoVector(failure=f"{VECTOR} is undefined")
        try:
            return RegoVector(claims=checked_vector(found[VECTOR]), extensions=_extensions(found.get(_EXTENSIONS, [])))
        except FormatRefused as err:
            return RegoVector(failure=err.message)

    def check(self, text: str) -> None:
        """Return if a policy loads.

        Raises:
            FormatRefused: it does not (`trust.release_policy.malformed`).
            Unavailable: this installation cannot run Rego.
        """
        said = self.decide(text, RegoQuery(plugin="resource", path=("a", "b", "c"), query={}), {})
        if said.failed:
            raise FormatRefused(_MALFORMED, f"the Rego policy does not load: {said.words}", expected="package policy")

    def _values(
        self,
        text: str,
        question: Mapping[str, Any],  # Any: JSON
        deadline: float | None,
    ) -> dict[str, Any] | str:
        """Return what the rules are that were asked for, or in words why that is not known."""
        if len(json.dumps(question)) > INPUT_BYTES:
            return "the guest's claims are too long for it"
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._turn.acquire(timeout=left):
            raise Unavailable("trust.rego.busy", "the Rego policies had no time left", hint="try again later")
        try:
            answer = self._ask(text, question)
        finally:
            self._turn.release()
        if isinstance(answer, str):
            return answer
        if "error" in answer:
            return str(answer["error"])[:_SHOWN]
        values: dict[str, Any] = answer.get("values", {})  # Any: JSON
        return values

    def _ask(self, text: str, question: Mapping[str, Any]) -> dict[str, Any] | str:  # Any: JSON
        """Return the answer, or in words why there is none."""
        besides = str(question.get("besides", ""))
        digest = hashlib.sha256(f"{besides}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
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


def check_appraisal_rego(text: str) -> None:
    """Return if an appraisal policy loads and gives a vector, in a process for this one question.

    Raises:
        FormatRefused: it does not (`rats.rego.malformed`).
        Unavailable: this installation cannot run Rego.
    """
    with RegoEngine(seconds=5 * SECONDS) as engine:
        failure = engine.appraise(text, {}, {}).failure
    if failure:
        raise FormatRefused(
            _NO_VECTOR, f"the Rego policy gives no vector: {failure}", expected="package policy, rule trust_claims"
        )


def check_rego(text: str) -> None:
    """Return if a policy loads, in a process for this one question.

    Raises:
        FormatRefused: it does not.
        Unavailable: this installation cannot run Rego.
    """
    with RegoEngine(seconds=5 * SECONDS) as engine:
        engine.check(text)


def _said(found: dict[str, Any] | str) -> RegoSaid:  # Any: JSON
    if isinstance(found, str):
        return RegoSaid(allowed=False, words=found, failed=True)
    if _ALLOW not in found:
        return RegoSaid(allowed=False, words="undefined")
    value = found[_ALLOW]
    if isinstance(value, bool):
        return RegoSaid(allowed=value, words=json.dumps(value))
    return RegoSaid(allowed=False, words=f"no boolean: {json.dumps(value)}"[:_SHOWN])


def _extensions(value: Any) -> dict[str, Any]:  # Any: JSON
    """Return the members that a policy adds to the result: a list of `name`, `key` (EAT's number for it) and `value`.

    Raises:
        FormatRefused: not such a list, or too long.
    """
    found: dict[str, Any] = {}  # Any: JSON
    for item in value if isinstance(value, list) else [None]:
        if not isinstance(item, dict):
            raise FormatRefused(_NO_VECTOR, "extensions are not a list of named members")
        name = item.get("name")
        if not isinstance(name, str) or not _EXTENSION.fullmatch(name) or name.startswith("ear.cloister."):
            raise FormatRefused(_NO_VECTOR, "extensions are not a list of named members")
        found[name] = item.get("value")
    if len(json.dumps(found)) > EXTENSION_BYTES:
        raise FormatRefused(_NO_VECTOR, "extensions are too long")
    return found


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
