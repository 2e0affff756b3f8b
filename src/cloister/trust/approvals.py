"""Approval by several people: which prefixes demand it, of whom, and whether what was approved is enough.

    need = 2
    of = ["alice", "bob", "carol"]

A demand on a prefix is about changes: of its release rule, and of the demand itself. It is kept beside the rule, not
in it, because a rule may be text of somebody else's language. A rule's own `approvals` are about releases, per pod, and
demand the same for changes of the rule, or one could loosen them alone. Whoever changes something that a demand
overlaps needs its approvals: a narrower or wider prefix is no way around it.

Pure: values in, findings out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Refused
from cloister.protocol.resourceuri import ResourcePath
from cloister.trust.keybroker.policy import parse_prefix
from cloister.wire.stricttoml import parse_toml

APPROVERS_CEILING: Final = 16
_DEMAND_BYTES: Final = 8192
_WILDCARD: Final = "*"
_CODE: Final = "trust.approval.malformed"


@dataclass(frozen=True, slots=True, order=True)
class ResourcePrefix:
    """`repository/type/tag` where tag, type and tag, or all three may be `*`; the last is also written `*`."""

    segments: tuple[str, str, str]

    def __str__(self) -> str:
        return _WILDCARD if self.segments[0] == _WILDCARD else "/".join(self.segments)

    def covers(self, other: ResourcePrefix | ResourcePath) -> bool:
        """Return whether everything of `other` is under this prefix."""
        theirs = other.segments if isinstance(other, ResourcePrefix) else (other.repository, other.type, other.tag)
        return all(mine in (_WILDCARD, their) for mine, their in zip(self.segments, theirs, strict=True))

    def overlaps(self, other: ResourcePrefix) -> bool:
        """Return whether one of the two covers the other: prefixes overlap in no other way."""
        return self.covers(other) or other.covers(self)


def parse_resource_prefix(text: str) -> ResourcePrefix:
    """Parse a prefix as release rules have them; `*/*/*` is `*`.

    Raises:
        FormatRefused: not one (`trust.release_policy.malformed`).
    """
    if text in (_WILDCARD, "*/*/*"):
        return ResourcePrefix((_WILDCARD, _WILDCARD, _WILDCARD))
    repository, kind, tag = parse_prefix(text).split("/")
    return ResourcePrefix((repository, kind, tag))


class _DemandWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    need: int
    of: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDemand:
    """How many of whom must approve what happens to a prefix.

    Attributes:
        prefix: of resources.
        need: at least one.
        of: names of principals, each once.
    """

    prefix: ResourcePrefix
    need: int
    of: tuple[str, ...]

    def met_by(self, names: Collection[str]) -> bool:
        """Return whether enough of its approvers are among `names`."""
        return len(set(self.of) & set(names)) >= self.need


def parse_demand(prefix: ResourcePrefix, text: bytes) -> ApprovalDemand:
    """Parse the demand of a prefix: JSON when it begins with a brace, else TOML.

    Raises:
        FormatRefused: another shape, nobody to approve, or more needed than there are (`trust.approval.malformed`).
    """
    if len(text) > _DEMAND_BYTES:
        raise FormatRefused(_CODE, "demand for approvals is too long", expected=f"at most {_DEMAND_BYTES} bytes")
    try:
        if text.lstrip()[:1] == b"{":
            wire = msgspec.json.decode(text, type=_DemandWire)
        else:
            wire = msgspec.convert(parse_toml(text, ceiling=_DEMAND_BYTES, code=_CODE), _DemandWire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_CODE, f"not a demand for approvals: {err}") from err
    if len(set(wire.of)) != len(wire.of) or len(wire.of) > APPROVERS_CEILING or not all(wire.of):
        raise FormatRefused(_CODE, "not a list of names", path="of", expected=f"1 to {APPROVERS_CEILING}, each once")
    if not 1 <= wire.need <= len(wire.of):
        raise FormatRefused(
            _CODE, "impossible number of approvals", path="need", expected=f"1 to {len(wire.of)}", actual=str(wire.need)
        )
    return ApprovalDemand(prefix=prefix, need=wire.need, of=wire.of)


def demands_on_change(demands: Iterable[ApprovalDemand], prefix: ResourcePrefix) -> tuple[ApprovalDemand, ...]:
    """Return the demands that a change of the rule of `prefix` has to meet."""
    return tuple(demand for demand in demands if demand.prefix.overlaps(prefix))


def require_no_demand(demands: Iterable[ApprovalDemand], prefix: ResourcePrefix) -> None:
    """Return if the rule of `prefix` may be changed by one person.

    Raises:
        Refused: it may not (`trust.approval.needed`).
    """
    for demand in demands_on_change(demands, prefix):
        raise Refused(
            "trust.approval.needed",
            "several people must approve a change of this rule",
            path=str(prefix),
            expected=f"{demand.need} of {', '.join(demand.of)}"[:200],
            actual="nobody was asked",
            hint="change it by `cloister policy release set`, which proposes it to them",
        )
