"""Attester of IBM Secure Execution: none. Evidence is read here when others collected it."""

from __future__ import annotations

import os
from typing import Final, NoReturn

from cloister.errors import Unavailable


def no_attester(root: str | os.PathLike[str] = "/") -> NoReturn:
    """Say that this build collects no Secure Execution evidence: it could not verify it either.

    Raises:
        Unavailable: always (`tee.ibm_se.no_attester`).
    """
    raise Unavailable(
        "tee.ibm_se.no_attester",
        "this build collects no IBM Secure Execution evidence",
        path=str(root),
        hint="use `pvattest perform`, or CoCo's attestation agent",
    )


ATTESTER: Final = no_attester
