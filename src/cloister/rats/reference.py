"""Reference Values: what registers may hold, who says so, until when.

An entry is a conjunction: all its registers must match. A set is a disjunction: one unexpired entry must match. An
empty set matches nothing. Each entry names its origin, which every finding about it repeats. An entry may name init
data: then it is about guests with that init data only, and a guest that matches it needs no release rule of its own.
It may also say which components its registers were computed from; that is for people and for `cloister refs explain`,
and never compared.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.claims import Claims
from cloister.rats.result import REFERENCED, Finding, Question, Severity, Unchecked
from cloister.wire.limits import REFERENCE_ENTRIES, REFERENCE_SET_BYTES

_CODE: Final = "appraisal.reference_values"
_SHOWN_HEX: Final = 16
_SHORTEST_DIGEST: Final = 20  # bytes of SHA-1, which some platforms still report
INIT_DATA_DIGESTS: Final = 1024  # pods that one entry names
_INIT_DATA: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_NAME_IT: Final = "init_data"  # the register name, so to speak, under which init data differs


class Component(enum.StrEnum):
    """What a pod VM is made of, as far as measurements tell: the words every explanation uses."""

    FIRMWARE = "firmware"
    KERNEL = "kernel"
    INITRD = "initrd"
    COMMAND_LINE = "command line"
    ROOT_HASH = "root hash"
    VCPUS = "vCPU count"
    MEMORY = "memory"


class ReferenceEntryWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """JSON form of one entry: registers as lower-case hex."""

    id: str
    tee: str
    registers: dict[str, str]
    not_after: datetime
    origin: str
    components: dict[Component, str] = {}
    init_data: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceEntry:
    """One accepted combination of register values.

    Attributes:
        id: name of the entry, shown in findings.
        tee: technology it is for.
        registers: register name to value; at least one.
        not_after: aware UTC; past it the entry matches nothing.
        origin: where the values came from (`podvm sha256:4f0c.. seabios 2 vcpu 512 MiB`).
        components: what the registers were computed from: digests of files, the command line, counts; may be empty.
        init_data: digests of the init data it is about, `sha256:` and hex; empty for any init data, of which it then
            says nothing.
    """

    id: str
    tee: str
    registers: Mapping[str, bytes]
    not_after: datetime
    origin: str
    components: Mapping[Component, str] = field(default_factory=dict)
    init_data: tuple[str, ...] = ()


def parse_reference_entry(data: bytes) -> ReferenceEntry:
    """Parse one JSON entry.

    Raises:
        FormatRefused: `rats.reference.malformed`.
    """
    try:
        return entry_from_wire(msgspec.json.decode(data, type=ReferenceEntryWire))
    except (msgspec.MsgspecError, ValueError, RecursionError) as err:
        raise FormatRefused("rats.reference.malformed", f"not a reference value entry: {err}") from err


def entry_from_wire(wire: ReferenceEntryWire) -> ReferenceEntry:
    """Return the entry of a decoded wire form.

    Raises:
        FormatRefused: `rats.reference.malformed`.
    """
    try:
        registers = {name: bytes.fromhex(value) for name, value in wire.registers.items()}
    except (msgspec.MsgspecError, ValueError) as err:
        raise FormatRefused("rats.reference.malformed", f"not a reference value entry: {err}") from err
    if not registers or any(len(value) < _SHORTEST_DIGEST for value in registers.values()):
        raise FormatRefused("rats.reference.malformed", "entry holds no registers or a value shorter than any digest")
    if any(registers[name].hex() != text for name, text in wire.registers.items()):
        raise FormatRefused("rats.reference.malformed", "register value is not lower-case hex", path="registers")
    if wire.not_after.tzinfo is None:
        raise FormatRefused("rats.reference.malformed", "not_after has no time zone", path="not_after")
    if len(wire.init_data) > INIT_DATA_DIGESTS or not all(map(is_init_data_digest, wire.init_data)):
        raise FormatRefused(
            "rats.reference.malformed",
            "not digests of init data",
            path="init_data",
            expected=f"at most {INIT_DATA_DIGESTS}, each sha256: and 64 lower-case digits, or sha384 or sha512",
        )
    return ReferenceEntry(
        id=wire.id,
        tee=wire.tee,
        registers=registers,
        not_after=wire.not_after,
        origin=wire.origin,
        components=wire.components,
        init_data=tuple(wire.init_data),
    )


def is_init_data_digest(text: str) -> bool:
    """Return whether `text` is a digest of init data as `cloister.protocol.initdata` writes it."""
    return _INIT_DATA.fullmatch(text) is not None


def parse_reference_entries(data: bytes) -> tuple[ReferenceEntry, ...]:
    """Parse one JSON entry, or a JSON list of them.

    Raises:
        FormatRefused: `rats.reference.malformed`; also an empty list, two entries of one id, too many or too long.
    """
    if len(data) > REFERENCE_SET_BYTES:
        raise FormatRefused(
            "rats.reference.malformed",
            "reference values too long",
            expected=f"at most {REFERENCE_SET_BYTES} bytes",
            actual=str(len(data)),
        )
    if data.lstrip()[:1] != b"[":
        return (parse_reference_entry(data),)
    try:
        items = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError) as err:
        raise FormatRefused("rats.reference.malformed", f"not a list of reference value entries: {err}") from err
    if len(items) > REFERENCE_ENTRIES:
        raise FormatRefused(
            "rats.reference.malformed",
            "too many reference value entries",
            expected=f"at most {REFERENCE_ENTRIES}",
            actual=str(len(items)),
        )
    entries = tuple(parse_reference_entry(bytes(item)) for item in items)
    if not entries or len({entry.id for entry in entries}) != len(entries):
        raise FormatRefused("rats.reference.malformed", "no entry, or two entries of one id")
    return entries


def encode_reference_entry(entry: ReferenceEntry) -> bytes:
    """Return the JSON form; `parse_reference_entry` reads it back equal."""
    return msgspec.json.encode(entry_to_wire(entry))


def entry_to_wire(entry: ReferenceEntry) -> ReferenceEntryWire:
    """Return the wire form, registers and components in sorted order."""
    return ReferenceEntryWire(
        id=entry.id,
        tee=entry.tee,
        registers={name: value.hex() for name, value in sorted(entry.registers.items())},
        not_after=entry.not_after,
        origin=entry.origin,
        components=dict(sorted(entry.components.items())),
        init_data=list(entry.init_data),
    )


def appraise_registers(
    claims: Claims, entries: Sequence[ReferenceEntry] | Unchecked, *, at: datetime, init_data: str = ""
) -> tuple[Finding, ...]:
    """Compare the registers of `claims`, and the digest of its init data, with the entries valid at `at`.

    Where the caller wrote down why registers are not compared, that is a warning, never silence. Returns one passing
    finding when an entry matches whole, and a second when that entry names the init data; else one failing finding
    per differing register of the *closest* entry
    (fewest differences), so that the answer names the component that changed.
    """
    if isinstance(entries, Unchecked):
        return (
            Finding(
                code=f"{_CODE}.not_requested",
                question=Question.ACCEPTABLE,
                ok=False,
                severity=Severity.WARNING,
                message=f"measurements are not checked: {entries.reason}",
                hint="give reference values of the code you trust; without them any code passes",
            ),
        )
    candidates = [entry for entry in entries if entry.tee == claims.tee and entry.registers]
    if not candidates:
        return (
            Finding(
                code=f"{_CODE}.empty",
                question=Question.ACCEPTABLE,
                ok=False,
                message=f"no reference values are registered for {claims.tee}",
                expected="at least one entry",
                actual="none",
                hint=(
                    "register the values of the pod-VM image you trust; cloister refs propose makes them from observed "
                    "evidence, for a person to sign; `cloister run` registers those of the one it boots"
                ),
            ),
        )
    live = [entry for entry in candidates if entry.not_after > at]
    if not live:
        newest = max(candidates, key=lambda entry: entry.not_after)
        return (
            Finding(
                code=f"{_CODE}.expired",
                question=Question.ACCEPTABLE,
                ok=False,
                message="all reference values have expired",
                expected=f"valid at {at.isoformat(timespec='seconds')}",
                actual=f"{newest.id} ended {newest.not_after.isoformat(timespec='seconds')}",
                origin=newest.origin,
                hint="register fresh reference values; `cloister run` does for the image it boots",
            ),
        )
    # Of several that match, one that names the init data says most.
    closest = min(live, key=lambda entry: (len(_differences(claims, entry, init_data)), not entry.init_data))
    differences = _differences(claims, closest, init_data)
    if differences:
        return tuple(_difference(claims, closest, name, init_data) for name in differences)
    return tuple(_matches(closest, init_data))


def _matches(entry: ReferenceEntry, init_data: str) -> Iterator[Finding]:
    yield Finding(
        code=_CODE,
        question=Question.ACCEPTABLE,
        ok=True,
        message=f"registers {', '.join(sorted(entry.registers))} hold reference values",
        expected=entry.id,
        actual=entry.id,
        origin=entry.origin,
    )
    if entry.init_data:
        yield Finding(
            code=REFERENCED,
            question=Question.ACCEPTABLE,
            ok=True,
            message="the reference values name this init data",
            expected=entry.id,
            actual=_digest_start(init_data),
            origin=entry.origin,
        )


def _difference(claims: Claims, entry: ReferenceEntry, name: str, init_data: str) -> Finding:
    origin = f"{entry.id} ({entry.origin})"
    if name == _NAME_IT:
        return Finding(
            code=REFERENCED,
            question=Question.ACCEPTABLE,
            ok=False,
            message="the reference values are for other init data",
            expected=", ".join(map(_digest_start, entry.init_data[:4])),
            actual=_digest_start(init_data) or "none",
            origin=origin,
            hint="the pod is another than these values were registered for; register its init data beside them",
        )
    return Finding(
        code=f"{_CODE}.{name}",
        question=Question.ACCEPTABLE,
        ok=False,
        message=f"register {name} does not hold its reference value",
        expected=entry.registers[name].hex()[:_SHOWN_HEX] + "..",
        actual=(claims.registers[name].hex()[:_SHOWN_HEX] + "..") if name in claims.registers else "absent",
        origin=origin,
        hint="the pod VM that booted is not the one these values were computed for",
    )


def _differences(claims: Claims, entry: ReferenceEntry, init_data: str) -> list[str]:
    differ = sorted(name for name, value in entry.registers.items() if claims.registers.get(name) != value)
    if entry.init_data and (not init_data or init_data not in entry.init_data):
        differ.append(_NAME_IT)
    return differ


def _digest_start(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm}:{digits[:_SHOWN_HEX]}.." if digits else ""
