"""Evidence in a file as JSON: the body as a guest sends it, or the body inside the message that carries it. Pure.

CoCo's guests send `{"primary_evidence": BODY, "additional_evidence": TEXT}` inside the `tee-evidence` member of the
attestation message; files people keep hold any of the three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloister.errors import FormatRefused
from cloister.wire.limits import EVIDENCE_FILE_BYTES
from cloister.wire.strictjson import parse_json_object

_CODE: Final = "tee.file"


def looks_like_json(data: bytes) -> bool:
    """Return whether `data` begins like a JSON object."""
    return data.lstrip()[:1] == b"{"


def read_json_evidence(data: bytes, *, tee: str) -> Mapping[str, Any]:  # Any: untrusted JSON
    """Return the evidence body in a JSON file.

    Raises:
        FormatRefused: too long, not JSON, or not an object (`tee.file.*`).
    """
    value: Any = parse_json_object(data, ceiling=EVIDENCE_FILE_BYTES, code=_CODE, family=FormatRefused)
    for member in ("tee-evidence", "primary_evidence"):
        if isinstance(value, dict) and member in value:
            value = value[member]
    if not isinstance(value, dict):
        raise FormatRefused(f"{_CODE}.not_json", f"not {tee} evidence: no JSON object", expected="an object")
    return value
