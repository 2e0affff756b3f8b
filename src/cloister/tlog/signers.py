"""Keys that sign notes: a log's and a witness's, with Go's text form of a private key.

`PRIVATE+KEY+name+id+base64(type || seed)`, as golang.org/x/mod/sumdb/note writes it. Private keys never appear in a
repr or an error. What has to be true before a key signs is the caller's to see to.
"""

from __future__ import annotations

import re
from typing import Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.errors import FormatRefused
from cloister.tlog.note import COSIGNATURE_V1, ED25519, NoteSignature, VerifierKey, cosigned_message, parse_verifier_key
from cloister.wire.base64 import decode_b64, encode_b64

SEED_BYTES: Final = 32
_PREFIX: Final = "PRIVATE+KEY+"
_SIGNER: Final = re.compile(r"PRIVATE\+KEY\+(?P<name>[^+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/=]{1,100})")
_CODE: Final = "tlog.note.private_key"


class _Ed25519Key:
    """An Ed25519 key with a name; what it signs is its subclass's."""

    __slots__ = ("_key", "_seed", "verifier")
    kind: int

    def __init__(self, name: str, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise FormatRefused(_CODE, "not the seed of a key", expected=f"{SEED_BYTES} bytes")
        try:
            self._key = Ed25519PrivateKey.from_private_bytes(seed)
        except UnsupportedAlgorithm as err:
            raise FormatRefused(_CODE, "this machine's OpenSSL has no Ed25519") from err
        self._seed = seed
        key = VerifierKey(name=name, kind=self.kind, public=self._key.public_key().public_bytes_raw())
        self.verifier = parse_verifier_key(str(key), kind=self.kind)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.verifier.name!r})"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse a private key.

        Raises:
            FormatRefused: malformed, of another type, or its id is not that of name and key (`tlog.note.private_key`).
        """
        match = _SIGNER.fullmatch(text.strip())
        if match is None:
            raise FormatRefused(_CODE, "not a private key of a note", expected="PRIVATE+KEY+name+id+key")
        data = decode_b64(match["key"], path="key", ceiling=1 + SEED_BYTES)
        if len(data) != 1 + SEED_BYTES or data[0] != cls.kind:
            raise FormatRefused(_CODE, "private key is of another type", expected=f"type {cls.kind}")
        key = cls(match["name"], data[1:])
        if key.verifier.identity.hex() != match["id"]:
            raise FormatRefused(_CODE, "key id does not belong to this name and key")
        return key

    def private_text(self) -> str:
        """Return the private key; the caller keeps the file private."""
        verifier = self.verifier
        return f"{_PREFIX}{verifier.name}+{verifier.identity.hex()}+{encode_b64(bytes([self.kind]) + self._seed)}"

    def _sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


class LogSigner(_Ed25519Key):
    """The key of a log."""

    __slots__ = ()
    kind = ED25519

    def sign(self, text: str) -> NoteSignature:
        """Sign the text of a note."""
        return NoteSignature(
            name=self.verifier.name, identity=self.verifier.identity, signature=self._sign(text.encode())
        )


class WitnessSigner(_Ed25519Key):
    """The key of a witness."""

    __slots__ = ()
    kind = COSIGNATURE_V1

    def cosign(self, text: str, *, at: int) -> NoteSignature:
        """Cosign the text of a checkpoint.

        Args:
            text: with its final newline.
            at: seconds since 1970.
        """
        signature = at.to_bytes(8, "big") + self._sign(cosigned_message(text, at))
        return NoteSignature(name=self.verifier.name, identity=self.verifier.identity, signature=signature)
