"""The process that evaluates Rego: reads questions, writes answers, can do nothing else.

    python -I -m cloister.trust.rego.child

Why a process: the engine is a C++ library whose faults end the process they happen in, and it cannot be told to stop.
Here a fault or an endless evaluation costs one decision, which is then a denial. Files, descriptors and processes are
limited before the first policy is read; memory is watched from outside, because the library reserves more addresses
than any limit on them could name. Standard output belongs to the answers, and what the library prints is lost.

Frames: four bytes of length, big-endian, then JSON. A question has `digest`, `text` and `besides` (a second module),
both left out when they were sent before, `ask` (names of rules to ask for), `data` (documents by their place) and
`input`. An answer has `values` (what the rules are, by name; one that is undefined is left out), or `error`, or
`unknown` when the text has to be sent again.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import OrderedDict
from typing import Any, BinaryIO, Final

POLICIES: Final = 64  # kept parsed
_DESCRIPTORS: Final = 16
_LENGTH: Final = 4
_ERROR_CHARS: Final = 160


def read_frame(file: BinaryIO, most: int) -> bytes | None:
    """Return the next frame, None at the end; a longer one than `most` is an end, too."""
    head = file.read(_LENGTH)
    length = int.from_bytes(head, "big") if len(head) == _LENGTH else most + 1
    if length > most:
        return None
    body = file.read(length)
    return body if len(body) == length else None


def frame(body: bytes) -> bytes:
    """Return a frame."""
    return len(body).to_bytes(_LENGTH, "big") + body


def main() -> int:
    """Answer until standard input ends."""
    from regopy import Interpreter, LogLevel, RegoError

    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    limit()
    parsed: OrderedDict[str, Any] = OrderedDict()  # Any: the library has no types

    def evaluate(question: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        digest, text = question["digest"], question.get("text")
        if digest not in parsed:
            if text is None:
                return {"unknown": True}
            engine = Interpreter()
            engine.log_level = LogLevel.NONE
            engine.add_module("policy", text)
            if besides := question.get("besides"):
                engine.add_module("besides", besides)
            parsed[digest] = engine
            if len(parsed) > POLICIES:
                parsed.popitem(last=False)
        engine = parsed[digest]
        parsed.move_to_end(digest)
        engine.set_input(question["input"])
        # JSON is a term of Rego, so what is asked for cannot become anything but a value.
        documents = " ".join(f"with {name} as {json.dumps(value)}" for name, value in question["data"].items())
        answer = {}
        for name in question["ask"]:
            output = engine.query(f"found := {name} {documents}")
            if not output.ok():
                parsed.pop(digest)
                return {"error": "the policy does not evaluate"}
            bindings = output.results[0].bindings if output.results else {}
            if "found" in bindings:
                answer[name] = json.loads(json.dumps(bindings["found"]))
        return {"values": answer}

    while (body := read_frame(sys.stdin.buffer, 64 * 1024 * 1024)) is not None:
        try:
            answer = evaluate(json.loads(body))
        except (RegoError, IndexError, KeyError, ValueError, TypeError, MemoryError) as err:
            parsed.clear()
            answer = {"error": (str(err) or type(err).__name__)[:_ERROR_CHARS]}
        answers.write(frame(json.dumps(answer).encode()))
        answers.flush()
    return 0


def limit() -> None:
    """Take from this process what no evaluation needs."""
    for what, most in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    sys.exit(main())
