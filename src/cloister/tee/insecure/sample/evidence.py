"""Evidence of the sample TEE in a file: the JSON its attester makes, and nothing else. Pure."""

from __future__ import annotations

from cloister.tee.jsonfile import read_json_evidence
from cloister.tee.registry import ReadEvidence


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of sample evidence.

    Raises:
        FormatRefused: not a JSON object (`tee.file.*`).
    """
    return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON as CoCo's guest sends it")
