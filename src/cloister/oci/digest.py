"""Content digests and the streaming check against them (OCI image specification, descriptor.md, "Digests").

A digest is what all trust in an image's bytes rests on once its manifest is verified. `DigestVerifier` is the only
check of bytes against a digest in Cloister: every reader feeds it while it reads, so no byte is hashed twice. Trusts
nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from cloister.errors import ImageRefused

_HEX_CHARS: Final = {"sha256": 64, "sha512": 128}
_LOWER_HEX: Final = frozenset("0123456789abcdef")


class Digest(msgspec.Struct, frozen=True):
    """Algorithm (`sha256` or `sha512`) and lower-case hexadecimal value.

    Raises:
        ImageRefused: `oci.digest.malformed` or `oci.digest.unsupported_algorithm`.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_CHARS.get(self.algorithm)
        if length is None:
            raise ImageRefused(
                "oci.digest.unsupported_algorithm",
                "digest algorithm is not supported",
                expected="sha256 or sha512",
                actual=self.algorithm[:40],
            )
        if len(self.hex) != length or not _LOWER_HEX.issuperset(self.hex):
            raise ImageRefused(
                "oci.digest.malformed",
                "not a digest",
                expected=f"{length} lower-case hexadecimal digits",
                actual=self.hex[:80],
            )

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of `data`."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())


def parse_digest(text: str) -> Digest:
    """Parse `algorithm:hex`.

    Raises:
        ImageRefused: `oci.digest.malformed` or `oci.digest.unsupported_algorithm`.
    """
    algorithm, colon, value = text.partition(":")
    if not colon:
        raise ImageRefused("oci.digest.malformed", "not a digest", expected="algorithm:hex", actual=text[:80])
    return Digest(algorithm, value)


class DigestVerifier:
    """Checks bytes, fed in order, against an expected digest and size.

    Args:
        expected: the digest the bytes must have.
        size: the exact number of bytes, or None where only the digest is known.
        code: prefix of the error codes (`oci.distribution`): `<code>.<reason>`, `<code>.size_mismatch`.
        path: what is being read, for the error.
        reason: last part of the code for other bytes than expected.
    """

    __slots__ = ("_code", "_hash", "_path", "_reason", "_size", "count", "expected")

    def __init__(
        self, expected: Digest, size: int | None, *, code: str, path: str, reason: str = "digest_mismatch"
    ) -> None:
        self.expected = expected
        self.count = 0
        self._size = size
        self._hash = hashlib.new(expected.algorithm)
        self._code = code
        self._reason = reason
        self._path = path

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes; refuses as soon as there are too many."""
        self.count += len(data)
        if self._size is not None and self.count > self._size:
            self._refuse_size("more")
        self._hash.update(data)

    def finish(self) -> None:
        """Refuse unless exactly the expected bytes were fed."""
        if self._size is not None and self.count != self._size:
            self._refuse_size(str(self.count))
        actual = self._hash.hexdigest()
        if actual != self.expected.hex:  # digests are public: no constant-time comparison
            raise ImageRefused(
                f"{self._code}.{self._reason}",
                "content does not have the digest it is named by",
                path=self._path,
                expected=str(self.expected),
                actual=f"{self.expected.algorithm}:{actual}",
            )

    def checked(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass `chunks` through and finish behind the last one; whoever stops early has checked nothing."""
        for chunk in chunks:
            self.update(chunk)
            yield chunk
        self.finish()

    def _refuse_size(self, actual: str) -> None:
        raise ImageRefused(
            f"{self._code}.size_mismatch",
            "content does not have the size its descriptor says",
            path=self._path,
            expected=f"{self._size} bytes",
            actual=actual,
        )
