"""Known weaknesses of platforms as data: product line, what remedies it, how severe, where to read about it.

The table itself is a file (`cloister.tee.advisories`), updatable without code. A row whose remedy cannot be seen in
the claims applies: an unknown version is not a fixed one. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import date
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.claims import Claims
from cloister.rats.result import Finding, Question, Severity
from cloister.rats.rules import Handling
from cloister.wire.limits import POLICY_BYTES
from cloister.wire.stricttoml import parse_toml

_MALFORMED: Final = "rats.advisory.malformed"


class Weight(enum.StrEnum):
    """How bad it is for a guest on that platform."""

    CRITICAL = "critical"  # memory or evidence of a guest can be read, altered or forged
    HIGH = "high"
    MEDIUM = "medium"


class Advisory(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One row. Several rows may have one id, each for other platforms: an owner acknowledges them together.

    Attributes:
        id: what people call it; an owner acknowledges it by this.
        title: one line.
        products: product lines it concerns (`Claims.product`).
        where: values of native claims that narrow the product lines (`{"silicon": "Genoa-X"}`); a platform that does
            not report the claim is concerned.
        severity: its weight.
        published: date of the publication.
        link: where to read about it.
        minimum_tcb: reported versions, by component, from which on it is remedied.
        required: values of native claims that remedy it (`{"alias_check_complete": true}`).
        unfixable: nothing the platform reports can remedy it.
    """

    id: str
    title: str
    products: tuple[str, ...]
    severity: Weight
    published: date
    link: str
    minimum_tcb: dict[str, int] = msgspec.field(default_factory=dict)
    where: dict[str, Any] = msgspec.field(default_factory=dict)  # Any: JSON scalars to compare with
    required: dict[str, Any] = msgspec.field(default_factory=dict)  # Any: JSON scalars to compare with
    unfixable: bool = False

    def applies_to(self, claims: Claims) -> bool:
        """Return whether the platform of `claims` has the weakness, as far as its claims tell."""
        if claims.product not in self.products:
            return False
        native = claims.native
        for name, value in self.where.items():
            if name in native and native[name] != value:
                return False
        if self.unfixable:
            return True
        reported = claims.tcb.reported if claims.tcb is not None else {}
        for name, least in self.minimum_tcb.items():
            if reported.get(name, -1) < least:
                return True
        return any(name not in native or native[name] != value for name, value in self.required.items())


class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    date: date
    advisory: tuple[Advisory, ...]


def parse_advisories(data: bytes) -> tuple[Advisory, ...]:
    """Parse a table (TOML, version 1).

    Raises:
        FormatRefused: not a table, a row that nothing remedies and that does not say so, or two rows of one id for the
            same platforms (`rats.advisory.malformed`).
    """
    document = parse_toml(data, ceiling=POLICY_BYTES, code=_MALFORMED)
    try:
        table = msgspec.convert(document, _Table)
    except (msgspec.ValidationError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, f"not a table of advisories: {err}") from err
    if table.version != 1:
        raise FormatRefused(_MALFORMED, "unknown version", expected="1", actual=str(table.version))
    for row in table.advisory:
        if row.unfixable == bool(row.minimum_tcb or row.required):
            raise FormatRefused(_MALFORMED, "a row needs a remedy, or must say that there is none", path=row.id)
    seen: set[tuple[str, str, str]] = set()
    for row in table.advisory:
        mine = {(row.id, product, repr(sorted(row.where.items()))) for product in row.products}
        if mine & seen or len(mine) != len(row.products):
            raise FormatRefused(_MALFORMED, "two rows of one id are for the same platforms", path=row.id)
        seen |= mine
    return table.advisory


def appraise_advisories(
    claims: Claims, table: Sequence[Advisory], *, critical: Handling, acknowledged: frozenset[str]
) -> tuple[Finding, ...]:
    """Return one finding per advisory that applies; critical ones count as `critical` says, others are warnings.

    An acknowledged one is still told, as held: the owner knows.
    """
    product = claims.product
    return tuple(
        _finding(row, critical, acknowledged=row.id in acknowledged)
        for row in table
        if product in row.products and row.applies_to(claims)  # asked here, too: of most rows that is all
    )


def _finding(row: Advisory, critical: Handling, *, acknowledged: bool) -> Finding:
    heavy = row.severity is Weight.CRITICAL
    first = "use other hardware" if row.unfixable else "update the platform's firmware"
    remedy = ", ".join(
        [f"{name} {least} or newer" for name, least in row.minimum_tcb.items()]
        + [f"{name} {value}".lower() for name, value in row.required.items()]
    )
    return Finding(
        code="appraisal.advisory",
        question=Question.ACCEPTABLE,
        ok=acknowledged or (heavy and critical is Handling.ACCEPT),
        severity=Severity.ERROR if heavy and critical is Handling.REFUSE else Severity.WARNING,
        message=f"{row.id} ({row.severity.value}) applies to this platform: {row.title}",
        expected=remedy or "other hardware: no firmware remedies it",
        actual="acknowledged by the owner" if acknowledged else "not remedied",
        origin=row.link,
        hint=f"{first}, or acknowledge {row.id} in `acknowledged_advisories`",
    )
