"""The result of a build: a directory of files and two JSON texts about them.

`reference.json` holds what a verifier needs to predict measurements; `manifest.json` says from what the image was
made. Both are schema'd, unknown fields are refused. A bundle is a value: the directory name is the hash of everything
that went in, and a build of the same inputs gives the same bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.rats.reference import Component

_T = TypeVar("_T", bound=msgspec.Struct)
VERSION: Final = 1
FOLDER: Final = "podvm"  # below the cache
REFERENCE_FILE: Final = "reference.json"
MANIFEST_FILE: Final = "manifest.json"
KERNEL: Final = "vmlinuz"
INITRD: Final = "initrd.img"
ROOT: Final = "root.img"
UKI: Final = "uki.efi"
BUSYBOX: Final = "busybox"
CMDLINE: Final = "cmdline"
SEABIOS: Final = "firmware/bios-256k.bin"
OPTION_ROM: Final = "firmware/linuxboot_dma.bin"
OVMF_CODE: Final = "firmware/OVMF_CODE.fd"
OVMF_VARS: Final = "firmware/OVMF_VARS.fd"
FILES: Final = (BUSYBOX, CMDLINE, KERNEL, INITRD, ROOT, UKI, SEABIOS, OPTION_ROM, OVMF_CODE, OVMF_VARS)
_JSON_BYTES: Final = 4 * 1024 * 1024


class FileRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Size in bytes and digest (`sha256:hex`) of one file of the bundle."""

    size: int
    digest: str


class VerityRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Parameters of the dm-verity tree appended to the root: what the command line says, hex."""

    root_hash: str
    salt: str
    data_blocks: int
    block_bytes: int


class RegisterRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Predicted registers of one machine shape: names `pcr00`.., lower-case hex; `launch` is the blob's digest."""

    profile: str
    vcpus: int
    memory_mib: int
    launch: str
    hcrtm_start: str
    registers: dict[str, str]


class Reference(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`reference.json`: digests of all parts, the command line, and the registers of common machine shapes.

    `components` says for each boot profile which part plays which role: digests, the command line, the root hash.
    """

    version: int
    key: str
    cmdline: str
    verity: VerityRecord
    files: dict[str, FileRecord]
    uki_registers: dict[str, str]
    ovmf_events: tuple[str, ...]
    common: tuple[RegisterRecord, ...]
    components: dict[str, dict[Component, str]] = {}


class PackageRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One package the image was made from."""

    name: str
    version: str
    architecture: str
    sha256: str


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`manifest.json`: what the image was made from, and what is in its root and initrd (path to SHA-256)."""

    version: int
    key: str
    definition: str
    lock: str
    guest: str
    builder: str
    packages: tuple[PackageRecord, ...]
    root: dict[str, str]
    initrd: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodVMBundle:
    """A bundle on disk.

    Attributes:
        path: its directory.
        reference: the parsed `reference.json`.
        cached: True when the build found it ready made.
        phase_seconds: how long each phase of the build took; empty when cached or loaded.
    """

    path: Path
    reference: Reference
    cached: bool = True
    phase_seconds: tuple[tuple[str, float], ...] = ()

    @property
    def key(self) -> str:
        """The content key: hash of everything that went into the build."""
        return self.reference.key

    @property
    def cmdline(self) -> str:
        """The kernel command line of profile `seabios`; the unified kernel image holds the same."""
        return self.reference.cmdline

    def file(self, name: str) -> Path:
        """Return the path of one of `FILES`."""
        return self.path / name


def load_bundle(path: Path) -> PodVMBundle:
    """Load the bundle in directory `path` without hashing its files (a launch measures them anyway).

    Raises:
        Unavailable: no bundle there (`imagetool.bundle.missing`).
        FormatRefused: `reference.json` is not the schema (`imagetool.bundle.malformed`).
        Refused: a file is missing or has another size (`imagetool.bundle.damaged`).
    """
    reference = _decode(path / REFERENCE_FILE, Reference)
    if reference.version != VERSION:
        raise FormatRefused(
            "imagetool.bundle.version", "unknown version", expected=str(VERSION), actual=str(reference.version)
        )
    if set(reference.files) != set(FILES):
        raise FormatRefused("imagetool.bundle.malformed", "not the files of a bundle", path=REFERENCE_FILE)
    for name, record in reference.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != record.size:
            raise _damaged(name, "missing or of another size")
    return PodVMBundle(path=path, reference=reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What `inspect` tells of a bundle after hashing every file of it."""

    bundle: PodVMBundle
    manifest: Manifest


def inspect(path: Path) -> Inspection:
    """Load the bundle in `path`, hash all its files and read its manifest.

    Raises:
        Refused: a file differs from `reference.json` (`imagetool.bundle.damaged`); see also `load_bundle`.
    """
    bundle = load_bundle(path)
    for name, record in bundle.reference.files.items():
        if file_record(path / name) != record:
            raise _damaged(name, "does not have its recorded digest")
    manifest = _decode(path / MANIFEST_FILE, Manifest)
    if manifest.version != VERSION or manifest.key != bundle.key:
        raise FormatRefused("imagetool.bundle.malformed", "manifest belongs to another bundle", path=MANIFEST_FILE)
    return Inspection(bundle=bundle, manifest=manifest)


def file_record(path: Path) -> FileRecord:
    """Return size and digest of the file at `path`."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return FileRecord(size=path.stat().st_size, digest=f"sha256:{digest.hexdigest()}")


def encode_json(value: Reference | Manifest) -> bytes:
    """Return indented JSON with sorted keys and a final newline."""
    text = msgspec.json.encode(value, order="sorted")
    return msgspec.json.format(text, indent=2) + b"\n"


def _decode(path: Path, kind: type[_T]) -> _T:
    try:
        with path.open("rb") as stream:
            data = stream.read(_JSON_BYTES + 1)
    except OSError as err:
        raise Unavailable(
            "imagetool.bundle.missing",
            "no pod-VM bundle here",
            path=str(path),
            hint="build one: `cloister podvm build`",
        ) from err
    if len(data) > _JSON_BYTES:
        raise FormatRefused("imagetool.bundle.malformed", "too long", path=path.name)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError) as err:
        raise FormatRefused("imagetool.bundle.malformed", f"not its schema: {err}", path=path.name) from err


def _damaged(name: str, reason: str) -> Refused:
    return Refused(
        "imagetool.bundle.damaged",
        f"file of the bundle is {reason}",
        path=name,
        hint="delete the bundle's directory and build again: `cloister podvm build`",
    )
