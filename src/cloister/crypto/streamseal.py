"""Sealing of standard streams between a pod and its owner, through a host that carries ciphertext only.

One 32-byte stream key per pod, known to the guest (from the key broker) and to the owner. Each process gets a fresh
32-byte salt, chosen by the guest; each of its streams a key of its own:

    key    = HKDF-SHA256(stream key, salt, info = "cloister-stream-v1" NUL name)          (RFC 5869)
    record = AES-256-GCM(key, nonce = 96-bit big-endian record number, text, aad = "data" or "final")  (SP 800-38D)

A record is one frame of the streams port, so it has a length already. The record numbered n opens only as the nth:
dropping, repeating, reordering, and carrying a record to another stream or process all refuse. The last record is
`final`; an end of file without it is a truncation, and refuses. What remains visible to the host: when, and how much.

Standard input is sealed by the owner to the guest in the same way. Trusts the guest's random salt for freshness: an
input recorded from one process does not open at another.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister.crypto.aead import GCM_NONCE_BYTES, GCM_TAG_BYTES, open_aes256gcm, seal_aes256gcm
from cloister.errors import Refused

STREAM_KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
RECORD_OVERHEAD: Final = GCM_TAG_BYTES
_INFO: Final = b"cloister-stream-v1\0"
_DATA: Final = b"data"
_FINAL: Final = b"final"
_RECORDS: Final = 2**48  # far above any stream, far below the 96 bits of the counter

StreamName = Literal["stdin", "stdout", "stderr"]


class StreamSealer:
    """Seals one stream, record after record."""

    __slots__ = ("_finished", "_key", "_number")

    def __init__(self, stream_key: bytes | bytearray, salt: bytes, name: StreamName) -> None:
        self._key = derive_key(stream_key, salt, name)
        self._number = 0
        self._finished = False

    def seal(self, data: bytes) -> bytes:
        """Return the next record, `RECORD_OVERHEAD` bytes longer than `data`."""
        return self._seal(data, _DATA)

    def finish(self) -> bytes:
        """Return the final record; nothing can be sealed after it."""
        record = self._seal(b"", _FINAL)
        self._finished = True
        self._key[:] = bytes(len(self._key))
        return record

    def _seal(self, data: bytes, kind: bytes) -> bytes:
        if self._finished:
            raise RuntimeError("the stream was finished")
        nonce = _nonce(self._number)
        self._number += 1
        return seal_aes256gcm(self._key, nonce, data, kind)


class StreamOpener:
    """Opens one stream, record after record."""

    __slots__ = ("_finished", "_key", "_number")

    def __init__(self, stream_key: bytes | bytearray, salt: bytes, name: StreamName) -> None:
        self._key = derive_key(stream_key, salt, name)
        self._number = 0
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether the final record was opened."""
        return self._finished

    def open(self, record: bytes) -> bytes:
        """Return the text of the next record.

        Raises:
            Refused: `crypto.streamseal.not_authentic`, or `crypto.streamseal.after_final`.
        """
        if self._finished:
            raise Refused("crypto.streamseal.after_final", "a record follows the final one")
        nonce = _nonce(self._number)
        try:
            text = open_aes256gcm(self._key, nonce, record, _DATA)
        except Refused:
            text = self._open_final(nonce, record)
        self._number += 1
        return text

    def end(self) -> None:
        """Return if the stream may end here.

        Raises:
            Refused: the final record did not come (`crypto.streamseal.truncated`).
        """
        if not self._finished:
            raise Refused(
                "crypto.streamseal.truncated",
                "the stream ends without its final record: something was cut off",
                hint="the host, or the connection to it, dropped the rest",
            )

    def _open_final(self, nonce: bytes, record: bytes) -> bytes:
        try:
            text = open_aes256gcm(self._key, nonce, record, _FINAL)
        except Refused as err:
            raise Refused(
                "crypto.streamseal.not_authentic",
                "record was changed, left out, repeated or moved",
                path=f"record {self._number}",
            ) from err
        self._finished = True
        self._key[:] = bytes(len(self._key))
        return text


def derive_key(stream_key: bytes | bytearray, salt: bytes, name: StreamName) -> bytearray:
    """Return the key of stream `name` of the process with `salt`.

    Raises:
        Refused: key or salt has another length (`crypto.streamseal.length`).
    """
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    _require_length("stream key", stream_key, STREAM_KEY_BYTES)
    _require_length("salt", salt, SALT_BYTES)
    kdf = HKDF(algorithm=SHA256(), length=STREAM_KEY_BYTES, salt=salt, info=_INFO + name.encode())
    return bytearray(kdf.derive(bytes(stream_key)))


def require_stream_key(key: bytearray) -> bytearray:
    """Return `key` if it can be a stream key.

    Raises:
        Refused: it has another length (`crypto.streamseal.length`).
    """
    _require_length("stream key", key, STREAM_KEY_BYTES)
    return key


def _require_length(what: str, value: bytes | bytearray, length: int) -> None:
    if len(value) != length:
        raise Refused(
            "crypto.streamseal.length",
            f"{what} has the wrong length",
            expected=f"{length} bytes",
            actual=f"{len(value)} bytes",
        )


def _nonce(number: int) -> bytes:
    if number >= _RECORDS:
        raise Refused("crypto.streamseal.exhausted", "too many records in one stream")
    return number.to_bytes(GCM_NONCE_BYTES, "big")
