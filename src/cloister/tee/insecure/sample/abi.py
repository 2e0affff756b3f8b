"""The JSON shape of evidence of CoCo's `sample` TEE, and the claims CoCo's verifier makes of it. Pure.

Members: `svn` (text), `report_data` (standard base64) and, in some attesters, `init_data` (standard base64). No
signature: nothing of it is true but by chance.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.wire.base64 import decode_b64

TEE: Final = "sample"
REPORT_DATA_BYTES: Final = 64
INIT_DATA_BYTES: Final = 64
SVN_CHARS: Final = 64
# What CoCo's verifier says of every sample (trustee, deps/verifier/src/sample): policies written for it compare these.
LAUNCH_DIGEST: Final = "abcde"
PLATFORM_MAJOR, PLATFORM_MINOR = 1, 4
_MALFORMED: Final = "tee.insecure.malformed"


class SampleEvidence(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Evidence as sent; nothing of it is, or can be, verified."""

    svn: str
    report_data: str
    init_data: str | None = None


def parse_evidence(evidence: Evidence) -> SampleEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: wrong shape (`tee.insecure.malformed`).
        EvidenceError: evidence of another technology (`tee.insecure.malformed`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(_MALFORMED, "evidence of another technology", expected=TEE, actual=evidence.tee[:40])
    try:
        wire = msgspec.convert(evidence.body, SampleEvidence)
    except msgspec.ValidationError as err:
        raise FormatRefused(_MALFORMED, f"not evidence of the sample TEE: {err}") from err
    if len(wire.svn) > SVN_CHARS:
        raise FormatRefused(_MALFORMED, "security version too long", path="svn", expected=f"at most {SVN_CHARS}")
    return wire


def decode_member(text: str, path: str, ceiling: int) -> bytes:
    """Return the bytes of a base64 member.

    Raises:
        FormatRefused: `tee.insecure.malformed`.
    """
    try:
        return decode_b64(text, path=path, ceiling=ceiling)
    except FormatRefused as err:
        raise FormatRefused(_MALFORMED, err.message, path=path, expected=err.expected) from err


def coco_claims(wire: SampleEvidence) -> dict[str, Any]:  # Any: JSON values
    """Return the claims under the names and with the values that CoCo's policies expect."""
    return {
        "svn": wire.svn,
        "report_data": wire.report_data,
        "launch_digest": LAUNCH_DIGEST,
        "platform_version": {"major": PLATFORM_MAJOR, "minor": PLATFORM_MINOR},
        "debug": False,
    }
