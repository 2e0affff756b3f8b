"""Launch measurement: what a launcher states about the virtual machine before the machine's first instruction.

The statement is a canonical JSON text (the launch blob). The launcher hands it to the TPM as the H-CRTM sequence (TCG
PC Client Platform Firmware Profile 1.06 section 2.3.2, TPM 2.0 Part 1 section 34.3): data hashed after power-on and
before TPM2_Startup extends PCR 0 from a start value of 31 zero bytes and the locality number 4. One register then
covers firmware, kernel, initrd, command line and machine shape, as an SNP launch digest does.

The host computes the blob from the files it is about to boot, the owner from the files it built; a launch of anything
else gives another PCR 0. This module only states and hashes: it reads no file and trusts nobody. Init data is not in
the blob: the agent extends PCR 8 with it. Format: spec/launch-measurement.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from cloister.errors import FormatRefused

VERSION: Final = 1
MACHINE: Final = "q35"
BLOB_BYTES: Final = 4096  # a blob is below 1 KiB; the ceiling leaves room for option ROMs
VCPUS: Final = 256
MEMORY_MIB: Final = 1024 * 1024
OPTION_ROMS: Final = 8

_HCRTM_START: Final = bytes(31) + b"\x04"  # PCR 0 after a locality 4 hash sequence was begun
_SEABIOS_SEPARATOR: Final = b"\xff" * 4  # SeaBIOS writes 0xffffffff, UEFI firmware writes four zero bytes
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ROM_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class LaunchProfile(StrEnum):
    """How the machine starts: which firmware, and what it is given to boot."""

    SEABIOS = "seabios"  # SeaBIOS, then kernel, initrd and command line
    UKI = "uki"  # OVMF, then one unified kernel image that holds all three


class _LaunchWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    profile: LaunchProfile
    machine: str
    vcpus: int
    memory_mib: int
    firmware: str
    kernel: str
    initrd: str | None
    cmdline: str | None
    option_roms: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchMeasurement:
    """Everything a launch is made of, as SHA-256 digests in the form `sha256:hex`.

    Attributes:
        profile: see `LaunchProfile`.
        vcpus: number of virtual processors.
        memory_mib: main memory in MiB.
        firmware: digest of the firmware file (`bios-256k.bin`, or `OVMF_CODE.fd`).
        kernel: digest of the kernel file, or of the unified kernel image in profile `uki`.
        initrd: digest of the initrd file; None in profile `uki`.
        cmdline: digest of the kernel command line in UTF-8, without terminator; None in profile `uki`.
        option_roms: file name to digest of every option ROM that the firmware can run; none is the rule.
        machine: QEMU machine type.
    """

    profile: LaunchProfile
    vcpus: int
    memory_mib: int
    firmware: str
    kernel: str
    initrd: str | None
    cmdline: str | None
    option_roms: Mapping[str, str] = field(default_factory=dict)
    machine: str = MACHINE

    def __post_init__(self) -> None:
        """Check every field once.

        Raises:
            FormatRefused: `protocol.launch.*`.
        """
        if self.machine != MACHINE:
            raise FormatRefused(
                "protocol.launch.machine", "unknown machine", path="machine", expected=MACHINE, actual=self.machine[:20]
            )
        _check_range("vcpus", self.vcpus, VCPUS)
        _check_range("memory_mib", self.memory_mib, MEMORY_MIB)
        _check_digest("firmware", self.firmware)
        _check_digest("kernel", self.kernel)
        for name, digest in (("initrd", self.initrd), ("cmdline", self.cmdline)):
            if (digest is None) != (self.profile is LaunchProfile.UKI):
                raise FormatRefused(
                    "protocol.launch.profile",
                    "profile uki measures initrd and command line inside the kernel image, profile seabios beside it",
                    path=name,
                )
            if digest is not None:
                _check_digest(name, digest)
        if len(self.option_roms) > OPTION_ROMS:
            raise FormatRefused(
                "protocol.launch.range", "too many option ROMs", path="option_roms", expected=f"at most {OPTION_ROMS}"
            )
        for name, digest in self.option_roms.items():
            if not _ROM_NAME.fullmatch(name):
                raise FormatRefused("protocol.launch.name", "not a file name of an option ROM", path="option_roms")
            _check_digest(f"option_roms.{name}", digest)

    def blob(self) -> bytes:
        """Return the canonical JSON text that is measured.

        All text here is checked to be printable ASCII without quotes, for which the quick encoder below is canonical.
        """
        return msgspec.json.encode(
            {
                "version": VERSION,
                "profile": self.profile.value,
                "machine": self.machine,
                "vcpus": self.vcpus,
                "memory_mib": self.memory_mib,
                "firmware": self.firmware,
                "kernel": self.kernel,
                "initrd": self.initrd,
                "cmdline": self.cmdline,
                "option_roms": dict(self.option_roms),
            },
            order="sorted",
        )

    def digest(self) -> str:
        """Return `sha256:hex` of the blob, the name of this launch."""
        return digest_text(self.blob())

    def hcrtm_start_value(self) -> bytes:
        """Return PCR 0 (32 bytes) as it is before the firmware's first own event."""
        return hcrtm_start_value(self.blob())

    def pcr0_seabios(self) -> bytes:
        """Return the final PCR 0 (32 bytes) under SeaBIOS, whose only own event there is the separator.

        Raises:
            FormatRefused: the profile boots other firmware, whose events depend on more than this statement.
        """
        if self.profile is not LaunchProfile.SEABIOS:
            raise FormatRefused(
                "protocol.launch.profile", "PCR 0 follows from the launch alone only under SeaBIOS", path="profile"
            )
        return _extend(self.hcrtm_start_value(), _SEABIOS_SEPARATOR)


