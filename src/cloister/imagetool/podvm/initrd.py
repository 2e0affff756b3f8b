"""The initrd: busybox, dmsetup, a handful of kernel modules and one short script.

Uncompressed: it is small, the firmware copies it by DMA, and decompression under emulation costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloister.imagetool.podvm.cpio import write_cpio
from cloister.imagetool.podvm.kmod import Module
from cloister.imagetool.podvm.tree import Kind, Node, Tree

_MODULE_FOLDER: Final = "usr/lib/modules"
_CONSOLE: Final = Node(kind=Kind.CHARACTER_DEVICE, mode=0o600, device=(5, 1))
_BARE_INIT: Final = """#!/bin/busybox sh
echo "{line}" > /dev/console
exec /bin/busybox poweroff -f
"""


def build_initrd(tree: Tree, release: str, early: Sequence[Module], late: Sequence[Module], *, mtime: int) -> bytes:
    """Return the initrd made of `tree` and the modules of kernel `release`, for busybox `modprobe`.

    Files `early` and `late` beside the modules name the last of each list. Every module is recorded as depending on
    all before it, so one process loads a whole list in the order computed at build time: a process costs tens of
    milliseconds under emulation.
    """
    folder = f"{_MODULE_FOLDER}/{release}"
    modules = [*early, *late]
    lines = []
    for number, module in enumerate(modules):
        tree.add_file(f"{folder}/{module.name}.ko", module.data)
        before = "".join(f" {earlier.name}.ko" for earlier in reversed(modules[:number]))
        lines.append(f"{module.name}.ko:{before}\n")
    tree.add_file(f"{folder}/modules.dep", "".join(lines).encode())
    for name, group in (("early", early), ("late", late)):
        tree.add_file(f"{_MODULE_FOLDER}/{name}", f"{group[-1].name if group else ''}\n".encode())
    tree.add("dev/console", _CONSOLE)
    return write_cpio(tree, mtime=mtime)


def build_bare_initrd(busybox: bytes, *, line: str = "bare initrd up", mtime: int = 0) -> bytes:
    """Return an initrd that prints `line` on the console and powers off: the floor that start times are held against.

    Args:
        busybox: a static busybox; `bundle.busybox()` has the one of the image.
        line: text without quotes, backslash or dollar sign.
        mtime: time stamp of the files in seconds since 1970.
    """
    tree = Tree()
    tree.add_file("bin/busybox", busybox, 0o755)
    tree.add_file("init", _BARE_INIT.format(line=line).encode(), 0o755)
    tree.add("dev/console", _CONSOLE)
    return write_cpio(tree, mtime=mtime)
