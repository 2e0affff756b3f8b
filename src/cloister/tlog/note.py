"""Signed notes (C2SP signed-note) with Ed25519 keys, and cosignatures (C2SP tlog-cosignature, `cosignature/v1`).

A verifier key is text, `name+keyid+base64(type || public key)`; type 0x01 signs the note's text, 0x04 is a witness's
and signs the text under a time. ECDSA and ML-DSA keys are refused as keys and ignored as signatures. A note is what it
says only to who verified it: `SignedNote` is parsed, `verify_*` return what held. Signing is `cloister.tlog.signers`.

Loaded in the guest: `cryptography` is imported with the first signature.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Refused
from cloister.wire.base64 import decode_b64, encode_b64

ED25519: Final = 0x01
COSIGNATURE_V1: Final = 0x04
NOTE_BYTES: Final = 64 * 1024
NOTE_SIGNATURES: Final = 32  # the specification asks for 16 at least
NAME_CHARS: Final = 200
KEY_ID_BYTES: Final = 4
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_TIME_BYTES: Final = 8
_LINE_BYTES: Final = 8 * 1024  # a post-quantum signature in base64
_LATEST: Final = 2**63 - 1
_DASH: Final = "\N{EM DASH} "
_NAME: Final = re.compile(rf"[^\s+\x00-\x1f]{{1,{NAME_CHARS}}}")
_VERIFIER: Final = re.compile(r"(?P<name>[^+]*)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/=]{1,100})")
_MALFORMED: Final = "tlog.note.malformed"
_KEY: Final = "tlog.note.verifier_key"
_SIGNATURE: Final = "tlog.note.signature"


class VerifierKey(msgspec.Struct, frozen=True, kw_only=True):
    """Who signs, and by which key.

    Attributes:
        name: key name, by convention an address without scheme.
        kind: `ED25519` or `COSIGNATURE_V1`.
        public: Ed25519 public key.
    """

    name: str
    kind: int
    public: bytes

    @property
    def identity(self) -> bytes:
        """The key id, 4 bytes: a hint, which anybody can make collide."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.identity.hex()}+{encode_b64(bytes([self.kind]) + self.public)}"


class NoteSignature(msgspec.Struct, frozen=True, kw_only=True):
    """One signature line, not verified."""

    name: str
    identity: bytes
    signature: bytes

    def line(self) -> str:
        """Return the line, with its newline."""
        return f"{_DASH}{self.name} {encode_b64(self.identity + self.signature)}\n"


class SignedNote(msgspec.Struct, frozen=True, kw_only=True):
    """A note as parsed: nothing of it is true yet.

    Attributes:
        text: what is signed, with its final newline.
        signatures: the lines below it.
    """

    text: str
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> str:
        """Return the note."""
        return self.text + "\n" + "".join(item.line() for item in self.signatures)


def parse_verifier_key(text: str, *, kind: int) -> VerifierKey:
    """Parse a verifier key of one type.

    Raises:
        FormatRefused: malformed, of another type, or its id is not that of name and key (`tlog.note.verifier_key`).
    """
    match = _VERIFIER.fullmatch(text)
    if match is None or not _NAME.fullmatch(match["name"]):
        raise FormatRefused(_KEY, "not a verifier key", expected="name+id+key", actual=text[:60])
    data = decode_b64(match["key"], path="key", ceiling=1 + PUBLIC_KEY_BYTES)
    if len(data) != 1 + PUBLIC_KEY_BYTES or data[0] != kind:
        role = "a witness (type 4)" if kind == COSIGNATURE_V1 else "a log (type 1)"
        raise FormatRefused(_KEY, "not a key of this type", expected=f"Ed25519 key of {role}", actual=text[:60])
    key = VerifierKey(name=match["name"], kind=kind, public=data[1:])
    if str(key) != text:
        raise FormatRefused(_KEY, "key id does not belong to this name and key", actual=text[:60])
    return key


