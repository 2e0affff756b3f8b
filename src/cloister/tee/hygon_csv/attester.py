"""Attester of Hygon CSV: none. Evidence is read here when others collected it."""

from __future__ import annotations

import os
from typing import Final, NoReturn

from cloister.errors import Unavailable


def no_attester(root: str | os.PathLike[str] = "/") -> NoReturn:
    """Say that this build collects no CSV evidence: it could not verify it either.

    Raises:
        Unavailable: always (`tee.hygon_csv.no_attester`).
    """
    raise Unavailable(
        "tee.hygon_csv.no_attester",
        "this build collects no Hygon CSV evidence",
        path=str(root),
        hint="use another TEE of this machine, or CoCo's attestation agent",
    )


ATTESTER: Final = no_attester
