"""Reference values in CoCo's message (RVPS 0.1.0), as far as they can be compared: into entries and back. Pure.

    {"version": "0.1.0", "type": "sample", "payload": "<base64 of JSON: name to value or list of values>"}

The message bears no signature, and CoCo's service verifies none; who takes it decides by who sent it alone. Any name
may be given: Rego appraisal policies ask for values by name. Values that say all of what a guest of a technology is are
entries besides, which typed policies compare: for TDX `mr_td`, `rtmr_1` and `rtmr_2` are needed, and each combination
of their values is one entry. CoCo's tools send one name per message, so what is registered already counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import product
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.reference import ReferenceEntry
from cloister.trust.coconames import NAMES
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import KIB
from cloister.wire.strictjson import parse_json_object

VERSION: Final = "0.1.0"
LIFE: Final = timedelta(days=365)  # as CoCo's service says; it never looks at it
ORIGIN: Final = "CoCo reference value message, unsigned"
MESSAGE_BYTES: Final = 256 * KIB
VALUES: Final = 64  # of one name
ENTRIES: Final = 256  # that one message makes
_MALFORMED: Final = "trust.reference.rvps"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:-]{0,119}")
_PREFIX: Final = "rvps-"  # of the ids of entries made here


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: str
    type: str
    payload: str


def parse_rvps_message(data: bytes) -> dict[str, Any]:  # Any: JSON
    """Return the values by name, as they are written.

    Raises:
        FormatRefused: another version or type, not its shape, too long (`trust.reference.rvps`).
    """
    if len(data) > MESSAGE_BYTES:
        raise FormatRefused(_MALFORMED, "message too long", expected=f"at most {MESSAGE_BYTES} bytes")
    try:
        wire = msgspec.json.decode(data, type=_Message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, "not a reference value message") from err
    if wire.version != VERSION or wire.type != "sample":
        raise FormatRefused(
            _MALFORMED,
            "unknown version or type",
            expected=f"version {VERSION}, type sample",
            actual=f"version {wire.version}, type {wire.type}"[:80],
            hint="register the values in a signed set instead",
        )
    payload = decode_b64(wire.payload, path="payload", ceiling=MESSAGE_BYTES)
    values = parse_json_object(payload, ceiling=MESSAGE_BYTES, code=_MALFORMED, family=FormatRefused)
    for name, value in values.items():
        if not _NAME.fullmatch(name) or (isinstance(value, list) and not 1 <= len(value) <= VALUES):
            raise FormatRefused(
                _MALFORMED,
                "not a name, too many values, or none",
                path=name[:80],
                expected=f"1 to {VALUES} values under up to 120 letters, digits and _ . / : -",
            )
    return values


def entries_of_rvps(
    values: Mapping[str, Any],  # Any: JSON
    known: Mapping[str, Any],  # Any: JSON
    *,
    at: datetime,
) -> dict[str, tuple[ReferenceEntry, ...]]:
    """Return the entries of each technology of which `values` names something; none where a name is still missing.

    Args:
        values: new ones.
        known: registered already, which new ones replace.
        at: aware UTC.

    Raises:
        FormatRefused: a value that is no digest, or too many combinations (`trust.reference.rvps`).
    """
    together = {**known, **values}
    made = {
        tee: tuple(_entries(tee, names, together, at))
        for tee, names in NAMES.items()
        if any(name in values for name in names)
    }
    if sum(map(len, made.values())) > ENTRIES:
        raise FormatRefused(_MALFORMED, "too many combinations of values", expected=f"at most {ENTRIES}")
    return made


def is_of_rvps(entry: ReferenceEntry) -> bool:
    """Return whether an entry was made by `entries_of_rvps`."""
    return entry.id.startswith(f"{_PREFIX}{entry.tee}-") and entry.origin == ORIGIN


def _entries(
    tee: str,
    names: Mapping[str, str],
    values: Mapping[str, Any],  # Any: JSON
    at: datetime,
) -> list[ReferenceEntry]:
    lists = [_listed(name, values[name]) for name in names if name in values]
    made: list[ReferenceEntry] = []
    if len(lists) < len(names):
        return made
    for chosen in product(*lists):
        registers = {
            register: _digest(name, text) for (name, register), text in zip(names.items(), chosen, strict=True)
        }
        text = ",".join(f"{name}={value.hex()}" for name, value in sorted(registers.items()))
        identity = f"{_PREFIX}{tee}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        made.append(ReferenceEntry(id=identity, tee=tee, registers=registers, not_after=at + LIFE, origin=ORIGIN))
        if len(made) > ENTRIES:
            break
    return made


def _listed(name: str, value: Any) -> tuple[str, ...]:  # Any: JSON
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise FormatRefused(_MALFORMED, "not a digest in hexadecimal", path=name)
    return tuple(items)


def _digest(name: str, text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError as err:
        raise FormatRefused(_MALFORMED, "not a digest in hexadecimal", path=name) from err
    if len(value) not in (32, 48, 64):
        raise FormatRefused(_MALFORMED, "not a digest's length", path=name, expected="32, 48 or 64 bytes")
    return value
