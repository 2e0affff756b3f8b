"""Cloister as a library: what a program needs to seal, run and check a confidential container.

`from cloister.sdk import attest, verify_evidence` collects and verifies evidence of any TEE; everything else here is
internal to the command line. Names are loaded when they are used, so that importing one part does not pay for another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.rats.result import Examination, Verdict
    from cloister.sdk.evidence import attest, verify_evidence

__all__ = ["Examination", "Verdict", "attest", "verify_evidence"]

_HOMES = {
    "Examination": "cloister.rats.result",
    "Verdict": "cloister.rats.result",
    "attest": "cloister.sdk.evidence",
    "verify_evidence": "cloister.sdk.evidence",
}


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
