"""The witness protocol (C2SP tlog-witness), as messages and one decision; HTTP and files are elsewhere.

A witness remembers, for each log, the size and root it cosigned last, and cosigns only what continues them: never a
fork, never a smaller log. `decide` says whether a checkpoint may be cosigned; the caller stores what it returns,
durably and alone, before it signs.

Steps of `decide`: 1 the log is known; 2 its key signed the checkpoint; 3 the old size is not above the new; 4 the old
size is what was cosigned last; 5 the same size has the same root; 6 the consistency proof holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Refused, RequestRefused
from cloister.tlog.checkpoint import DECIMAL, Checkpoint, parse_checkpoint, verify_checkpoint
from cloister.tlog.merkle import EMPTY_ROOT, HASH_BYTES, MAX_SIZE, PROOF_HASHES, verify_consistency
from cloister.tlog.note import NOTE_BYTES, SignedNote, VerifierKey, parse_note
from cloister.wire.base64 import decode_b64, encode_b64

ROUTE: Final = "add-checkpoint"
SIZE_TYPE: Final = "text/x.tlog.size"
REQUEST_BYTES: Final = NOTE_BYTES + 4 * 1024
_OLD: Final = "old "
_MALFORMED: Final = "tlog.witness.malformed"


class AddCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A log's request: cosign this checkpoint, which continues the one of `old` entries.

    Attributes:
        old: size that the log believes was cosigned last.
        proof: consistency proof.
        note: the checkpoint, signed.
    """

    old: int
    proof: tuple[bytes, ...]
    note: SignedNote


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a witness remembers of a log."""

    size: int = 0
    root: bytes = EMPTY_ROOT


class Conflict(Refused):
    """The log names another size than was cosigned last, or another root for the same size.

    Args:
        size: what was cosigned last.
        message: what differs.
    """

    __slots__ = ("size",)

    def __init__(self, size: int, message: str) -> None:
        super().__init__("tlog.witness.conflict", message, actual=str(size))
        self.size = size


def encode_request(old: int, proof: Sequence[bytes], note: str) -> bytes:
    """Return the body of a request."""
    lines = [f"{_OLD}{old}\n", *(f"{encode_b64(item)}\n" for item in proof), "\n", note]
    return "".join(lines).encode()


def parse_request(body: bytes) -> AddCheckpoint:
    """Parse the body of a request.

    Raises:
        FormatRefused: too long or malformed (`tlog.witness.malformed`, `tlog.note.malformed`).
    """
    try:
        text = body.decode() if len(body) <= REQUEST_BYTES else ""
    except UnicodeDecodeError as err:
        raise FormatRefused(_MALFORMED, "not text") from err
    head, blank, note = text.partition("\n\n")
    first, *proof = head.split("\n")
    size = first.removeprefix(_OLD)
    if not blank or not first.startswith(_OLD) or not DECIMAL.fullmatch(size) or len(proof) > PROOF_HASHES:
        raise FormatRefused(_MALFORMED, "not a request to cosign", expected="old size, proof, blank line, checkpoint")
    hashes = tuple(decode_b64(item, path="proof", ceiling=HASH_BYTES) for item in proof)
    if int(size) > MAX_SIZE or any(len(item) != HASH_BYTES for item in hashes):
        raise FormatRefused(_MALFORMED, "no size or hash of a log")
    return AddCheckpoint(old=int(size), proof=hashes, note=parse_note(note))


def decide(request: AddCheckpoint, logs: Mapping[str, VerifierKey], seen: Mapping[str, Seen]) -> Checkpoint:
    """Return the checkpoint that may be cosigned once it is stored as what was seen last.

    Args:
        request: as parsed.
        logs: keys of the logs that are witnessed, by origin.
        seen: what was cosigned last, by origin.

    Raises:
        RequestRefused: another log (`tlog.witness.unknown_log`).
        Refused: not signed by it (`tlog.note.signature`), or it does not continue what was seen
            (`tlog.proof.consistency`).
        FormatRefused: malformed, or the old size is above the new (`tlog.witness.malformed`).
        Conflict: another size was cosigned last, or another root of this size.
    """
    # 1
    origin = parse_checkpoint(request.note.text).origin
    if origin not in logs:
        raise RequestRefused("tlog.witness.unknown_log", "this log is not witnessed here", actual=origin[:80])
    # 2
    checkpoint = verify_checkpoint(request.note, logs[origin])
    # 3
    if request.old > checkpoint.size:
        raise FormatRefused(_MALFORMED, "the old size is above the new", expected=f"at most {checkpoint.size}")
    # 4
    latest = seen.get(origin, Seen())
    if request.old != latest.size:
        raise Conflict(latest.size, "another size was cosigned last")
    # 5
    if checkpoint.size == latest.size and checkpoint.root != latest.root:
        raise Conflict(latest.size, "another root of this size was cosigned")
    # 6
    verify_consistency(latest.size, checkpoint.size, request.proof, latest.root, checkpoint.root)
    return checkpoint
