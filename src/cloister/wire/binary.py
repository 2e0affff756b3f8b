"""A bounds-checked reader over bytes, for binary formats of either byte order.

Every read names the field it reads, so that a truncated structure is refused with the name of what is missing. The
reader never returns fewer bytes than asked, and `finish` refuses trailing bytes: both are how parsers in this
project fail closed.
"""

from __future__ import annotations

from typing import Literal

from cloister.errors import FormatRefused

ByteOrder = Literal["big", "little"]


class BinaryReader:
    """Reads fields from `data` in order.

    Args:
        data: the whole structure.
        order: byte order of integers.
        code: error code prefix of the format, for example `tee.tpm.attest`.
    """

    __slots__ = ("_code", "_data", "_offset", "_order")

    def __init__(self, data: bytes, *, order: ByteOrder, code: str) -> None:
        self._data = data
        self._offset = 0
        self._order: ByteOrder = order
        self._code = code

    @property
    def offset(self) -> int:
        """Bytes consumed so far."""
        return self._offset

    @property
    def remaining(self) -> int:
        """Bytes left."""
        return len(self._data) - self._offset

    def take(self, count: int, field: str) -> bytes:
        """Return exactly `count` bytes.

        Raises:
            FormatRefused: fewer bytes remain (`<code>.truncated`).
        """
        start, end = self._offset, self._offset + count
        if count < 0 or end > len(self._data):
            raise FormatRefused(
                f"{self._code}.truncated",
                f"structure ends inside {field}",
                path=f"byte {self._offset}",
                expected=f"{count} bytes",
                actual=f"{self.remaining} bytes",
            )
        self._offset = end
        return self._data[start:end]

    def unsigned(self, width: int, field: str) -> int:
        """Return an unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width, field), self._order)

    def sized(self, width: int, field: str, *, ceiling: int) -> bytes:
        """Return the bytes behind a length prefix of `width` bytes.

        Raises:
            FormatRefused: the length exceeds `ceiling` (`<code>.too_long`) or the rest of the data.
        """
        length = self.unsigned(width, f"{field} length")
        if length > ceiling:
            raise FormatRefused(
                f"{self._code}.too_long",
                f"{field} is longer than any real one",
                path=f"byte {self._offset}",
                expected=f"at most {ceiling}",
                actual=str(length),
            )
        return self.take(length, field)

    def finish(self) -> None:
        """Refuse trailing bytes.

        Raises:
            FormatRefused: bytes remain (`<code>.trailing_bytes`).
        """
        if self.remaining:
            raise FormatRefused(
                f"{self._code}.trailing_bytes",
                "bytes follow the end of the structure",
                path=f"byte {self._offset}",
                expected="0 bytes",
                actual=f"{self.remaining} bytes",
            )
