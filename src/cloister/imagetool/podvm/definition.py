"""The definition of a pod-VM image: one TOML text that says what is in it and why.

Each package rule names the files it contributes; nothing enters the image that no rule names, and a pattern that
matches nothing is an error. Patterns: `*` stays within one path component, `**` crosses them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Unavailable

DEFINITION_BYTES: Final = 256 * 1024
VERSION: Final = 1
_DEFINITION_FILE: Final = "podvm.toml"


class PackageRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One package and what is taken from it.

    Attributes:
        name: package name; `*` stands for a version that is part of the name.
        why: the reason it is in the image.
        follow: name of a metapackage whose one dependency matching `name` is meant.
        root: patterns of files for the root file system.
        initrd: patterns of files for the initrd.
        tools: patterns of files that the builder runs and that are not in the image.
        bundle: name in the bundle to the pattern of the one file copied there.
    """

    name: str
    why: str
    follow: str = ""
    root: tuple[str, ...] = ()
    initrd: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    bundle: dict[str, str] = {}


class KernelRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which package holds the kernel's modules, and which of them go where (dependencies are added).

    Attributes:
        package: rule name of the package.
        modules: pattern of its module files.
        builtin: its list of what is built in.
        cmdline: kernel command line without the root hash.
        early_modules: what mounting the root needs; loaded first by the initrd.
        late_modules: what the agent needs; loaded by the initrd while it mounts the root.
        root_modules: in the root, for when they are needed; `order` beside them says in which order.
    """

    package: str
    modules: str
    builtin: str
    cmdline: str
    early_modules: tuple[str, ...]
    late_modules: tuple[str, ...]
    root_modules: tuple[str, ...]


class FileRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A file of our own: `source` beside the definition, or `text`."""

    path: str
    source: str = ""
    text: str = ""
    executable: bool = False


class LayoutRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Directories, links and own files of a tree."""

    directories: tuple[str, ...]
    links: dict[str, str]
    files: tuple[FileRule, ...]


class GuestRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The guest's own Python code: patterns relative to the `cloister` package, and where it lies in the root."""

    directory: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    start: FileRule
    read_ahead: FileRule


class PythonRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The image's interpreter, its library, and what of the library is left out."""

    interpreter: str
    loader: str
    libraries: str
    library: str
    exclude: tuple[str, ...]


class MemoryWriteRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Bytes (hex) that the firmware's PEI phase leaves at `offset` of its own volume."""

    offset: int
    data: str


class FirmwareRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What is known of one OVMF file: its digest, its version text, and what it changes before measuring itself."""

    digest: str
    version: str
    writes: tuple[MemoryWriteRule, ...]


class UKIRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where the UEFI stub is, and which firmware files are known."""

    package: str
    stub: str
    firmware: tuple[FirmwareRule, ...]


class Definition(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The whole definition."""

    version: int
    name: str
    suite: str
    architecture: str
    source_date_epoch: int
    erofs_uuid: str
    erofs_options: tuple[str, ...]
    verity_salt: str
    kernel: KernelRule
    python: PythonRule
    guest: GuestRule
    uki: UKIRule
    root: LayoutRule
    initrd: LayoutRule
    package: tuple[PackageRule, ...]


def parse_definition(data: bytes) -> Definition:
    """Parse a definition.

    Raises:
        FormatRefused: not TOML, unknown field or version, a package twice (`imagetool.definition.*`).
    """
    if len(data) > DEFINITION_BYTES:
        raise FormatRefused("imagetool.definition.too_long", "too long", expected=f"at most {DEFINITION_BYTES}")
    try:
        definition = msgspec.toml.decode(data, type=Definition)
        salt_bytes = len(bytes.fromhex(definition.verity_salt))
        for record in definition.uki.firmware:
            for write in record.writes:
                bytes.fromhex(write.data)
    except (msgspec.MsgspecError, ValueError) as err:
        raise FormatRefused("imagetool.definition.malformed", f"not a pod-VM definition: {err}") from err
    if definition.version != VERSION:
        raise FormatRefused(
            "imagetool.definition.version", "unknown version", expected=str(VERSION), actual=str(definition.version)
        )
    if salt_bytes != 32:  # as long as the digest, so that salt and digest never share a hash block
        raise FormatRefused("imagetool.definition.malformed", "salt is not 32 bytes", path="verity_salt")
    names = [rule.name for rule in definition.package]
    if len(set(names)) != len(names):
        raise FormatRefused("imagetool.definition.malformed", "a package has two rules", path="package")
    return definition


def default_definition() -> Path:
    """Return the definition that comes with Cloister: in the installed package, else in the source tree.

    Raises:
        Unavailable: neither is there (`imagetool.definition.missing`).
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "definition", here.parents[4] / "images"):
        if (folder / _DEFINITION_FILE).is_file():
            return folder / _DEFINITION_FILE
    raise Unavailable("imagetool.definition.missing", "no pod-VM definition comes with this installation")


def lock_of(definition: Path) -> Path:
    """Return the lock that belongs to a definition file: the same name, ending `.lock`."""
    return definition.with_suffix(".lock")


def select(paths: Iterable[str], pattern: str) -> list[str]:
    """Return the `paths` that `pattern` matches, sorted.

    Raises:
        FormatRefused: none does (`imagetool.definition.matches_nothing`).
    """
    found = sorted(path for path in paths if matches(path, pattern))
    if not found:
        raise FormatRefused(
            "imagetool.definition.matches_nothing",
            "a pattern matches no file",
            path=pattern,
            hint="the package changed its layout, or the rule is no longer needed: correct the definition",
        )
    return found


def select_one(paths: Iterable[str], pattern: str) -> str:
    """Return the one path that `pattern` matches.

    Raises:
        FormatRefused: none or several do (`imagetool.definition.matches_nothing`, `.matches_several`).
    """
    found = select(paths, pattern)
    if len(found) > 1:
        raise FormatRefused(
            "imagetool.definition.matches_several", "a pattern for one file matches several", path=pattern
        )
    return found[0]


def matches(path: str, pattern: str) -> bool:
    """Tell whether `pattern` matches the whole `path`."""
    return _compiled(pattern).fullmatch(path) is not None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts))
