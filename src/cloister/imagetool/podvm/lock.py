"""The lock of a pod-VM image: exactly which packages, by version and hash.

A text file that a person can review as a diff: a header line, then one package per line, sorted by name, fields
separated by one space: name, version, architecture, size in bytes, SHA-256. It names no mirror: where the bytes come
from does not matter, they are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused

HEADER: Final = "# cloister podvm lock 1: package version architecture size sha256"
LOCK_BYTES: Final = 1024 * 1024
_LINE: Final = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9+.-]+) "
    r"(?P<version>(?:\d+:)?\d[A-Za-z0-9.+~-]*) "
    r"(?P<architecture>amd64|all) "
    r"(?P<size>[1-9]\d{0,9}) "
    r"(?P<sha256>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LockedPackage:
    """One package as the lock pins it; `size` in bytes, `sha256` lower-case hex."""

    name: str
    version: str
    architecture: str
    size: int
    sha256: str


def parse_lock(data: bytes) -> tuple[LockedPackage, ...]:
    """Parse a lock file.

    Raises:
        FormatRefused: unknown header, a line that is not five well-formed fields, names out of order or twice
            (`imagetool.lock.*`).
    """
    if len(data) > LOCK_BYTES:
        raise FormatRefused("imagetool.lock.too_long", "lock too long", expected=f"at most {LOCK_BYTES}")
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as err:
        raise FormatRefused("imagetool.lock.malformed", "lock is not ASCII") from err
    if lines[0] != HEADER:
        raise FormatRefused("imagetool.lock.version", "unknown header", expected=HEADER, actual=lines[0][:80])
    if lines.pop() != "":
        raise FormatRefused("imagetool.lock.malformed", "last line does not end")
    packages = tuple(_parse_line(number, line) for number, line in enumerate(lines[1:], 2))
    names = [package.name for package in packages]
    if names != sorted(set(names)):
        raise FormatRefused("imagetool.lock.order", "names are not sorted or one is there twice")
    if not packages:
        raise FormatRefused("imagetool.lock.empty", "lock names no package")
    return packages


def _parse_line(number: int, line: str) -> LockedPackage:
    match = _LINE.fullmatch(line)
    if match is None:
        raise FormatRefused(
            "imagetool.lock.malformed",
            "not a lock line",
            path=f"line {number}",
            expected="name version architecture size sha256",
            actual=line[:80],
        )
    return LockedPackage(
        name=match["name"],
        version=match["version"],
        architecture=match["architecture"],
        size=int(match["size"]),
        sha256=match["sha256"],
    )


def encode_lock(packages: Iterable[LockedPackage]) -> bytes:
    """Return the text of a lock; `parse_lock` reads it back equal."""
    lines = [f"{p.name} {p.version} {p.architecture} {p.size} {p.sha256}" for p in sorted(packages)]
    return "\n".join([HEADER, *lines, ""]).encode("ascii")