def hcrtm_start_value(blob: bytes) -> bytes:
    """Return PCR 0 (32 bytes) right after `blob` was given to the TPM as the H-CRTM sequence."""
    return _extend(_HCRTM_START, blob)


def digest_text(data: bytes) -> str:
    """Return `sha256:hex` of `data`, the form in which the fields of a launch are written."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_launch_blob(data: bytes) -> LaunchMeasurement:
    """Parse a launch blob; only canonical bytes are accepted, so that text and meaning are one to one.

    Raises:
        FormatRefused: too long, not the schema, unknown version or field, not canonical (`protocol.launch.*`).
    """
    if len(data) > BLOB_BYTES:
        raise FormatRefused("protocol.launch.too_long", "launch blob too long", expected=f"at most {BLOB_BYTES}")
    try:
        wire = msgspec.json.decode(data, type=_LaunchWire)
    except (msgspec.MsgspecError, ValueError) as err:
        raise FormatRefused("protocol.launch.malformed", f"not a launch blob: {err}") from err
    if wire.version != VERSION:
        raise FormatRefused(
            "protocol.launch.version", "unknown version", expected=str(VERSION), actual=str(wire.version)[:20]
        )
    launch = LaunchMeasurement(
        profile=wire.profile,
        machine=wire.machine,
        vcpus=wire.vcpus,
        memory_mib=wire.memory_mib,
        firmware=wire.firmware,
        kernel=wire.kernel,
        initrd=wire.initrd,
        cmdline=wire.cmdline,
        option_roms=wire.option_roms,
    )
    if launch.blob() != data:
        raise FormatRefused("protocol.launch.not_canonical", "launch blob is not in canonical form")
    return launch


def _extend(register: bytes, data: bytes) -> bytes:
    return hashlib.sha256(register + hashlib.sha256(data).digest()).digest()


def _check_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise FormatRefused(
            "protocol.launch.range", f"{name} out of range", path=name, expected=f"1 to {most}", actual=str(value)[:20]
        )


def _check_digest(name: str, text: str) -> None:
    if not _DIGEST.fullmatch(text):
        raise FormatRefused(
            "protocol.launch.digest", "not a digest", path=name, expected="sha256: and 64 hex digits", actual=text[:20]
        )
