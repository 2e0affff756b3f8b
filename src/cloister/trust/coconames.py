"""Reference values under CoCo's names: what its policies ask for by `query_reference_value`. Pure.

Two sources. Entries say what the registers of one technology hold, together; here each register stands by itself, as
CoCo's policies compare them. Named values are what CoCo's tools registered: any JSON under any name, for Rego policies
alone. Where both say something of a name, the named value counts, as the owner wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from cloister.rats.reference import ReferenceEntry

NAMED: Final = "reference"  # kind under which named values are stored
NAMED_MOST: Final = 512  # names of one tenant
# By technology: CoCo's name to our register. All of a technology's names together make an entry.
NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "snp": {"snp_launch_measurement": "measurement"},
    "tdx": {"mr_td": "mrtd", "rtmr_1": "rtmr1", "rtmr_2": "rtmr2"},
    "tpm": {"tpm_pcr11": "pcr11"},
}


class NamedValue(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One value as it is stored: JSON, and its end (aware UTC)."""

    value: Any  # Any: JSON
    not_after: datetime


def live_named(texts: Iterable[tuple[str, bytes]], *, at: datetime) -> dict[str, Any]:  # Any: JSON
    """Return the values by name that have not ended."""
    read = ((name, msgspec.json.decode(text, type=NamedValue)) for name, text in texts)
    return {name: item.value for name, item in read if item.not_after > at}


def values_by_name(
    entries: Sequence[ReferenceEntry],
    named: Mapping[str, Any],  # Any: JSON
    *,
    at: datetime,
    init_data: str | None = None,
) -> dict[str, Any]:  # Any: JSON
    """Return everything that a policy may ask for, live values only.

    Args:
        entries: registered ones.
        named: what `live_named` gave.
        at: aware UTC.
        init_data: digest of the guest's; an entry that names others' is left out. None to leave out none.
    """
    found: dict[str, list[str]] = {}
    for entry in entries:
        elsewhere = init_data is not None and entry.init_data and init_data not in entry.init_data
        if entry.not_after <= at or elsewhere:
            continue
        for name, register in NAMES.get(entry.tee, {}).items():
            value = entry.registers.get(register)
            if value is not None and value.hex() not in found.setdefault(name, []):
                found[name].append(value.hex())
    return {**{name: values for name, values in found.items() if values}, **named}
