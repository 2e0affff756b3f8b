"""The JSON shape of TDX evidence, and its strict parser: `{quote, cc_eventlog}` as CoCo's attester sends it.

`quote` is base64; `cc_eventlog` the data of the ACPI table CCEL in base64, null or absent where there is none. Older
guests add `aa_eventlog`, a text whose events are extended into RTMR 3 outside the log: it is accepted and not read.
Pure; verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.dcap.abi import Quote, TDReport, parse_quote
from cloister.tee.dcap.file import decode_quote, read_quote_file
from cloister.tee.eventlog import Event, parse_event_log
from cloister.tee.registry import ReadEvidence
from cloister.tee.tdx.abi import TEE
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import EVENT_LOG_BYTES

LOG_CODE: Final = "tee.tdx.eventlog"
_MALFORMED: Final = "tee.tdx.evidence.malformed"


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    quote: str
    cc_eventlog: str | None = None
    aa_eventlog: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """The members as typed values; `body` is that of `quote`, `events` None without a log."""

    quote: Quote
    body: TDReport
    events: tuple[Event, ...] | None
    other_log: bool


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: a member does not parse (`tee.tdx.evidence.malformed`, `tee.dcap.quote.*`,
            `tee.dcap.certification_type`, `tee.tdx.eventlog.*`).
        EvidenceError: evidence or quote of another technology (`tee.tdx.evidence.malformed`, `tee.tdx.not_a_td`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(_MALFORMED, "evidence of another technology", expected=TEE, actual=evidence.tee[:40])
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused(_MALFORMED, f"not TDX evidence: {err}"[:160]) from err
    quote = parse_quote(decode_quote(wire.quote, code=_MALFORMED))
    if not isinstance(quote.body, TDReport):
        raise EvidenceError("tee.tdx.not_a_td", "quote of an enclave, not of a TD", path="quote")
    events = None
    if wire.cc_eventlog:
        events = parse_event_log(_decode(wire.cc_eventlog), code=LOG_CODE)
    return ParsedEvidence(quote=quote, body=quote.body, events=events, other_log=bool(wire.aa_eventlog))


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of TDX evidence in a file: a raw quote, one in hex, or JSON.

    Raises:
        FormatRefused: none of these (`tee.file.*`).
    """
    return read_quote_file(data, tee=tee)


def _decode(text: str) -> bytes:
    try:
        return decode_b64(text, path="cc_eventlog", ceiling=EVENT_LOG_BYTES)
    except FormatRefused as err:
        raise FormatRefused(_MALFORMED, err.message, path="cc_eventlog", expected=err.expected) from err
