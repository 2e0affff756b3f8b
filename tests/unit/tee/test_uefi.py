"""What records of an event log say, in CoCo's words; and logs that are continued."""

from __future__ import annotations

import struct
from dataclasses import replace

import msgspec
import pytest

from cloister.errors import FormatRefused
from cloister.rats.claims import Role
from cloister.tee import uefi
from cloister.tee.eventlog import EV_NO_ACTION, Event, append_events, parse_event_log
from cloister.testing.dcap import boot_log
from cloister.testing.eventlog import EV_EFI_BOOT_SERVICES_APPLICATION, EV_IPL, build_event_log, event

BANK = ("sha384",)
VARIABLE = 0x80000001


def details(kind: int, data: bytes) -> dict[str, object]:
    return uefi.event_details(event(1, kind, data, algorithms=BANK))


def variable(name: str, value: bytes, *, size: int | None = None) -> bytes:
    guid = bytes(range(16))
    head = struct.pack("<QQ", len(name), len(value) if size is None else size)
    return guid + head + name.encode("utf-16-le") + value


def image(*nodes: bytes, size: int | None = None) -> bytes:
    path = b"".join(nodes) + b"\x7f\xff\x04\x00"
    return bytes(24) + struct.pack("<Q", len(path) if size is None else size) + path


def node(kind: int, subtype: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, len(body) + 4) + body


def test_a_variable() -> None:
    assert details(VARIABLE, variable("SecureBoot", b"\x01")) == {
        "variable_name": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "unicode_name": "SecureBoot",
        "unicode_name_length": 10,
        "variable_data": "AQ==",
        "variable_data_length": 1,
    }


def test_device_paths() -> None:
    disk = struct.pack("<IQQ", 2, 0x1800, 0x64000) + bytes(range(16)) + b"\x02\x02"
    found = details(
        EV_EFI_BOOT_SERVICES_APPLICATION,
        image(
            node(2, 1, struct.pack("<II", 0x0A0341D0, 0)),
            node(1, 1, b"\x00\x03"),
            node(4, 1, disk),
            node(4, 3, bytes(range(16))),
            node(4, 4, "kernel\0".encode("utf-16-le")),
            node(3, 23, b"\x01\x02"),
        ),
    )
    assert found == {
        "device_paths": [
            "ACPI(PNP0A03,0)",
            "Pci(0,3)",
            "HD(2,GPT,03020100-0504-0706-0809-0A0B0C0D0E0F,0x1800,0x64000)",
            "VenMedia(03020100-0504-0706-0809-0A0B0C0D0E0F,)",
            "File(kernel)",
            "Path(3,23,0102)",
        ]
    }


def test_a_run_time_event() -> None:
    text = b'coco.com pull {"image": "x"}'
    assert details(uefi.EV_EVENT_TAG, struct.pack("<II", 0x4141454C, len(text)) + text) == {
        "unicode_name": "AAEL",
        "string": text.decode(),
        "data": {"domain": "coco.com", "operation": "pull", "content": {"image": "x"}},
    }
    assert "data" not in details(uefi.EV_EVENT_TAG, struct.pack("<II", 0x4141454C, 3) + b"one")


@pytest.mark.parametrize("body", [b'"\\ud800"', b'{"a":["\\udfff"]}', b"NaN", b"[-Infinity]", b"{"])
def test_a_run_time_event_holds_what_a_token_can_hold(body: bytes) -> None:
    """Whoever runs in the guest writes it; the claims must be written as JSON all the same."""
    text = b"coco.com pull " + body
    record = event(1, uefi.EV_EVENT_TAG, struct.pack("<II", 0x4141454C, len(text)) + text, algorithms=BANK)
    (claim,) = uefi.event_claims([record])
    assert claim["details"]["data"]["content"] == body.decode()
    assert msgspec.json.encode(claim)


