"""Event logs of firmware and boot loaders: parse the crypto-agile format, replay registers. Pure.

TCG PC Client Platform Firmware Profile (rev. 1.05), section 10. Little endian. The first record has the old SHA-1
form and says "Spec ID Event03" with the list of banks; every further record has one digest per bank. Logs of
confidential VMs (CCEL, UEFI 2.10 section 38.4) have the same form, with numbers of measurement registers for PCRs.

A log is untrusted until its replay equals quoted registers, and even then only its *digests* are authentic. Event
types, order between registers and event data are not measured: nothing here hands out data as truth.

PCR 0 does not always start from zeros. A "StartupLocality" record says locality 3; a measurement made before the TPM
was started shows in no record.

Every function takes `code`, the prefix of its errors' codes, from the technology whose log it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.binary import BinaryReader
from cloister.wire.limits import EVENT_BYTES, EVENT_LOG_BYTES, EVENT_LOG_ENTRIES

EV_NO_ACTION: Final = 0x00000003  # table 27: recorded, never extended
REGISTERS: Final = 24  # PCRs of a PC client TPM; measurement registers are fewer
_SPEC_ID: Final = b"Spec ID Event03\x00"
_STARTUP_LOCALITY: Final = b"StartupLocality\x00"
_SHA1_BYTES: Final = 20
_ALGORITHMS_CEILING: Final = 16
_FILL_BYTES: Final = 8  # register and type of a record
_NAMES: Final[Mapping[int, str]] = {
    0x0004: "sha1",  # TPM_ALG_ID, TPM 2.0 part 2, table 9
    0x000B: "sha256",
    0x000C: "sha384",
    0x000D: "sha512",
    0x0012: "sm3",
}
_SIZES: Final[Mapping[str, int]] = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64, "sm3": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One record.

    Attributes:
        register: PCR, or measurement register of a CCEL.
        kind: event type; not measured.
        digests: one digest per bank, by hash name.
        data: the record's data; not measured, except where its own hash is the digest.
    """

    register: int
    kind: int
    digests: Mapping[str, bytes]
    data: bytes


def parse_event_log(data: bytes, *, code: str) -> tuple[Event, ...]:
    """Parse a crypto-agile log; the header record is checked and left out.

    Raises:
        FormatRefused: too long, SHA-1 only, truncated, an undeclared bank, or bytes behind the end
            (`<code>.*`).
    """
    return _parse(data, code)[0]


def append_events(data: bytes, events: Iterable[Event], *, code: str) -> bytes:
    """Return the log with `events` behind its last record; what filled the rest of the area is left out.

    Raises:
        FormatRefused: the log does not parse, or an event has other banks than it (`<code>.*`).
    """
    _, algorithms, end = _parse(data, code)
    log = data[:end]
    for event in events:
        if set(event.digests) != set(algorithms.values()):
            raise _refused(code, "bank", "event has other banks than the log", actual=", ".join(event.digests))
        log += encode_event(event, algorithms)
    return log


def encode_event(event: Event, algorithms: Mapping[int, str]) -> bytes:
    """Return one TCG_PCR_EVENT2; `algorithms` are name by TPM_ALG_ID, in the log's order."""
    numbers = (event.register, event.kind, len(algorithms))
    head = b"".join(number.to_bytes(4, "little") for number in numbers)
    digests = b"".join(number.to_bytes(2, "little") + event.digests[name] for number, name in algorithms.items())
    return head + digests + len(event.data).to_bytes(4, "little") + event.data


def _parse(data: bytes, code: str) -> tuple[tuple[Event, ...], Mapping[int, str], int]:
    """Return the events, the banks, and where the last record ends."""
    if len(data) > EVENT_LOG_BYTES:
        raise _refused(code, "too_long", "event log too long", expected=f"at most {EVENT_LOG_BYTES} bytes")
    reader = BinaryReader(data, order="little", code=code)
    algorithms = _read_header(reader, code)
    events: list[Event] = []
    while not _at_end(data, reader.offset, code):
        if len(events) == EVENT_LOG_ENTRIES:
            raise _refused(code, "too_long", "too many events", expected=f"at most {EVENT_LOG_ENTRIES}")
        events.append(_read_event(reader, algorithms, code))
    return tuple(events), algorithms, reader.offset


def measured(events: Iterable[Event], register: int, *, algorithm: str, code: str) -> tuple[bytes, ...]:
    """Return the digests that were extended into `register`, in order.

    Raises:
        FormatRefused: the log has no such bank (`<code>.bank`).
    """
    digests = []
    for event in events:
        if event.register != register or event.kind == EV_NO_ACTION:
            continue
        if algorithm not in event.digests:
            raise _refused(
                code, "bank", "the log has no such bank", expected=algorithm, actual=", ".join(event.digests)
            )
        digests.append(event.digests[algorithm])
    return tuple(digests)


