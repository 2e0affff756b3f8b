"""A file of reference values out of what one guest showed: for a person to check and sign, accepted by nobody here.

What a guest reports about itself proves nothing about whether its code is the one the owner wants: whoever signs this
file says that it is.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cloister.errors import Refused
from cloister.rats.reference import ReferenceEntry
from cloister.rats.referenceset import ReferenceSet
from cloister.trust.store.records import AppraisalRecord

_INIT_DATA_REGISTER: Final = "pcr08"
_DIGEST_CHARS: Final = 40  # hex of SHA-1
_SHOWN: Final = 16


def observed_values(record: AppraisalRecord, *, days: int, at: datetime) -> ReferenceSet:
    """Return an unsigned set that exactly this guest's registers match, about the one pod it ran.

    Args:
        record: an Attestation Result that is kept.
        days: for how long the values shall hold.
        at: aware UTC.

    Raises:
        Refused: it shows no register that says what booted (`trust.refvalues.nothing_observed`).
    """
    registers = {name: bytes.fromhex(text) for name, text in record.registers.items() if _says_what_booted(name, text)}
    if not registers:
        raise Refused(
            "trust.refvalues.nothing_observed",
            "this evidence shows no register that says what booted",
            path=record.id,
            actual=", ".join(sorted(record.registers))[:120],
            hint="compute the values from the image instead: `cloister refs compute`",
        )
    issued = at.replace(microsecond=0)
    entry = ReferenceEntry(
        id=f"observed-{record.id}",
        tee=record.tee,
        registers=registers,
        not_after=issued + timedelta(days=days),
        init_data=(record.init_data,) if record.init_data else (),
        origin=f"observed in {record.id} of {record.instance[:_SHOWN] or 'an unnamed machine'}",
    )
    return ReferenceSet(
        id=f"observed/{record.id}",
        version=int(issued.timestamp()),
        issued_at=issued,
        not_after=entry.not_after,
        entries=(entry,),
    )


def _says_what_booted(name: str, text: str) -> bool:
    """Leave out what each pod has of its own, what nothing was measured into, and what is no digest."""
    return name != _INIT_DATA_REGISTER and len(text) >= _DIGEST_CHARS and len(set(text)) > 1
