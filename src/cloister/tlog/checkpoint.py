"""Checkpoints (C2SP tlog-checkpoint): a log's statement of its size and root, as the text of a signed note.

Three lines: origin, size, root; further lines are extensions, which are signed and not understood. The origin is the
name of the log's key. `parse_checkpoint` reads a text; `verify_checkpoint` says which log stands behind it.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Refused
from cloister.tlog.merkle import EMPTY_ROOT, HASH_BYTES, MAX_SIZE
from cloister.tlog.note import SignedNote, VerifierKey, verify_note
from cloister.wire.base64 import decode_b64, encode_b64

DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_MALFORMED: Final = "tlog.checkpoint.malformed"


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Size and root of a log.

    Attributes:
        origin: which log.
        size: entries.
        root: hash of the tree.
        extensions: further lines, each without its newline.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the text to sign."""
        lines = (self.origin, str(self.size), encode_b64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse the text of a checkpoint.

    Raises:
        FormatRefused: not one (`tlog.checkpoint.malformed`).
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise FormatRefused(_MALFORMED, "not a checkpoint", expected="lines of origin, size and root")
    origin, size, root, *extensions = lines[:-1]
    if not DECIMAL.fullmatch(size) or int(size) > MAX_SIZE:
        raise FormatRefused(_MALFORMED, "no size of a log", actual=size[:20])
    checkpoint = Checkpoint(
        origin=origin,
        size=int(size),
        root=decode_b64(root, path="root", ceiling=HASH_BYTES),
        extensions=tuple(extensions),
    )
    if len(checkpoint.root) != HASH_BYTES or (checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT):
        raise FormatRefused(_MALFORMED, "no root of a log of this size")
    return checkpoint


def verify_checkpoint(note: SignedNote, key: VerifierKey) -> Checkpoint:
    """Return the checkpoint if it is signed by the log of this key.

    Raises:
        FormatRefused: not a checkpoint.
        Refused: not signed by it (`tlog.note.signature`), or of another log (`tlog.checkpoint.origin`).
    """
    checkpoint = parse_checkpoint(verify_note(note, key))
    if checkpoint.origin != key.name:
        raise Refused(
            "tlog.checkpoint.origin", "checkpoint is of another log", expected=key.name, actual=checkpoint.origin[:80]
        )
    return checkpoint
