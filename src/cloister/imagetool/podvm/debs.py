"""Reading Debian packages: content by `dpkg-deb --fsys-tarfile`, without running anything that is in them.

No maintainer script runs, no dpkg database comes to be, no privilege is needed. The tar stream is read in memory;
nothing is written to disk, so no path in a package can escape anywhere.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Final

from cloister.errors import FormatRefused
from cloister.imagetool.podvm.runner import run
from cloister.imagetool.podvm.tree import Kind, Node

_SECONDS: Final = 120
_MAX_MEMBERS: Final = 50_000


def read_package(path: Path) -> dict[str, Node]:
    """Return files, links and hard links (as copies) of the package at `path`, by relative path.

    Directories are left out (a tree makes the ones it needs).

    Raises:
        FormatRefused: a member that is none of these, or too many (`imagetool.debs.malformed`).
        Unavailable: `dpkg-deb` is missing or failed.
    """
    content = run(["dpkg-deb", "--fsys-tarfile", str(path)], seconds=_SECONDS)
    found: dict[str, Node] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise FormatRefused("imagetool.debs.malformed", "too many files in a package", path=path.name)
                node = _node(archive, member, found)
                if node is not None:
                    found[_clean(member.name)] = node
    except tarfile.TarError as err:
        raise FormatRefused("imagetool.debs.malformed", f"not a tar archive: {err}", path=path.name) from err
    return found


def _node(archive: tarfile.TarFile, member: tarfile.TarInfo, found: dict[str, Node]) -> Node | None:
    if member.isdir():
        return None
    if member.issym():
        return Node(kind=Kind.LINK, mode=0o777, target=member.linkname)
    if member.islnk() and _clean(member.linkname) in found:
        return found[_clean(member.linkname)]
    stream = archive.extractfile(member) if member.isreg() else None
    if stream is None:
        raise FormatRefused("imagetool.debs.malformed", "neither file, link nor directory", path=member.name)
    return Node(kind=Kind.FILE, mode=0o755 if member.mode & 0o111 else 0o644, data=stream.read())


def _clean(name: str) -> str:
    return name.removeprefix("./").rstrip("/")
