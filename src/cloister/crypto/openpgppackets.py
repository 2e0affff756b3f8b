"""Frames of OpenPGP data: armor, packets, multiprecision integers.

RFC 9580 section 4.2 (packets, both formats of their heads), 3.2 (integers), 6.2 (armor). Read leniently where Go's
library departs: first partial lengths below 512 bytes, integers whose length counts leading zeros. Everything is from
strangers; nothing but `FormatRefused` is raised.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Final, NamedTuple

from cloister.errors import FormatRefused
from cloister.wire.limits import OPENPGP_PACKETS

CODE: Final = "crypto.openpgp"
PKESK: Final = 1
SECRET_KEY: Final = 5
PUBLIC_KEY: Final = 6
SECRET_SUBKEY: Final = 7
COMPRESSED: Final = 8
LITERAL: Final = 11
PUBLIC_SUBKEY: Final = 14
SEIPD: Final = 18


class Packet(NamedTuple):
    """A packet: its type and its body."""

    tag: int
    body: bytes


def dearmor(data: bytes) -> bytes:
    """Return the bytes of the first armored block, or `data` when it is binary (RFC 9580, section 6).

    Raises:
        FormatRefused: `crypto.openpgp.malformed`.
    """
    if not data.lstrip().startswith(b"-----BEGIN PGP "):
        return data
    lines = [line.strip() for line in data.partition(b"-----END PGP ")[0].lstrip().splitlines()]
    begin = lines.index(b"") if b"" in lines else len(lines)  # headers end with an empty line
    body = [line for line in lines[begin:] if not line.startswith(b"=")]  # such a line is a check sum
    try:
        return base64.b64decode(b"".join(body), validate=True)
    except binascii.Error as err:
        raise malformed("armor") from err


def read_packets(data: bytes, *, ceiling: int) -> Iterator[Packet]:
    """Yield the packets of `data`, partial bodies joined whatever the length of their parts.

    Raises:
        FormatRefused: longer than `ceiling` (`crypto.openpgp.too_long`), too many, or no packets (`.malformed`).
    """
    if len(data) > ceiling:
        raise FormatRefused(f"{CODE}.too_long", "too many bytes of OpenPGP data", expected=f"at most {ceiling}")
    at = 0
    for _ in range(OPENPGP_PACKETS):
        if at == len(data):
            return
        head = data[at]
        if not head & 0x80:
            raise malformed("packet")
        if head & 0x40:
            body, at = _new_body(data, at + 1)
            yield Packet(head & 0x3F, body)
        else:
            width = (1, 2, 4, 0)[head & 3]
            start = at + 1 + width
            # Without a length it is the rest: so GnuPG writes what it compresses.
            at = start + int.from_bytes(data[at + 1 : start], "big") if width else len(data)
            if at > len(data):
                raise malformed("packet")
            yield Packet((head >> 2) & 0x0F, data[start:at])
    if at != len(data):
        raise malformed("packets")


def _new_body(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the body whose length stands at `at` in the new format, and where the next packet begins."""
    parts = []
    partial = True
    while partial:
        reader = Reader(data, at)
        first = reader.byte()
        partial = 224 <= first < 255
        if first < 192:
            size = first
        elif first < 224:
            size = ((first - 192) << 8) + reader.byte() + 192
        elif partial:
            size = 1 << (first & 0x1F)
        else:
            size = int.from_bytes(reader.take(4), "big")
        parts.append(reader.take(size))
        at = reader.at
    return b"".join(parts), at


def write_packet(tag: int, body: bytes) -> bytes:
    """Return a packet in the new format, its length in four octets."""
    return bytes((0xC0 | tag, 0xFF)) + len(body).to_bytes(4, "big") + body


def write_number(content: bytes) -> bytes:
    """Return a multiprecision integer."""
    value = int.from_bytes(content, "big")
    return value.bit_length().to_bytes(2, "big") + value.to_bytes((value.bit_length() + 7) // 8, "big")


class Reader:
    """Takes bytes from the front, and refuses when there are none left."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def take(self, count: int) -> bytes:
        """Take so many bytes."""
        if self.at + count > len(self.data):
            raise malformed("packet")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """Take one octet."""
        return self.take(1)[0]

    def number(self) -> bytes:
        """Take a multiprecision integer. Its length may count leading zeros, as Go's library writes it."""
        return self.take((int.from_bytes(self.take(2), "big") + 7) // 8)

    def rest(self) -> bytes:
        """Take what is left."""
        return self.take(len(self.data) - self.at)


def malformed(what: str) -> FormatRefused:
    """Return the refusal of data that does not parse."""
    return FormatRefused(f"{CODE}.malformed", f"{what} of OpenPGP data is malformed", path="openpgp")
