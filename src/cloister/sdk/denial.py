"""What the owner's machine knows of a refusal whose guest was told a code and a denial id only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cloister.errors import CloisterError

if TYPE_CHECKING:
    from cloister.sdk.owner import Owner
    from cloister.trust.store.records import DenialRecord

_DENIAL_PREFIX: Final = "d-"


def explain_denial(owner: Owner, error: CloisterError) -> CloisterError:
    """Return `error` with what only the owner may see: expected and actual value from the stored denial record.

    The guest is told a code and a denial id; on the owner's own machine the record behind it can be read.
    """
    if not error.path.startswith(_DENIAL_PREFIX):
        return error
    try:
        with owner.admin() as admin:
            record = admin.get_denial(error.path)
    except CloisterError:
        return error
    failed = next((item for item in record.findings if not item.ok and item.code == record.code), None)
    return type(error)(
        record.code,
        record.message,
        path=_place(record),
        expected=record.expected or (failed.expected if failed else ""),
        actual=record.actual or (failed.actual if failed else ""),
        hint=record.hint or error.hint,
    )


def _place(record: DenialRecord) -> str:
    return f"{record.resource or record.stage} (denial {record.id})"
