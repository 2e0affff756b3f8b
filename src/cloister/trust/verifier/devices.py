"""Composite evidence: the map of further devices beside the evidence of the CPU.

CoCo's guests send it as JSON text, technology to evidence; the text itself is bound by the primary evidence. One
technology's evidence holds several devices. Each becomes a submodule of the result, `<class><number>`, numbered within
its class in the order they were sent: `gpu0`, `gpu1`, `switch0`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.ear import SUBMODULES
from cloister.rats.evidence import Evidence
from cloister.tee.registry import WITH_DEVICES
from cloister.tee.verification import VerifiedDevice
from cloister.wire.limits import GPU_DEVICES, KBS_REQUEST_BYTES
from cloister.wire.strictjson import parse_json_object

MEMBER: Final = "tee-evidence.additional_evidence"
_CODE: Final = "trust.verifier.additional_evidence"
_OTHERS: Final = 1  # submodules that are no further device: the CPU


def parse_additional_evidence(text: str) -> tuple[Evidence, ...]:
    """Return the evidence of all further devices, one piece for each technology.

    Raises:
        FormatRefused: not a JSON object of objects, or too many (`trust.verifier.additional_evidence.*`).
        EvidenceError: a technology that is no device (`trust.verifier.additional_evidence`).
    """
    if not text:
        return ()
    members = parse_json_object(text.encode(), ceiling=KBS_REQUEST_BYTES, code=_CODE, family=FormatRefused)
    if len(members) > GPU_DEVICES:
        raise FormatRefused(f"{_CODE}.too_many", "too many devices", expected=f"at most {GPU_DEVICES}")
    for tee, body in members.items():
        if tee not in WITH_DEVICES:
            raise EvidenceError(
                _CODE,
                "evidence of a further device that this build cannot verify",
                path=MEMBER,
                expected=" or ".join(sorted(WITH_DEVICES)),
                actual=tee[:40],
                hint="attest without that device",
            )
        if not isinstance(body, dict):
            raise FormatRefused(f"{_CODE}.not_json", "evidence of a device is not a JSON object", path=tee[:40])
    return tuple(Evidence(tee=tee, body=body) for tee, body in members.items())


def name_devices(devices: Iterable[VerifiedDevice]) -> dict[str, VerifiedDevice]:
    """Return devices by the name of their submodule.

    Raises:
        FormatRefused: more than a result has room for (`trust.verifier.additional_evidence.too_many`).
    """
    counts: Counter[str] = Counter()
    named: dict[str, VerifiedDevice] = {}
    for device in devices:
        named[f"{device.kind}{counts[device.kind]}"] = device
        counts[device.kind] += 1
    if len(named) > SUBMODULES - _OTHERS:
        raise FormatRefused(f"{_CODE}.too_many", "too many devices", expected=f"at most {SUBMODULES - _OTHERS}")
    return named
