"""What evidence of a platform says was measured: registers, and events as far as they replay. Nothing is verified.

For explanations only: nobody may decide anything by what is read here. Verification is `cloister.tee.verification`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import FormatRefused
from cloister.imagetool.podvm.confidential import MEASUREMENT
from cloister.rats.evidence import Evidence
from cloister.sdk.references import Platform
from cloister.tee.eventlog import Event, measured, parse_event_log, replay_digests
from cloister.tee.registry import reader_for
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.sev_snp.evidence import parse_evidence as parse_snp_evidence
from cloister.tee.tdx.evidence import LOG_CODE as TDX_LOG_CODE
from cloister.tee.tdx.evidence import parse_evidence as parse_tdx_evidence
from cloister.tee.tpm.abi import parse_quote_attest
from cloister.tee.tpm.evidence import parse_evidence as parse_tpm_evidence

_TPM_LOG_CODE: Final = "tee.tpm.eventlog"
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
        FormatRefused: not evidence of this platform (`tee.*`), or values that are not quoted
            (`evidence.measured.values`).
        EvidenceError: evidence of another platform, or TPM evidence without what vouches for its key (`tee.*`).
    """
    if platform is Platform.TPM:
        return _tpm(data)
    if platform is Platform.SNP:
        return Measured(registers={MEASUREMENT: _snp_measurement(data)})
    return _tdx(data, event_log)


def _tpm(data: bytes) -> Measured:
    body = reader_for("tpm")(data, tee="tpm").body
    parsed = parse_tpm_evidence(Evidence(tee="tpm", body=body))
    quoted = parse_quote_attest(parsed.message).pcr_digest
    if hashlib.sha256(b"".join(parsed.values)).digest() != quoted:
        raise FormatRefused(
            "evidence.measured.values",
            "register values are not those quoted",
            path="tpm_quote.pcrs",
            expected=quoted.hex()[:16] + "..",
            hint="the values were altered or belong to another quote: there is nothing to explain",
        )
    registers = {f"pcr{index:02d}": value for index, value in enumerate(parsed.values)}
    if not parsed.events:
        return Measured(registers=registers)
    names = {index: f"pcr{index:02d}" for index in _LOGGED_TPM}
    proven, notes = _replayed(parsed.events, names, registers, algorithm="sha256", code=_TPM_LOG_CODE)
    unproven = {
        f"pcr{_UNPROVEN_TPM:02d}": measured(parsed.events, _UNPROVEN_TPM, algorithm="sha256", code=_TPM_LOG_CODE)
    }
    return Measured(registers=registers, events=proven, unproven=unproven, notes=notes)


def _snp_measurement(data: bytes) -> bytes:
    body = reader_for("snp")(data, tee="snp").body
    return parse_report(parse_snp_evidence(Evidence(tee="snp", body=body)).report).measurement


def _tdx(data: bytes, event_log: bytes) -> Measured:
    body = reader_for("tdx")(data, tee="tdx").body
    parsed = parse_tdx_evidence(Evidence(tee="tdx", body=body))
    report = parsed.body
    values = (report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2, report.rtmr3)
    registers = dict(zip(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"), values, strict=True))
    events = parse_event_log(event_log, code=TDX_LOG_CODE) if event_log else parsed.events
    if not events:
        return Measured(registers=registers)
    names = {index: f"rtmr{index - 1}" for index in (2, 3)}  # CCEL numbers MRTD 0 and RTMR 0..3 from 1
    proven, notes = _replayed(events, names, registers, algorithm="sha384", code=TDX_LOG_CODE)
    return Measured(registers=registers, events=proven, notes=notes)


def _replayed(
    events: Sequence[Event], names: Mapping[int, str], registers: Mapping[str, bytes], *, algorithm: str, code: str
) -> tuple[Mapping[str, tuple[bytes, ...]], tuple[str, ...]]:
    """Return the digests of registers that the log replays to, and a note for each other one."""
    proven: dict[str, tuple[bytes, ...]] = {}
    notes = []
    for index, name in names.items():
        digests = measured(events, index, algorithm=algorithm, code=code)
        # None of these registers is PCR 0, so that each starts from zeros.
        if replay_digests(digests, bytes(len(registers[name])), algorithm=algorithm) == registers[name]:
            proven[name] = digests
        else:
            notes.append(f"the event log does not replay to {name}: its events are not used")
    return proven, tuple(notes)
