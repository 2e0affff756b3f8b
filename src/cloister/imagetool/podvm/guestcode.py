"""The guest's own Python code: which files of the `cloister` package go into the image.

The sources come from a folder the caller names (by default the installed package): they are the code that the owner
trusts with keys, so their hash is part of the bundle's key and of every reference value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import Refused
from cloister.imagetool.podvm.definition import GuestRule, matches
from cloister.wire.canonicaljson import encode_canonical

ENTRY: Final = "guest/agent.py"
_SOURCE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSource:
    """Guest source files: path relative to the package, to content."""

    files: Mapping[str, bytes]

    def digest(self) -> str:
        """Return `sha256:hex` over all paths and contents."""
        hashes = {path: hashlib.sha256(data).hexdigest() for path, data in self.files.items()}
        return f"sha256:{hashlib.sha256(encode_canonical(hashes)).hexdigest()}"


def read_guest_source(package: Path, rule: GuestRule) -> GuestSource:
    """Read the files that `rule` includes from the package folder `package`.

    Raises:
        Refused: no agent there (`imagetool.guest.no_agent`), or a file beyond 1 MiB (`imagetool.guest.too_long`).
    """
    found = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        included = any(matches(name, pattern) for pattern in rule.include)
        if not included or any(matches(name, pattern) for pattern in rule.exclude):
            continue
        found[name] = path.read_bytes()
        if len(found[name]) > _SOURCE_BYTES:
            raise Refused("imagetool.guest.too_long", "source file too long", path=name)
    if ENTRY not in found:
        raise Refused("imagetool.guest.no_agent", "the sources hold no guest agent", path=ENTRY)
    return GuestSource(files=found)
