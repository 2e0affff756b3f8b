"""The root file system: EROFS, LZ4, made by the locked `mkfs.erofs` through the locked loader and libraries.

Not the build machine's tools: the bytes of a compressed image depend on the version of compressor and file system
tool, and the root hash is a reference value. Input is a tar archive in memory, so neither umask, owner, clock nor
directory order of the build machine can enter.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from cloister.imagetool.podvm.definition import Definition
from cloister.imagetool.podvm.runner import run
from cloister.imagetool.podvm.tree import Kind, Tree
from cloister.oci.dmverity import BLOCK_BYTES

_SECONDS: Final = 300
_MKFS: Final = "usr/bin/mkfs.erofs"


def build_erofs(tree: Tree, definition: Definition, tools: Tree) -> bytes:
    """Return `tree` as an EROFS image of whole 4096-byte blocks.

    Raises:
        Unavailable: `mkfs.erofs` failed.
    """
    with tempfile.TemporaryDirectory(prefix="cloister-podvm-") as folder:
        stage = Path(folder)
        command = _tool(stage / "tools", definition, tools)
        source, image = stage / "root.tar", stage / "root.erofs"
        source.write_bytes(tree.to_tar(mtime=definition.source_date_epoch))
        fixed = [f"-T{definition.source_date_epoch}", f"-U{definition.erofs_uuid}", "--workers=1", "--quiet"]
        run([*command, *definition.erofs_options, *fixed, "--tar=f", str(image), str(source)], seconds=_SECONDS)
        data = image.read_bytes()
    return data + bytes(-len(data) % BLOCK_BYTES)


def _tool(folder: Path, definition: Definition, tools: Tree) -> list[str]:
    """Write the tools below `folder` and return the words that start `mkfs.erofs`."""
    for path, node in tools:
        target = folder / path
        if node.kind is Kind.DIRECTORY:
            target.mkdir(parents=True)
        elif node.kind is Kind.LINK:
            target.symlink_to(node.target)
        else:
            target.write_bytes(node.data)
            target.chmod(0o700)
    rule = definition.python
    return [str(folder / rule.loader), "--library-path", str(folder / rule.libraries), str(folder / _MKFS)]
