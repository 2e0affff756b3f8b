"""TCG event logs: what replays to what, and every form of log that is refused."""

from __future__ import annotations

import hashlib
import struct

import pytest

from cloister.errors import FormatRefused, Refused
from cloister.tee.tpm.eventlog import (
    EV_NO_ACTION,
    Event,
    hcrtm_start,
    measured,
    parse_event_log,
    replay,
    start_value,
)
from cloister.testing.eventlog import (
    EV_SEPARATOR,
    build_event_log,
    event,
    ovmf_events,
    seabios_events,
    startup_locality,
)
from cloister.wire.limits import EVENT_LOG_BYTES, EVENT_LOG_ENTRIES

ZEROS = bytes(32)
SEPARATOR = event(7, EV_SEPARATOR, b"\xff\xff\xff\xff")


def code_of(data: bytes) -> str:
    with pytest.raises(FormatRefused) as caught:
        parse_event_log(data)
    return caught.value.code


@pytest.mark.parametrize("events", [(), seabios_events(), ovmf_events()])
@pytest.mark.parametrize("fill", [b"", bytes(3), bytes(64), b"\xff" * 4, b"\xff" * 64])
def test_logs_read_back_with_any_fill_behind(events: tuple[Event, ...], fill: bytes) -> None:
    assert parse_event_log(build_event_log(events, fill=fill)) == events


def test_every_bank_is_kept() -> None:
    banks = ("sha1", "sha256", "sha384")
    item = event(4, EV_SEPARATOR, b"x", algorithms=banks)
    (read,) = parse_event_log(build_event_log([item], algorithms=banks))
    assert set(read.digests) == set(banks)
    assert (
        replay([read], 4, bytes(48), algorithm="sha384") == hashlib.sha384(bytes(48) + read.digests["sha384"]).digest()
    )


def test_pcr_0_of_seabios_starts_from_the_launch_measurement() -> None:
    blob = b"launch blob"
    start = hashlib.sha256(bytes(31) + b"\x04" + hashlib.sha256(blob).digest()).digest()
    assert hcrtm_start(blob) == start
    separator = hashlib.sha256(b"\xff\xff\xff\xff").digest()
    assert replay(seabios_events(), 0, start) == hashlib.sha256(start + separator).digest()


def test_a_record_without_action_is_not_replayed() -> None:
    assert measured([event(7, EV_NO_ACTION, b"note"), SEPARATOR], 7) == (SEPARATOR.digests["sha256"],)


def test_startup_locality_is_where_register_0_starts() -> None:
    assert start_value([startup_locality(3)], 0) == bytes(31) + b"\x03"
    assert start_value([startup_locality(3)], 1) == ZEROS
    assert start_value([SEPARATOR], 0) == ZEROS


@pytest.mark.parametrize(
    "events",
    [
        (startup_locality(3), startup_locality(3)),
        (event(0, EV_SEPARATOR, b"x"), startup_locality(3)),
    ],
)
def test_a_locality_record_that_comes_late_or_twice(events: tuple[Event, ...]) -> None:
    with pytest.raises(FormatRefused) as caught:
        start_value(events, 0)
    assert caught.value.code == "tee.tpm.eventlog.locality"


def test_a_bank_the_log_does_not_have() -> None:
    with pytest.raises(FormatRefused) as caught:
        measured([event(1, EV_SEPARATOR, b"x", algorithms=["sha1"])], 1)
    assert caught.value.code == "tee.tpm.eventlog.bank"


def test_a_sha1_only_log_is_refused() -> None:
    old = struct.pack("<II20sI", 0, EV_SEPARATOR, bytes(20), 4) + bytes(4)
    assert code_of(old * 3) == "tee.tpm.eventlog.legacy"


@pytest.mark.parametrize("tail", [b"\x01", b"\xff" * 8 + b"\x00", bytes(64) + b"\x01", b"\xff\xff\xff\xff\x00"])
def test_bytes_behind_the_end(tail: bytes) -> None:
    assert code_of(build_event_log([SEPARATOR], fill=tail)) in {
        "tee.tpm.eventlog.trailing_bytes",
        "tee.tpm.eventlog.truncated",
    }


def _spec_id(banks: list[tuple[int, int]]) -> bytes:
    body = b"Spec ID Event03\x00" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    body += b"".join(struct.pack("<HH", *bank) for bank in banks) + b"\x00"
    return struct.pack("<II20sI", 0, EV_NO_ACTION, bytes(20), len(body)) + body


@pytest.mark.parametrize(
    "banks", [[], [(0x000B, 20)], [(0x0027, 32)], [(0x000B, 32), (0x000B, 32)], [(0x000B, 32)] * 17]
)
def test_banks_that_are_not_what_they_say(banks: list[tuple[int, int]]) -> None:
    assert code_of(_spec_id(banks)) == "tee.tpm.eventlog.bank"


def test_a_record_with_other_banks_than_declared() -> None:
    head = _spec_id([(0x000B, 32)])
    assert code_of(head + struct.pack("<III", 1, EV_SEPARATOR, 0) + bytes(4)) == "tee.tpm.eventlog.bank"
    sha1 = struct.pack("<IIIH", 1, EV_SEPARATOR, 1, 0x0004) + bytes(20) + bytes(4)
    assert code_of(head + sha1) == "tee.tpm.eventlog.bank"


def test_a_record_with_two_digests_of_one_bank() -> None:
    head = _spec_id([(0x000B, 32), (0x0004, 20)])
    twice = struct.pack("<III", 1, EV_SEPARATOR, 2) + (struct.pack("<H", 0x000B) + bytes(32)) * 2 + bytes(4)
    assert code_of(head + twice) == "tee.tpm.eventlog.bank"


def test_a_record_of_a_register_that_does_not_exist() -> None:
    item = event(24, EV_SEPARATOR, b"x")
    assert code_of(build_event_log([item])) == "tee.tpm.eventlog.register"


def test_ceilings() -> None:
    assert code_of(bytes(EVENT_LOG_BYTES + 1)) == "tee.tpm.eventlog.too_long"
    small = event(1, EV_SEPARATOR, b"")
    assert len(parse_event_log(build_event_log([small] * EVENT_LOG_ENTRIES))) == EVENT_LOG_ENTRIES
    assert code_of(build_event_log([small] * (EVENT_LOG_ENTRIES + 1))) == "tee.tpm.eventlog.too_long"
    lie = build_event_log([small])[:-4] + struct.pack("<I", 0xFFFFFFF0)
    assert code_of(lie) == "tee.tpm.eventlog.too_long"


def test_every_cut_inside_a_record_is_refused() -> None:
    whole = build_event_log([SEPARATOR])
    bare = len(build_event_log([]))
    for length in (*range(bare), *range(bare + 1, len(whole))):
        with pytest.raises(Refused):
            parse_event_log(whole[:length])
