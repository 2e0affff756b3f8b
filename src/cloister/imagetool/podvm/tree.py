"""A file tree in memory: what goes into the root or the initrd, before it has a form on disk.

Owner is always root, time stamps do not exist: a tree is a pure value, so the same inputs give the same image whoever
builds it, wherever and whenever.
"""

from __future__ import annotations

import enum
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import Refused


class Kind(enum.Enum):
    """What a path is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    CHARACTER_DEVICE = "character device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One path: `data` of a file, `target` of a symbolic link, `device` (major, minor) of a device."""

    kind: Kind
    mode: int
    data: bytes = b""
    target: str = ""
    device: tuple[int, int] = (0, 0)


_DIRECTORY: Final = Node(kind=Kind.DIRECTORY, mode=0o755)


@dataclass(slots=True)
class Tree:
    """Relative paths to nodes; parents of a path are made as directories of mode 0755."""

    nodes: dict[str, Node] = field(default_factory=dict)

    def add(self, path: str, node: Node) -> None:
        """Put `node` at `path`.

        Raises:
            Refused: the path leaves the tree, runs through a file, or another node is there (`imagetool.tree.*`).
        """
        parts = path.split("/")
        if not path or any(part in {"", ".", ".."} for part in parts):
            raise Refused("imagetool.tree.path", "not a clean relative path", path=path)
        for end in range(1, len(parts)):
            parent = "/".join(parts[:end])
            if self.nodes.setdefault(parent, _DIRECTORY).kind is not Kind.DIRECTORY:
                raise Refused("imagetool.tree.conflict", "path runs through something not a directory", path=path)
        known = self.nodes.get(path)
        if known is not None and known != node:
            raise Refused("imagetool.tree.conflict", "two different things at one path", path=path)
        self.nodes[path] = node

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Put a regular file at `path`."""
        self.add(path, Node(kind=Kind.FILE, mode=mode, data=data))

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """Put a directory at `path`."""
        self.add(path, Node(kind=Kind.DIRECTORY, mode=mode))

    def add_link(self, path: str, target: str) -> None:
        """Put a symbolic link at `path`."""
        self.add(path, Node(kind=Kind.LINK, mode=0o777, target=target))

    def files(self) -> Iterator[tuple[str, Node]]:
        """Yield the regular files, sorted by path."""
        return ((path, node) for path, node in self if node.kind is Kind.FILE)

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        """Yield all paths with their nodes, sorted by path components, so that a directory precedes its content."""
        return iter(sorted(self.nodes.items(), key=lambda item: item[0].split("/")))

    def to_tar(self, *, mtime: int) -> bytes:
        """Return the tree as an uncompressed GNU tar archive, owner 0:0, every time stamp `mtime`."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path, node in self:
                archive.addfile(_tar_header(path, node, mtime), io.BytesIO(node.data))
        return out.getvalue()


_TAR_TYPES: Final = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.LINK: tarfile.SYMTYPE,
    Kind.CHARACTER_DEVICE: tarfile.CHRTYPE,
}


def _tar_header(path: str, node: Node, mtime: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.type = _TAR_TYPES[node.kind]
    header.mode = node.mode
    header.mtime = mtime
    header.size = len(node.data)
    header.linkname = node.target
    header.devmajor, header.devminor = node.device
    return header
