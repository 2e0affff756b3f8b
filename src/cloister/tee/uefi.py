"""What records of an event log say in words: names of event types, variables, device paths, tagged events. Pure.

TCG PC Client Platform Firmware Profile (rev. 1.05), section 10; UEFI 2.10, section 10.3 (device paths) and chapter 38
(confidential computing). The shape is that of the claims CoCo's attestation service makes (`uefi_event_logs`), so that
policies written for it find what they look for.

Only digests of a replayed log are authentic. Type and data are whatever the host wrote, so each record tells whether
its digest is that of its data (`digest_matches_event`); where it is not, the words are hints for people. Nothing here
raises for odd data: it has no details then.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from cloister.rats.claims import Role
from cloister.tee.eventlog import EV_NO_ACTION, Event

EV_EVENT_TAG: Final = 0x00000006
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
LINUX_INITRD: Final = "Linux initrd"  # the kernel's EFI stub, drivers/firmware/efi/libstub
LINUX_OPTIONS: Final = "LOADED_IMAGE::LoadOptions"
_AAEL: Final = 0x4141454C  # "AAEL": a run-time event of CoCo's attestation agent
_DEVICE_PATHS: Final = 64  # real ones have under ten nodes
_NAMES: Final[Mapping[int, str]] = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000003: "EV_NO_ACTION",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x0000000F: "EV_NONHOST_CODE",
    0x00000010: "EV_NONHOST_CONFIG",
    0x00000011: "EV_NONHOST_INFO",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}
_VARIABLES: Final = frozenset({0x80000001, 0x80000002, 0x8000000C, 0x800000E0})
_IMAGES: Final = frozenset({0x80000003, 0x80000004, 0x80000005})
_DESCRIBED: Final = frozenset({0x8000000A, 0x8000000B})  # length in one byte, then text
_TEXTS: Final = frozenset({0x00000001, 0x00000005, 0x00000008, 0x0000000A, 0x0000000D, 0x80000007})
_DIGESTS: Final[Mapping[str, str]] = {
    "sha1": "SHA-1",
    "sha256": "SHA-256",
    "sha384": "SHA-384",
    "sha512": "SHA-512",
    "sm3": "SM3",
}


def event_type_name(kind: int) -> str:
    """Return the specification's name of an event type, or its number."""
    return _NAMES.get(kind, f"UNKNOWN_{kind:#010x}")


def event_claims(events: Iterable[Event]) -> list[dict[str, Any]]:  # Any: JSON
    """Return each measured record as a claim."""
    return [
        {
            "index": event.register,
            "type_name": event_type_name(event.kind),
            "digests": [
                {"alg": _DIGESTS.get(name, name), "digest": value.hex()} for name, value in event.digests.items()
            ],
            "digest_matches_event": matches_data(event),
            "event": base64.b64encode(event.data).decode(),
            "details": event_details(event),
        }
        for event in events
        if event.kind != EV_NO_ACTION
    ]


def matches_data(event: Event) -> bool:
    """Return whether every digest of the record is the hash of its data: then the data is as authentic as they are."""
    return all(
        name in hashlib.algorithms_available and hashlib.new(name, event.data).digest() == value
        for name, value in event.digests.items()
    )


def event_details(event: Event) -> dict[str, Any]:  # Any: JSON
    """Return what the data says, by the event's type; empty where that is nothing, or odd."""
    try:
        if event.kind in _VARIABLES:
            return _variable(event.data)
        if event.kind in _IMAGES:
            paths = _device_paths(event.data)
            return {"device_paths": paths} if paths else {}
        if event.kind == EV_EVENT_TAG:
            return _tagged(event.data)
        if event.kind in _DESCRIBED:
            size = event.data[0]
            return {"string": _text(event.data[1 : 1 + size]) if size < len(event.data) else ""}
        if event.kind in _TEXTS:
            return {"string": _text(event.data)}
    except (struct.error, IndexError, UnicodeDecodeError):
        return {}
    return {}


