"""Composite evidence: the map of further devices beside the evidence of the CPU.

CoCo's guests send it as JSON text, technology to evidence; the text itself is bound by the primary evidence. Each
device becomes a submodule of the result, `<class><number>`.
"""

from __future__ import annotations

from typing import Final

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.wire.limits import GPU_DEVICES, KBS_REQUEST_BYTES
from cloister.wire.strictjson import parse_json_object

CLASSES: Final = {"nvidia": "gpu"}
_CODE: Final = "trust.verifier.additional_evidence"


def parse_additional_evidence(text: str) -> dict[str, Evidence]:
    """Return the evidence of every further device by submodule name.

    Raises:
        FormatRefused: not a JSON object of objects, or too many (`trust.verifier.additional_evidence.*`).
        EvidenceError: a technology that is no device (`trust.verifier.additional_evidence`).
    """
    if not text:
        return {}
    members = parse_json_object(text.encode(), ceiling=KBS_REQUEST_BYTES, code=_CODE, family=FormatRefused)
    if len(members) > GPU_DEVICES:
        raise FormatRefused(f"{_CODE}.too_many", "too many devices", expected=f"at most {GPU_DEVICES}")
    found: dict[str, Evidence] = {}
    for tee, body in members.items():
        if tee not in CLASSES:
            raise EvidenceError(
                _CODE,
                "evidence of a further device that this build cannot verify",
                path="tee-evidence.additional_evidence",
                expected=" or ".join(CLASSES),
                actual=tee[:40],
                hint="attest without that device",
            )
        if not isinstance(body, dict):
            raise FormatRefused(f"{_CODE}.not_json", "evidence of a device is not a JSON object", path=tee[:40])
        name = CLASSES[tee]
        found[f"{name}{sum(key.startswith(name) for key in found)}"] = Evidence(tee=tee, body=body)
    return found
