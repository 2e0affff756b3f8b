"""Kernel modules: which files a list of module names needs, dependencies first.

Dependencies come from each module's own `.modinfo` section, at build time, and become plain load order; nothing in the
guest decides about it. `cloister.imagetool.podvm.initrd` writes that order down for busybox.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import Refused
from cloister.imagetool.podvm.elf import section_content

_SIGNATURE_MARK: Final = b"~Module signature appended~\n"  # include/linux/module_signature.h
_SIGNATURE_INFO_BYTES: Final = 12  # struct module_signature, whose last member is the size of the signature before it
_SIZE_BYTES: Final = 4
_SUFFIX: Final = ".ko.xz"
_MODULE_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A kernel module: canonical name (with underscores), decompressed file."""

    name: str
    data: bytes


class ModuleSet:
    """All modules of one kernel package, by name."""

    def __init__(self, files: Mapping[str, bytes], builtin: Iterable[str]) -> None:
        """Index `files` (path to xz-compressed module) and `builtin` (lines of `modules.builtin`)."""
        self._files = {_name(path): data for path, data in files.items() if path.endswith(_SUFFIX)}
        self._builtin = {_name(line) for line in builtin if line}
        self._loaded: dict[str, Module] = {}

    def in_load_order(self, wanted: Sequence[str]) -> list[Module]:
        """Return `wanted` and all they depend on, each once, dependencies first.

        Raises:
            Refused: a name that is neither a module nor built in, or a dependency circle (`imagetool.kmod.*`).
        """
        order: dict[str, Module] = {}
        for name in wanted:
            self._visit(name, (), order)
        return list(order.values())

    def _visit(self, name: str, above: tuple[str, ...], order: dict[str, Module]) -> None:
        if name in order or name in self._builtin:
            return
        if name in above:
            raise Refused("imagetool.kmod.circle", "modules depend on each other in a circle", path=name)
        for needed in _dependencies(self._module(name).data):
            self._visit(needed, (*above, name), order)
        order[name] = self._module(name)

    def _module(self, name: str) -> Module:
        if name not in self._files:
            raise Refused(
                "imagetool.kmod.unknown",
                "this kernel has no such module",
                path=name,
                hint="the kernel's configuration changed: correct the module lists in images/podvm.toml",
            )
        if name not in self._loaded:
            self._loaded[name] = Module(name=name, data=_decompress(name, self._files[name]))
        return self._loaded[name]


def _decompress(name: str, data: bytes) -> bytes:
    reader = lzma.LZMADecompressor()
    try:
        out = reader.decompress(data, max_length=_MODULE_BYTES)
    except lzma.LZMAError as err:
        raise Refused("imagetool.kmod.malformed", "module is not an xz stream", path=name) from err
    if not reader.eof:
        raise Refused("imagetool.kmod.malformed", "module too big or cut off", path=name)
    return _unsigned(name, out)


def _unsigned(name: str, module: bytes) -> bytes:
    """Return the module without its appended signature (kernel: Documentation/admin-guide/module-signing.rst).

    Initrd and root are measured, so the signature says nothing more, and checking it costs 10 ms each under emulation.

    Raises:
        Refused: the signature's size is not that of a signature (`imagetool.kmod.malformed`).
    """
    content = module.removesuffix(_SIGNATURE_MARK)
    if content == module:
        return module
    size = int.from_bytes(content[-_SIZE_BYTES:], "big") + _SIGNATURE_INFO_BYTES
    if size >= len(content):
        raise Refused("imagetool.kmod.malformed", "module's signature is longer than the module", path=name)
    return content[:-size]


def _dependencies(module: bytes) -> list[str]:
    for entry in section_content(module, ".modinfo").split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == b"depends":
            return [name.replace("-", "_") for name in value.decode("ascii").split(",") if name]
    return []


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")
