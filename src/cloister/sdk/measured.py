"""What evidence of a platform says was measured: registers, and events as far as they replay. Nothing is verified.

For explanations only: nobody may decide anything by what is read here. Verification is `cloister.tee.verification`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cloister.errors import FormatRefused
from cloister.imagetool.podvm.confidential import MEASUREMENT
from cloister.rats.evidence import Evidence
from cloister.sdk.references import Platform
from cloister.tee.jsonfile import looks_like_json, read_json_evidence
from cloister.tee.registry import reader_for
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.sev_snp.evidence import parse_evidence as parse_snp_evidence
from cloister.tee.tpm.abi import parse_quote_attest
from cloister.tee.tpm.eventlog import Event, measured, parse_event_log, replay_digests, start_value
from cloister.tee.tpm.evidence import parse_evidence
from cloister.wire.base64 import decode_b64
from cloister.wire.binary import BinaryReader
from cloister.wire.limits import EVENT_LOG_BYTES, EVIDENCE_FILE_BYTES

_CODE: Final = "evidence.measured"
_REGISTER_BYTES: Final = 48
_QUOTE_HEADER: Final = 48  # TDX DCAP quote library API, A.3
_BODY_OFFSETS: Final[Mapping[int, int]] = {4: _QUOTE_HEADER, 5: _QUOTE_HEADER + 6}  # by version of the quote
_TDX_TEE: Final = 0x81
_TDX_FIELDS: Final[Mapping[str, int]] = {"mrtd": 136, "rtmr0": 328, "rtmr1": 376, "rtmr2": 424, "rtmr3": 472}
_LOGGED_TPM: Final = (4, 9, 11, 12)
_UNPROVEN_TPM: Final = 0  # starts from the launch measurement, which no log tells


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is measured, as the evidence says it.

    Attributes:
        registers: by the names that reference values use.
        events: digests extended into a register, in order, for registers that the log replays to.
        unproven: the same for registers whose start is not in the log.
        notes: what is worth saying about the evidence itself.
    """

    registers: Mapping[str, bytes]
    events: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    unproven: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_measured(data: bytes, platform: Platform, *, event_log: bytes = b"") -> Measured:
    """Return what evidence in a file says was measured.

    Args:
        data: raw report or quote, or the JSON that guests send.
        platform: whose evidence it is.
        event_log: CCEL of a trust domain, where the evidence carries none.

    Raises:
        FormatRefused: not evidence of this platform (`evidence.measured.*`, `tee.*`).
        EvidenceError: TPM evidence without what vouches for its key (`tee.tpm.*`).
    """
    if platform is Platform.TPM:
        return _tpm(data)
    if platform is Platform.SNP:
        return Measured(registers={MEASUREMENT: _snp_measurement(data)})
    return _tdx(data, event_log)


def _tpm(data: bytes) -> Measured:
    body = reader_for("tpm")(data, tee="tpm").body
    parsed = parse_evidence(Evidence(tee="tpm", body=body))
    quoted = parse_quote_attest(parsed.message).pcr_digest
    if hashlib.sha256(b"".join(parsed.values)).digest() != quoted:
        raise FormatRefused(
            f"{_CODE}.values",
            "register values are not those quoted",
            path="tpm_quote.pcrs",
            expected=quoted.hex()[:16] + "..",
            hint="the values were altered or belong to another quote: there is nothing to explain",
        )
    registers = {f"pcr{index:02d}": value for index, value in enumerate(parsed.values)}
    if not parsed.events:
        return Measured(registers=registers)
    names = {index: f"pcr{index:02d}" for index in _LOGGED_TPM}
    proven, notes = _replayed(parsed.events, names, registers, algorithm="sha256")
    unproven = {f"pcr{_UNPROVEN_TPM:02d}": measured(parsed.events, _UNPROVEN_TPM)}
    return Measured(registers=registers, events=proven, unproven=unproven, notes=notes)


def _snp_measurement(data: bytes) -> bytes:
    body = reader_for("snp")(data, tee="snp").body
    return parse_report(parse_snp_evidence(Evidence(tee="snp", body=body)).report).measurement


def _tdx(data: bytes, event_log: bytes) -> Measured:
    quote = data
    if looks_like_json(data):
        body = read_json_evidence(data, tee="tdx")
        quote = _decode(body, "quote", EVIDENCE_FILE_BYTES)
        event_log = event_log or (_decode(body, "cc_eventlog", EVENT_LOG_BYTES) if body.get("cc_eventlog") else b"")
    reader = BinaryReader(quote, order="little", code=_CODE)
    version = reader.unsigned(2, "version")
    reader.take(2, "key type")
    if reader.unsigned(4, "TEE type") != _TDX_TEE or version not in _BODY_OFFSETS:
        raise _malformed("not a quote of a trust domain", expected="version 4 or 5, type 0x81", actual=str(version))
    body_start = _BODY_OFFSETS[version]
    registers = {}
    for name, offset in _TDX_FIELDS.items():
        value = quote[body_start + offset : body_start + offset + _REGISTER_BYTES]
        if len(value) != _REGISTER_BYTES:
            raise _malformed("quote is cut off", path=name)
        registers[name] = value
    if not event_log:
        return Measured(registers=registers)
    names = {index: f"rtmr{index - 1}" for index in (2, 3)}  # CCEL numbers MRTD 0 and RTMR 0..3 from 1
    proven, notes = _replayed(parse_event_log(event_log), names, registers, algorithm="sha384")
    return Measured(registers=registers, events=proven, notes=notes)


def _replayed(
    events: Sequence[Event], names: Mapping[int, str], registers: Mapping[str, bytes], *, algorithm: str
) -> tuple[Mapping[str, tuple[bytes, ...]], tuple[str, ...]]:
    """Return the digests of registers that the log replays to, and a note for each other one."""
    proven: dict[str, tuple[bytes, ...]] = {}
    notes = []
    for index, name in names.items():
        digests = measured(events, index, algorithm=algorithm)
        # A register number of a CCEL never is PCR 0, so the start is zero there too.
        if (
            replay_digests(digests, start_value(events, index, algorithm=algorithm), algorithm=algorithm)
            == (registers[name])
        ):
            proven[name] = digests
        else:
            notes.append(f"the event log does not replay to {name}: its events are not used")
    return proven, tuple(notes)


def _decode(body: Mapping[str, Any], name: str, ceiling: int) -> bytes:  # Any: untrusted JSON
    value = body.get(name)
    if not isinstance(value, str):
        raise _malformed("member is missing or not text", path=name)
    return decode_b64(value, path=name, ceiling=ceiling)


def _malformed(message: str, *, path: str = "", expected: str = "", actual: str = "") -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", message, path=path, expected=expected, actual=actual)