def measured_roles(events: Iterable[Event], *, kernel: int, options: int, algorithm: str) -> dict[Role, bytes]:
    """Return digests of kernel, initrd and command line, where the log shows them.

    Initrd and command line: the only record of each by the kernel's EFI stub. Kernel: the Authenticode digest of the
    last image that was started, where the stub left a record. The digests are authentic, but which record is of what
    kind is the host's word: good for telling people what changed, not for deciding. GRUB's records are not read.

    Args:
        events: of a log that replays.
        kernel: register of started images.
        options: register of the stub's records.
        algorithm: bank.
    """
    roles: dict[Role, bytes] = {}
    events = [event for event in events if algorithm in event.digests]
    for role, words in ((Role.INITRD, LINUX_INITRD), (Role.COMMAND_LINE, LINUX_OPTIONS)):
        found = [
            event
            for event in events
            if event.register == options and event.kind == EV_EVENT_TAG and event_details(event).get("string") == words
        ]
        if len(found) == 1:
            roles[role] = found[0].digests[algorithm]
    images = [
        event.digests[algorithm]
        for event in events
        if event.register == kernel and event.kind == EV_EFI_BOOT_SERVICES_APPLICATION
    ]
    if roles and images:
        roles[Role.KERNEL] = images[-1]
    return roles


def _variable(data: bytes) -> dict[str, Any]:
    """UEFI_VARIABLE_DATA: GUID, length of the name in characters, length of the data, name in UTF-16, data."""
    characters, size = struct.unpack_from("<QQ", data, 16)
    end = 32 + 2 * characters
    if end + size > len(data):
        return {}
    return {
        "variable_name": str(UUID(bytes=data[:16])),  # the bytes in order, as CoCo's service writes it
        "unicode_name": data[32:end].decode("utf-16-le"),
        "unicode_name_length": characters,
        "variable_data": base64.b64encode(data[end : end + size]).decode(),
        "variable_data_length": size,
    }


def _tagged(data: bytes) -> dict[str, Any]:
    """TCG_PCClientTaggedEvent: tag, length, data; the data of known ones is text."""
    tag, size = struct.unpack_from("<II", data)
    content = data[8 : 8 + size]
    if tag != _AAEL:
        return {"string": _text(content)}
    text = content.decode()
    details: dict[str, Any] = {"unicode_name": "AAEL", "string": text}
    domain, _, rest = text.partition(" ")
    operation, _, body = rest.partition(" ")
    if domain and operation and body:
        details["data"] = {"domain": domain, "operation": operation, "content": _json_or_text(body)}
    return details


def _json_or_text(text: str) -> Any:
    """Return the value that JSON text has, as long as a token can hold it too: half a character or NaN it cannot."""
    try:
        value = json.loads(text, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError):
        return text


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _device_paths(data: bytes) -> list[str]:
    """UEFI_IMAGE_LOAD_EVENT: address, length, link-time address, length of the device path; then its nodes."""
    size = struct.unpack_from("<Q", data, 24)[0]
    path = data[32 : 32 + size]
    nodes: list[str] = []
    while path and len(nodes) < _DEVICE_PATHS:
        kind, subtype, length = struct.unpack_from("<BBH", path)
        if kind == 0x7F or length < 4 or length > len(path):
            break
        nodes.append(_node(kind, subtype, path[4:length]))
        path = path[length:]
    return nodes


def _node(kind: int, subtype: int, body: bytes) -> str:
    """Return the text form of one node (UEFI 2.10, 10.6.1.6) for those that boot paths have."""
    if (kind, subtype) == (1, 1) and len(body) == 2:
        function, device = body
        return f"Pci({function:X},{device:X})"  # CoCo's order; the specification's is the other way round
    if (kind, subtype) == (2, 1) and len(body) == 8:
        hid, uid = struct.unpack("<II", body)
        name = "".join(chr(0x40 + (hid >> shift & 0x1F)) for shift in (10, 5, 0))
        return f"ACPI({name}{hid >> 16:04X},{uid})"
    if (kind, subtype) == (4, 1) and len(body) == 38:
        number, start, size = struct.unpack_from("<IQQ", body)
        identity = UUID(bytes_le=body[20:36])
        scheme = {1: "MBR", 2: "GPT"}.get(body[36], str(body[36]))
        return f"HD({number},{scheme},{str(identity).upper()},{start:#x},{size:#x})"
    if (kind, subtype) == (4, 3) and len(body) >= 16:
        return f"VenMedia({str(UUID(bytes_le=body[:16])).upper()},{body[16:].hex().upper()})"
    if (kind, subtype) == (4, 4):
        return f"File({body.decode('utf-16-le').rstrip(chr(0))})"
    return f"Path({kind},{subtype},{body.hex()})"


def _text(data: bytes) -> str:
    """Return the text up to the first NUL."""
    return data.partition(b"\0")[0].decode()
