"""The JSON shape of SGX evidence, and its strict parser: `{quote}` as CoCo's attester sends it, base64.

Pure; verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.dcap.abi import EnclaveReport, Quote, parse_quote
from cloister.tee.dcap.file import decode_quote, read_quote_file
from cloister.tee.registry import ReadEvidence
from cloister.tee.sgx.abi import TEE

_MALFORMED: Final = "tee.sgx.evidence.malformed"


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    quote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """The members as typed values; `body` is that of `quote`."""

    quote: Quote
    body: EnclaveReport


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: a member does not parse (`tee.sgx.evidence.malformed`, `tee.dcap.quote.*`,
            `tee.dcap.certification_type`).
        EvidenceError: evidence or quote of another technology (`tee.sgx.evidence.malformed`,
            `tee.sgx.not_an_enclave`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(_MALFORMED, "evidence of another technology", expected=TEE, actual=evidence.tee[:40])
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused(_MALFORMED, f"not SGX evidence: {err}"[:160]) from err
    quote = parse_quote(decode_quote(wire.quote, code=_MALFORMED))
    if not isinstance(quote.body, EnclaveReport):
        raise EvidenceError("tee.sgx.not_an_enclave", "quote of a TD, not of an enclave", path="quote")
    return ParsedEvidence(quote=quote, body=quote.body)


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of SGX evidence in a file: a raw quote, one in hex, or JSON.

    Raises:
        FormatRefused: none of these (`tee.file.*`).
    """
    return read_quote_file(data, tee=tee)
