"""Inputs made to cost much: of any size, each with one shape that some parser takes more than it should for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

_TWICE: Final = b',"0":0'


def shapes(size: int, seed: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, input of `size` bytes or a few less); `seed` is a good input, which some are made of."""
    yield from few(size, seed)
    yield "ones", b"\xff" * size
    yield "DER of the length it says", _der(size)
    yield "DER that nests", _nested_der(size)
    yield "CBOR that nests", b"\x81" * size
    yield "CBOR of many members", _long_cbor(size)
    yield "CBOR of no end", b"\x9f" + b"\x00" * (size - 2) + b"\xff"
    yield "JSON that nests", b"[" * size
    yield "JSON objects that nest", (b'{"a":' * (size // 5 + 1))[:size]
    yield "JSON lists that nest and end", b'{"a":' + b"[" * (size // 2 - 4) + b"]" * (size // 2 - 4) + b"}"
    yield "JSON of many members", _members(size)
    yield "JSON of many members, one twice", _members(size, _TWICE)
    yield "JSON list of many", b"[" + b"{}," * (size // 3 - 2) + b"{}]"
    yield "JSON of a long number", b'{"a":' + b"9" * (size - 6) + b"}"
    yield "JSON of a long fraction", b'{"a":0.' + b"9" * (size - 8) + b"}"
    yield "JSON of half characters", b'{"a":"' + b"\\ud800" * (size // 6 - 2) + b'"}'
    yield "JSON of numbers that are none", b'{"a":NaN,"b":"' + b" " * (size - 20) + b'"}'
    yield "digits", b"30" * (size // 2)
    yield "base64", b"A" * size
    yield "PEM of many blocks", _repeat(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", size)
    yield "PEM of many beginnings", _repeat(b"-----BEGIN CERTIFICATE-----\n", size)
    yield (
        "PEM of one long block",
        _framed(b"-----BEGIN CERTIFICATE-----\n", b"A\n", b"\n-----END CERTIFICATE-----\n", size),
    )
    yield "PEM of a long list", _framed(b"-----BEGIN X509 CRL-----\n", b"MIIA\n", b"\n-----END X509 CRL-----\n", size)
    yield "XML that nests", b"<a>" * (size // 3)
    yield "XML that nests and ends", b"<a>" * (size // 7 - 1) + b"</a>" * (size // 7 - 1)
    yield "XML of many elements", _framed(b"<a>", b"<b/>", b"</a>", size)
    yield "XML of many attributes", b"<a " + b" ".join(b'a%d=""' % n for n in range(max(1, size // 12))) + b"/>"
    yield "XML of many namespaces", b"<a " + b" ".join(b'xmlns:a%d="b"' % n for n in range(max(1, size // 22))) + b"/>"
    yield "XML of many prefixes", _framed(b"<SoftwareIdentity>", b'<b xmlns:c="d"/>', b"</SoftwareIdentity>", size)
    yield "XML with an entity", _framed(b'<!DOCTYPE a [<!ENTITY b "c">]><a>', b"&b;", b"</a>", size)
    yield "XML of long text", _framed(b"<a>", b"&amp;", b"</a>", size)
    yield "XML in a language", _framed(b'<a xml:lang="en">', b"b", b"</a>", size)
    yield "TOML of many tables", b"\n".join(b"[a%d]" % n for n in range(max(1, size // 9)))
    yield "TOML that nests", b"a = " + b"[" * (size - 4)
    yield "TOML of a deep name", (b"a." * (size // 2))[: size - 5] + b"a=1"
    yield "TOML of many names", _repeat(b"[[a]]\n", size)
    yield "TOML of a quoted name", (b"'.'." * (size // 4))[: size - 5] + b"a=1"
    yield "TOML of a deep table", b"[" + (b"a." * (size // 2))[: size - 4] + b"a]"
    yield "TOML of a deep name inside", b"a={" + (b"a." * (size // 2))[: size - 9] + b"a=1}"
    yield "TOML of a long number", b"a=" + b"9" * (size - 2)
    yield "TOML of starts", b"a=" + b"[,{." * (size // 4)
    yield "TOML of texts", b"a=" + b',"' * (size // 2 - 2) + b".'"
    yield "lines", b"\n" * size
    yield "HTTP of many headers", b"HTTP/1.1 200 OK\r\n" + _repeat(b"a: b\r\n", size - 17)
    yield (
        "HTTP of many chunks",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + _repeat(b"1\r\na\r\n", size - 47),
    )
    yield "protocol buffer of many fields", b"\x12\x00" * (size // 2)
    yield "protocol buffer of long numbers", b"\x08" + b"\xff" * (size - 1)
    if seed:
        yield "good, and spaces", (seed + b" " * max(0, size - len(seed)))[:size]
        yield "good, again and again", _repeat(seed, size) if len(seed) <= size else seed[:size]
        place = seed.rfind(b'"')
        if place > 0:
            yield "good, with a long text", seed[:place] + b"A" * max(0, size - len(seed)) + seed[place:]


def prepare(size: int) -> None:
    """Make what takes long to make, for the processes that are forked next."""
    _members(size)
    _members(size, _TWICE)


def few(size: int, seed: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield those that take little to make, for readers that admit very much."""
    yield "zeros", bytes(size)
    yield "spaces", b" " * size
    if seed:
        yield "good, and zeros", (seed + bytes(max(0, size - len(seed))))[:size]


def _der(size: int) -> bytes:
    return b"\x30\x84" + max(0, size - 6).to_bytes(4, "big") + bytes(max(0, size - 6))


def _nested_der(size: int) -> bytes:
    out = b"\x30\x00"
    while len(out) < min(size, 1 << 16) - 6:
        out = b"\x30\x83" + len(out).to_bytes(3, "big") + out
    return out + bytes(size - len(out)) if len(out) < size else out[:size]


def _long_cbor(size: int) -> bytes:
    return b"\xba" + (size // 2).to_bytes(4, "big") + b"\x01\x01" * (size // 2)


@lru_cache(maxsize=2)
def _members(size: int, last: bytes = b"") -> bytes:
    """Return an object of as many members as fit; kept, because it takes longer to make than to read."""
    parts, length, number = [], 12 + len(last), 0
    while True:
        part = b'"%x":0' % number
        length += len(part) + 1
        if length > size:
            return b"{" + b",".join(parts) + last + b"}"
        parts.append(part)
        number += 1


def _framed(begin: bytes, part: bytes, end: bytes, size: int) -> bytes:
    return begin + part * (max(0, size - len(begin) - len(end)) // len(part)) + end


def _repeat(part: bytes, size: int) -> bytes:
    return part * (size // len(part))
