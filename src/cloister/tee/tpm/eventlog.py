"""TCG event logs: parse the crypto-agile format, replay registers.

TCG PC Client Platform Firmware Profile (rev. 1.05), section 10. Little endian. The first record has the old SHA-1
form and says "Spec ID Event03" with the list of banks; every further record has one digest per bank. CCEL logs of
confidential VMs have the same form, with measurement register numbers for PCRs.

A log is untrusted until its replay equals quoted registers, and even then only its *digests* are authentic. Event
types, order between registers and event data are not measured: nothing here hands out data as truth.

PCR 0 does not always start from zeros. A "StartupLocality" record says locality 3; an H-CRTM measurement made before
TPM2_Startup, as Cloister's launcher does, starts it from `hcrtm_start(blob)`, which no record in the log tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.tee.tpm import constants as c
from cloister.wire.binary import BinaryReader
from cloister.wire.limits import EVENT_BYTES, EVENT_LOG_BYTES, EVENT_LOG_ENTRIES

EV_NO_ACTION: Final = 0x00000003  # table 27: recorded, never extended
_CODE: Final = "tee.tpm.eventlog"
_SPEC_ID: Final = b"Spec ID Event03\x00"
_STARTUP_LOCALITY: Final = b"StartupLocality\x00"
_SHA1_BYTES: Final = 20
_ALGORITHMS_CEILING: Final = 16
_FILL_BYTES: Final = 8  # register and type of a record
_NAMES: Final[Mapping[int, str]] = {
    c.ALG_SHA1: "sha1",
    c.ALG_SHA256: "sha256",
    c.ALG_SHA384: "sha384",
    c.ALG_SHA512: "sha512",
    c.ALG_SM3_256: "sm3",
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


def parse_event_log(data: bytes) -> tuple[Event, ...]:
    """Parse a crypto-agile log; the header record is checked and left out.

    Raises:
        FormatRefused: too long, SHA-1 only, truncated, an undeclared bank, or bytes behind the end
            (`tee.tpm.eventlog.*`).
    """
    if len(data) > EVENT_LOG_BYTES:
        raise _refused("too_long", "event log too long", expected=f"at most {EVENT_LOG_BYTES} bytes")
    reader = BinaryReader(data, order="little", code=_CODE)
    algorithms = _read_header(reader)
    events: list[Event] = []
    while not _at_end(data, reader.offset):
        if len(events) == EVENT_LOG_ENTRIES:
            raise _refused("too_long", "too many events", expected=f"at most {EVENT_LOG_ENTRIES}")
        events.append(_read_event(reader, algorithms))
    return tuple(events)


def measured(events: Iterable[Event], register: int, *, algorithm: str = "sha256") -> tuple[bytes, ...]:
    """Return the digests that were extended into `register`, in order.

    Raises:
        FormatRefused: the log has no such bank (`tee.tpm.eventlog.bank`).
    """
    digests = []
    for event in events:
        if event.register != register or event.kind == EV_NO_ACTION:
            continue
        if algorithm not in event.digests:
            raise _refused("bank", "the log has no such bank", expected=algorithm, actual=", ".join(event.digests))
        digests.append(event.digests[algorithm])
    return tuple(digests)


def replay(events: Iterable[Event], register: int, start: bytes, *, algorithm: str = "sha256") -> bytes:
    """Return the value of `register` after all events, from the value `start`."""
    return replay_digests(measured(events, register, algorithm=algorithm), start, algorithm=algorithm)


def replay_digests(digests: Iterable[bytes], start: bytes, *, algorithm: str = "sha256") -> bytes:
    """Return `start` extended with `digests` in order."""
    value = start
    for digest in digests:
        value = hashlib.new(algorithm, value + digest).digest()
    return value


def start_value(events: Sequence[Event], register: int, *, algorithm: str = "sha256") -> bytes:
    """Return what the log says `register` started from: zeros, or the locality of TPM2_Startup in PCR 0.

    Raises:
        FormatRefused: a second locality record, or one behind a measurement of PCR 0 (`tee.tpm.eventlog.locality`).
    """
    size = _SIZES[algorithm]
    locality = 0
    if register == 0:
        found = [index for index, event in enumerate(events) if _is_locality(event)]
        if found:
            if len(found) > 1 or measured(events[: found[0]], 0, algorithm=algorithm):
                raise _refused("locality", "locality record is not the first of PCR 0")
            locality = events[found[0]].data[-1]
    return bytes(size - 1) + bytes([locality])


def hcrtm_start(blob: bytes) -> bytes:
    """Return the value of PCR 0 after TPM2_Startup when `blob` was measured as H-CRTM before it.

    TPM 2.0 Library part 1, 34.3: the register is reset to 31 zero bytes and 4, then extended with the blob's hash.
    """
    return hashlib.sha256(bytes(31) + b"\x04" + hashlib.sha256(blob).digest()).digest()


def _read_header(reader: BinaryReader) -> Mapping[int, str]:
    """Read the TCG_PCClientPCREvent that carries a TCG_EfiSpecIDEvent; return bank name by TPM_ALG_ID."""
    reader.unsigned(4, "header register")
    kind = reader.unsigned(4, "header type")
    reader.take(_SHA1_BYTES, "header digest")
    body = BinaryReader(reader.sized(4, "header data", ceiling=EVENT_BYTES), order="little", code=_CODE)
    if kind != EV_NO_ACTION or body.take(min(len(_SPEC_ID), body.remaining), "signature") != _SPEC_ID:
        raise _refused("legacy", "not a crypto-agile log", expected="header Spec ID Event03")
    body.take(4 + 1 + 1 + 1 + 1, "platform class, version, errata, word size")
    count = body.unsigned(4, "algorithm count")
    if not 0 < count <= _ALGORITHMS_CEILING:
        raise _refused("bank", "impossible number of banks", actual=str(count))
    algorithms: dict[int, str] = {}
    for _ in range(count):
        algorithm, size = body.unsigned(2, "algorithm"), body.unsigned(2, "digest size")
        name = _NAMES.get(algorithm)
        if name is None or _SIZES[name] != size or algorithm in algorithms:
            raise _refused("bank", "unknown bank, wrong digest size or declared twice", actual=f"{algorithm:#06x}")
        algorithms[algorithm] = name
    body.sized(1, "vendor information", ceiling=255)
    body.finish()
    return algorithms


def _read_event(reader: BinaryReader, algorithms: Mapping[int, str]) -> Event:
    """Read one TCG_PCR_EVENT2."""
    place = f"byte {reader.offset}"
    register, kind = reader.unsigned(4, "register"), reader.unsigned(4, "event type")
    if register >= c.PCRS:
        raise _refused("register", "no such register", path=place, actual=str(register))
    count = reader.unsigned(4, "digest count")
    if count != len(algorithms):
        raise _refused("bank", "not one digest per bank", path=place, expected=str(len(algorithms)), actual=str(count))
    digests: dict[str, bytes] = {}
    for _ in range(count):
        name = algorithms.get(reader.unsigned(2, "digest algorithm"))
        if name is None or name in digests:
            raise _refused("bank", "digest of an undeclared bank, or twice of one", path=place)
        digests[name] = reader.take(_SIZES[name], "digest")
    return Event(register=register, kind=kind, digests=digests, data=reader.sized(4, "event data", ceiling=EVENT_BYTES))


def _at_end(data: bytes, offset: int) -> bool:
    """Return whether the log ends at `offset`: no bytes, or nothing but zeros or ones, follow the last record."""
    head = data[offset : offset + _FILL_BYTES]
    if head.strip(b"\x00") and head[: _FILL_BYTES // 2].strip(b"\xff"):
        return False
    rest = data[offset:]
    if rest.strip(b"\x00") and rest.strip(b"\xff"):
        # A record of PCR 0 and type 0 (EV_PREBOOT_CERT, never used) would begin with zeros: refuse, do not guess.
        raise _refused("trailing_bytes", "bytes follow the end of the log", path=f"byte {offset}")
    return True


def _is_locality(event: Event) -> bool:
    return (
        event.register == 0
        and event.kind == EV_NO_ACTION
        and len(event.data) == len(_STARTUP_LOCALITY) + 1
        and event.data.startswith(_STARTUP_LOCALITY)
    )


def _refused(reason: str, message: str, *, path: str = "", expected: str = "", actual: str = "") -> FormatRefused:
    return FormatRefused(f"{_CODE}.{reason}", message, path=path, expected=expected, actual=actual)
