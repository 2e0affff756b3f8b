"""Builds TCG event logs as firmware writes them: the crypto-agile form, and the sequences of SeaBIOS and OVMF.

The counterpart of `cloister.tee.eventlog` for tests: real layouts, made-up contents. What each firmware records is
what was seen of SeaBIOS 1.16 and OVMF 2025.02 under QEMU.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from cloister.tee.eventlog import EV_NO_ACTION, Event

EV_SEPARATOR: Final = 0x00000004
EV_ACTION: Final = 0x00000005
EV_EVENT_TAG: Final = 0x00000006
EV_IPL: Final = 0x0000000D
EV_S_CRTM_VERSION: Final = 0x00000008
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
EV_EFI_ACTION: Final = 0x80000007
EV_EFI_PLATFORM_FIRMWARE_BLOB: Final = 0x80000008
_ALGORITHMS: Final = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
_UKI_SECTIONS: Final = (".linux", ".osrel", ".cmdline", ".initrd")


def event(register: int, kind: int, data: bytes, *, algorithms: Sequence[str] = ("sha256",)) -> Event:
    """Return a record whose digests are those of its data; of zeros where nothing is extended."""
    digests = {name: hashlib.new(name, data).digest() for name in algorithms}
    if kind == EV_NO_ACTION:
        digests = {name: bytes(len(value)) for name, value in digests.items()}
    return Event(register=register, kind=kind, digests=digests, data=data)


def startup_locality(locality: int, *, algorithms: Sequence[str] = ("sha256",)) -> Event:
    """Return the record that says from which locality TPM2_Startup came."""
    return event(0, EV_NO_ACTION, b"StartupLocality\x00" + bytes([locality]), algorithms=algorithms)


def build_event_log(events: Iterable[Event], *, algorithms: Sequence[str] = ("sha256",), fill: bytes = b"") -> bytes:
    """Return the log: header record, `events`, and `fill` behind them."""
    banks = b"".join(struct.pack("<HH", _ALGORITHMS[name], hashlib.new(name).digest_size) for name in algorithms)
    spec_id = b"Spec ID Event03\x00" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(algorithms)) + banks + b"\x00"
    header = struct.pack("<II20sI", 0, EV_NO_ACTION, bytes(20), len(spec_id)) + spec_id
    return header + b"".join(map(_encode, events)) + fill


def seabios_events(*, smbios: bytes = b"smbios table") -> tuple[Event, ...]:
    """Return what SeaBIOS records of a direct kernel boot: nothing of the kernel."""
    return (
        event(1, EV_EVENT_TAG, smbios),
        event(2, EV_ACTION, b"Start Option ROM Scan"),
        event(2, EV_EVENT_TAG, b"linuxboot_dma.bin"),
        event(4, EV_ACTION, b"Calling INT 19h"),
        *(event(register, EV_SEPARATOR, b"\xff\xff\xff\xff") for register in range(8)),
    )


def ovmf_events(
    *, firmware: bytes = b"decompressed volume", uki: bytes = b"uki", cmdline: str = "root=/dev/dm-0"
) -> tuple[Event, ...]:
    """Return what OVMF, systemd-stub and the kernel's EFI stub record of a unified kernel image."""
    sections = [
        event(11, EV_IPL, text)
        for name in _UKI_SECTIONS
        for text in (name.encode() + b"\x00", b"content of " + name.encode() + uki)
    ]
    return (
        event(0, EV_S_CRTM_VERSION, bytes(2)),
        event(0, EV_EFI_PLATFORM_FIRMWARE_BLOB, firmware),
        *(event(7, EV_EFI_VARIABLE_DRIVER_CONFIG, name) for name in (b"SecureBoot", b"PK", b"KEK", b"db", b"dbx")),
        event(7, EV_SEPARATOR, bytes(4)),
        event(4, EV_EFI_BOOT_SERVICES_APPLICATION, uki),
        event(4, EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
        *(event(register, EV_SEPARATOR, bytes(4)) for register in range(7)),
        *sections,
        event(9, EV_EVENT_TAG, cmdline.encode("utf-16-le") + bytes(2)),
        event(9, EV_EVENT_TAG, b"initrd"),
        event(5, EV_EFI_ACTION, b"Exit Boot Services Invocation"),
        event(5, EV_EFI_ACTION, b"Exit Boot Services Returned with Success"),
    )


def _encode(item: Event) -> bytes:
    digests = b"".join(struct.pack("<H", _ALGORITHMS[name]) + value for name, value in item.digests.items())
    head = struct.pack("<III", item.register, item.kind, len(item.digests))
    return head + digests + struct.pack("<I", len(item.data)) + item.data