def test_texts() -> None:
    assert details(EV_IPL, b"grub_cmd: boot\0l") == {"string": "grub_cmd: boot"}
    assert details(0x8000000B, b"\x09TdxTable\x00rest") == {"string": "TdxTable"}
    assert details(uefi.EV_EVENT_TAG, struct.pack("<II", 1, 13) + b"Linux initrd\0") == {"string": "Linux initrd"}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (VARIABLE, b""),
        (VARIABLE, variable("x", b"", size=1)),
        (VARIABLE, bytes(16) + struct.pack("<QQ", 2**63, 0)),
        (VARIABLE, variable("x", b"")[:-1] + b"\xd8" + b"\x00"),
        (EV_EFI_BOOT_SERVICES_APPLICATION, bytes(31)),
        (EV_EFI_BOOT_SERVICES_APPLICATION, image()),
        (EV_EFI_BOOT_SERVICES_APPLICATION, image(size=2**60)),
        (EV_EFI_BOOT_SERVICES_APPLICATION, image(b"\x04\x04\x03\x00")),
        (EV_EFI_BOOT_SERVICES_APPLICATION, image(b"\x04\x04\xff\xff")),
        (EV_EFI_BOOT_SERVICES_APPLICATION, image(node(4, 4, b"\x00\xd8"))),
        (uefi.EV_EVENT_TAG, b"\x00"),
        (uefi.EV_EVENT_TAG, struct.pack("<II", 0x4141454C, 1) + b"\xff"),
        (EV_IPL, b"\xff\xfe"),
        (0x8000000A, b""),
        (4, b"\0\0\0\0"),
        (0x12345678, b"?"),
    ],
)
def test_odd_data_has_no_details(kind: int, data: bytes) -> None:
    assert details(kind, data) == {}


def test_a_path_without_end_is_cut() -> None:
    found = details(EV_EFI_BOOT_SERVICES_APPLICATION, image(*[node(1, 1, b"\0\0")] * 1000))
    assert len(found["device_paths"]) == 64  # type: ignore[arg-type]  # a list


def test_claims_of_a_log() -> None:
    claims = uefi.event_claims(boot_log())
    assert [item["type_name"] for item in claims].count("EV_EVENT_TAG") == 2
    assert "EV_NO_ACTION" not in {item["type_name"] for item in claims}
    assert claims[0]["digest_matches_event"]
    assert not claims[3]["digest_matches_event"]
    assert claims[0]["digests"][0]["alg"] == "SHA-384"
    assert uefi.event_type_name(0x77) == "UNKNOWN_0x00000077"


def test_a_digest_of_an_unknown_bank_matches_nothing() -> None:
    assert not uefi.matches_data(Event(register=1, kind=1, digests={"sha9": b""}, data=b""))


def roles(events: tuple[Event, ...]) -> set[Role]:
    return set(uefi.measured_roles(events, kernel=2, options=3, algorithm="sha384"))


def test_roles_need_the_kernels_own_records() -> None:
    events = boot_log()
    assert roles(events) == {Role.KERNEL, Role.INITRD, Role.COMMAND_LINE}
    assert roles(events[:4]) == set()  # an image was started, but nothing says that it was Linux
    assert roles((*events, events[5])) == {Role.KERNEL, Role.COMMAND_LINE}  # two initrds: neither is told
    assert roles(tuple(replace(item, register=1) for item in events)) == set()
    assert uefi.measured_roles(events, kernel=2, options=3, algorithm="sha256") == {}


def test_a_log_is_continued_before_its_fill() -> None:
    events = boot_log()
    more = event(4, uefi.EV_EVENT_TAG, b"x" * 8, algorithms=BANK)
    for fill in (b"", b"\xff" * 50, bytes(50)):
        log = build_event_log(events, algorithms=BANK, fill=fill)
        longer = append_events(log, [more], code="x")
        assert parse_event_log(longer, code="x") == (*events, more)


def test_a_log_is_not_continued_by_another_bank() -> None:
    log = build_event_log(boot_log(), algorithms=BANK)
    with pytest.raises(FormatRefused) as caught:
        append_events(log, [event(4, 6, b"")], code="tee.tdx.eventlog")
    assert caught.value.code == "tee.tdx.eventlog.bank"
    with pytest.raises(FormatRefused):
        append_events(b"", [], code="x")


def test_remarks_are_not_measured() -> None:
    assert all(item.kind != EV_NO_ACTION or item.register == 0 for item in boot_log())