def replay(events: Iterable[Event], register: int, start: bytes, *, algorithm: str, code: str) -> bytes:
    """Return the value of `register` after all events, from the value `start`."""
    return replay_digests(measured(events, register, algorithm=algorithm, code=code), start, algorithm=algorithm)


def replay_digests(digests: Iterable[bytes], start: bytes, *, algorithm: str) -> bytes:
    """Return `start` extended with `digests` in order."""
    value = start
    for digest in digests:
        value = hashlib.new(algorithm, value + digest).digest()
    return value


def start_value(events: Sequence[Event], register: int, *, algorithm: str, code: str) -> bytes:
    """Return what the log says `register` started from: zeros, or the locality of TPM2_Startup in PCR 0.

    Raises:
        FormatRefused: a second locality record, or one behind a measurement of PCR 0 (`<code>.locality`).
    """
    size = _SIZES[algorithm]
    locality = 0
    if register == 0:
        found = [index for index, event in enumerate(events) if _is_locality(event)]
        if found:
            if len(found) > 1 or measured(events[: found[0]], 0, algorithm=algorithm, code=code):
                raise _refused(code, "locality", "locality record is not the first of PCR 0")
            locality = events[found[0]].data[-1]
    return bytes(size - 1) + bytes([locality])


def _read_header(reader: BinaryReader, code: str) -> Mapping[int, str]:
    """Read the TCG_PCClientPCREvent that carries a TCG_EfiSpecIDEvent; return bank name by TPM_ALG_ID."""
    reader.unsigned(4, "header register")
    kind = reader.unsigned(4, "header type")
    reader.take(_SHA1_BYTES, "header digest")
    body = BinaryReader(reader.sized(4, "header data", ceiling=EVENT_BYTES), order="little", code=code)
    if kind != EV_NO_ACTION or body.take(min(len(_SPEC_ID), body.remaining), "signature") != _SPEC_ID:
        raise _refused(code, "legacy", "not a crypto-agile log", expected="header Spec ID Event03")
    body.take(4 + 1 + 1 + 1 + 1, "platform class, version, errata, word size")
    count = body.unsigned(4, "algorithm count")
    if not 0 < count <= _ALGORITHMS_CEILING:
        raise _refused(code, "bank", "impossible number of banks", actual=str(count))
    algorithms: dict[int, str] = {}
    for _ in range(count):
        algorithm, size = body.unsigned(2, "algorithm"), body.unsigned(2, "digest size")
        name = _NAMES.get(algorithm)
        if name is None or _SIZES[name] != size or algorithm in algorithms:
            raise _refused(
                code, "bank", "unknown bank, wrong digest size or declared twice", actual=f"{algorithm:#06x}"
            )
        algorithms[algorithm] = name
    body.sized(1, "vendor information", ceiling=255)
    body.finish()
    return algorithms


def _read_event(reader: BinaryReader, algorithms: Mapping[int, str], code: str) -> Event:
    """Read one TCG_PCR_EVENT2."""
    place = f"byte {reader.offset}"
    register, kind = reader.unsigned(4, "register"), reader.unsigned(4, "event type")
    if register >= REGISTERS:
        raise _refused(code, "register", "no such register", path=place, actual=str(register))
    count = reader.unsigned(4, "digest count")
    if count != len(algorithms):
        raise _refused(
            code, "bank", "not one digest per bank", path=place, expected=str(len(algorithms)), actual=str(count)
        )
    digests: dict[str, bytes] = {}
    for _ in range(count):
        name = algorithms.get(reader.unsigned(2, "digest algorithm"))
        if name is None or name in digests:
            raise _refused(code, "bank", "digest of an undeclared bank, or twice of one", path=place)
        digests[name] = reader.take(_SIZES[name], "digest")
    return Event(register=register, kind=kind, digests=digests, data=reader.sized(4, "event data", ceiling=EVENT_BYTES))


def _at_end(data: bytes, offset: int, code: str) -> bool:
    """Return whether the log ends at `offset`: no bytes, or nothing but zeros or ones, follow the last record."""
    head = data[offset : offset + _FILL_BYTES]
    if head.strip(b"\x00") and head[: _FILL_BYTES // 2].strip(b"\xff"):
        return False
    rest = data[offset:]
    if rest.strip(b"\x00") and rest.strip(b"\xff"):
        # A record of PCR 0 and type 0 (EV_PREBOOT_CERT, never used) would begin with zeros: refuse, do not guess.
        raise _refused(code, "trailing_bytes", "bytes follow the end of the log", path=f"byte {offset}")
    return True


def _is_locality(event: Event) -> bool:
    return (
        event.register == 0
        and event.kind == EV_NO_ACTION
        and len(event.data) == len(_STARTUP_LOCALITY) + 1
        and event.data.startswith(_STARTUP_LOCALITY)
    )


def _refused(
    code: str, reason: str, message: str, *, path: str = "", expected: str = "", actual: str = ""
) -> FormatRefused:
    return FormatRefused(f"{code}.{reason}", message, path=path, expected=expected, actual=actual)
