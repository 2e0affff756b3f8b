"""Reference values in CoCo's message (RVPS 0.1.0), as far as they can be compared: into entries and back. Pure.

    {"version": "0.1.0", "type": "sample", "payload": "<base64 of JSON: name to value or list of values>"}

The message bears no signature, and CoCo's service verifies none; who takes it decides by who sent it alone. Names are
those that CoCo's shipped appraisal policies ask for. Values of one technology are put together: an entry says what all
of its registers hold, so for TDX `mr_td`, `rtmr_1` and `rtmr_2` are needed, and each combination of their values is one
entry. What those policies ask of the platform itself (TCB versions, flags) is asked by the typed appraisal policy here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import product
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.reference import ReferenceEntry
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
# By technology: CoCo's name to our register. All of a technology's names are needed.
NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "snp": {"snp_launch_measurement": "measurement"},
    "tdx": {"mr_td": "mrtd", "rtmr_1": "rtmr1", "rtmr_2": "rtmr2"},
    "tpm": {"tpm_pcr11": "pcr11"},
}
# What CoCo's tools register for the sample TEE: nothing of its evidence is ever compared.
SAMPLE_NAMES: Final = frozenset({"launch_digest", "svn", "major_version", "minimum_minor_version"})


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: str
    type: str
    payload: str


def parse_rvps_message(data: bytes) -> dict[str, Sequence[str]]:
    """Return the values by name.

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
    return {name: _listed(name, value) for name, value in values.items()}


def entries_of_rvps(values: Mapping[str, Sequence[str]], *, at: datetime) -> tuple[ReferenceEntry, ...]:
    """Return the entries that the values make; none when they are of the sample TEE alone.

    Raises:
        FormatRefused: a name that nothing here compares, a technology of which a name is missing, a value that is no
            digest, too many combinations (`trust.reference.rvps`).
    """
    known = {name for names in NAMES.values() for name in names}
    for name in values:
        if name not in known | SAMPLE_NAMES:
            raise FormatRefused(
                _MALFORMED,
                "nothing here compares a value of this name",
                path=name[:80],
                expected=", ".join(sorted(known)),
                hint="what is asked of the platform stands in the appraisal policy",
            )
    made = [entry for tee, names in NAMES.items() for entry in _entries(tee, names, values, at)]
    if len(made) > ENTRIES:
        raise FormatRefused(_MALFORMED, "too many combinations of values", expected=f"at most {ENTRIES}")
    return tuple(made)


def rvps_values(entries: Sequence[ReferenceEntry], name: str, *, at: datetime) -> tuple[str, ...]:
    """Return the values that live entries hold under one of CoCo's names, each once."""
    places = [(tee, names[name]) for tee, names in NAMES.items() if name in names]
    found = [
        entry.registers[register].hex()
        for tee, register in places
        for entry in entries
        if entry.tee == tee and entry.not_after > at and register in entry.registers
    ]
    return tuple(dict.fromkeys(found))


def _entries(
    tee: str, names: Mapping[str, str], values: Mapping[str, Sequence[str]], at: datetime
) -> list[ReferenceEntry]:
    if not any(name in values for name in names):
        return []
    missing = [name for name in names if not values.get(name)]
    if missing:
        raise FormatRefused(
            _MALFORMED, f"values of {tee} say less than a guest is", path=missing[0], expected=", ".join(names)
        )
    made = []
    for chosen in product(*(values[name] for name in names)):
        registers = {
            register: _digest(name, text) for (name, register), text in zip(names.items(), chosen, strict=True)
        }
        text = ",".join(f"{name}={value.hex()}" for name, value in sorted(registers.items()))
        identity = f"rvps-{tee}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        made.append(ReferenceEntry(id=identity, tee=tee, registers=registers, not_after=at + LIFE, origin=ORIGIN))
        if len(made) > ENTRIES:
            break
    return made


def _listed(name: str, value: Any) -> tuple[str, ...]:  # Any: JSON
    items = value if isinstance(value, list) else [value]
    if len(items) > VALUES or not items:
        raise FormatRefused(_MALFORMED, "too many values, or none", path=name[:80], expected=f"1 to {VALUES}")
    return tuple(item if isinstance(item, str) else str(item) for item in items)


def _digest(name: str, text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError as err:
        raise FormatRefused(_MALFORMED, "not a digest in hexadecimal", path=name) from err
    if len(value) not in (32, 48, 64):
        raise FormatRefused(_MALFORMED, "not a digest's length", path=name, expected="32, 48 or 64 bytes")
    return value