def parse_note(text: str) -> SignedNote:
    """Parse a note.

    Raises:
        FormatRefused: too long, or not a note (`tlog.note.malformed`).
    """
    if len(text) > NOTE_BYTES or len(text.encode("utf-8", "replace")) > NOTE_BYTES:
        raise FormatRefused(_MALFORMED, "the note is too long", expected=f"at most {NOTE_BYTES} bytes")
    if any((ord(mark) < 0x20 and mark != "\n") or 0xD800 <= ord(mark) < 0xE000 for mark in text):
        raise FormatRefused(_MALFORMED, "control characters in a note")
    body, separator, lines = text.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise FormatRefused(_MALFORMED, "no signatures below a blank line")
    return SignedNote(text=body + "\n", signatures=parse_signatures(lines))


def parse_signatures(lines: str) -> tuple[NoteSignature, ...]:
    """Parse signature lines, each ended by a newline: the foot of a note, or a witness's answer.

    Raises:
        FormatRefused: none, too many, or not of this form (`tlog.note.malformed`).
    """
    parts = lines.split("\n")
    if parts[-1] or not 1 < len(parts) <= NOTE_SIGNATURES + 1:
        raise FormatRefused(_MALFORMED, "no signature lines", expected=f"1 to {NOTE_SIGNATURES}")
    return tuple(_parse_signature(line) for line in parts[:-1])


def _parse_signature(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space or not _NAME.fullmatch(name):
        raise FormatRefused(_MALFORMED, "not a signature line", actual=line[:60])
    data = decode_b64(encoded, path="signature", ceiling=_LINE_BYTES)
    if len(data) <= KEY_ID_BYTES:
        raise FormatRefused(_MALFORMED, "the signature is empty", actual=line[:60])
    return NoteSignature(name=name, identity=data[:KEY_ID_BYTES], signature=data[KEY_ID_BYTES:])


def verify_note(note: SignedNote, key: VerifierKey) -> str:
    """Return the text of `note` if `key` signed it.

    Raises:
        Refused: it did not, or a signature in its name is wrong (`tlog.note.signature`).
    """
    signed = _signatures_of(note.signatures, key)
    if not signed:
        raise Refused(_SIGNATURE, "the note is not signed by this key", expected=key.name)
    for item in signed:
        _verify_ed25519(key, item.signature, note.text.encode())
    return note.text


def verify_cosignature(note: SignedNote, key: VerifierKey) -> int:
    """Return when the witness `key` cosigned `note`, seconds since 1970 by its clock; the newest time of several.

    Raises:
        Refused: it did not, or a signature in its name is wrong (`tlog.note.signature`).
    """
    signed = _signatures_of(note.signatures, key)
    if not signed:
        raise Refused(_SIGNATURE, "the note is not cosigned by this witness", expected=key.name)
    times = []
    for item in signed:
        at = int.from_bytes(item.signature[:_TIME_BYTES], "big")
        if at > _LATEST:
            raise Refused(_SIGNATURE, "no time of a cosignature", expected=key.name)
        _verify_ed25519(key, item.signature[_TIME_BYTES:], cosigned_message(note.text, at))
        times.append(at)
    return max(times)


def cosigned_message(text: str, at: int) -> bytes:
    """Return what a witness signs: header and time, then the text of the checkpoint."""
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def _signatures_of(signatures: Sequence[NoteSignature], key: VerifierKey) -> list[NoteSignature]:
    identity = key.identity
    return [item for item in signatures if item.name == key.name and item.identity == identity]


def _verify_ed25519(key: VerifierKey, signature: bytes, message: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(signature) != SIGNATURE_BYTES:
        raise Refused(_SIGNATURE, "signature has the wrong length", expected=key.name)
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    except (InvalidSignature, ValueError) as err:  # ValueError: bytes that are no point of the curve
        raise Refused(_SIGNATURE, "a signature of this key does not hold", expected=key.name) from err
