"""Release rules: which resource goes to which guest, one rule per prefix; their text, read strictly. Pure.

    insecure_allow_levels = ["measured"]          # TOML, or the same as JSON
    init_data = ["sha256:9a1e.."]
    lease_seconds = 3600
    note = "the classifier"

A rule is stored under its prefix: `repository/type/tag`, `repository/type/*`, `repository/*/*` or `*`. The most
specific rule about a path decides alone. A rule says which guests may have the resource, by their init data (and with
it their pod policy); an unknown field refuses the whole rule, so a misspelt restriction can never silently be none.

Without a rule the default decides: evidence of level `hardware` that was affirmed against reference values which name
the guest's init data. Levels below `hardware` pass by `insecure_allow_levels` of the rule and by nothing else.

A rule may also be a Rego policy as CoCo's key broker takes it (package `policy`, rule `allow`); it decides instead of
the lists, and cannot lower what is asked of every release: a fresh token, level `hardware`, no revocation.

What rules come to is decided in `cloister.trust.keybroker.decision`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.reference import is_init_data_digest
from cloister.rats.result import Finding
from cloister.tee.regopolicy import looks_like_rego
from cloister.wire.limits import LEASE_SECONDS, POLICY_BYTES, POLICY_LIST_ITEMS
from cloister.wire.stricttoml import parse_toml

EVERYTHING: Final = "*"
WITNESSES: Final = 16  # cosignatures that a rule may ask for
APPROVERS: Final = 16
_MALFORMED: Final = "trust.release_policy.malformed"
_WILDCARD: Final = "*"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHOWN: Final = 23  # "sha256:" and 16 digits
_BELOW_HARDWARE: Final = (Level.SIMULATED, Level.MEASURED)


class Approvals(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How many of whom must have approved a release.

    Attributes:
        need: how many, at least one.
        of: names of those who may.
    """

    need: int
    of: tuple[str, ...]


class _RuleWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """What stands in a file of TOML or JSON."""

    init_data: tuple[str, ...] | None = None
    insecure_any_init_data: bool = False
    insecure_allow_levels: tuple[Level, ...] = ()
    appraisal_policy: str = ""
    lease_seconds: int = 0
    witnesses: int = 0
    approvals: Approvals | None = None
    revoked: tuple[str, ...] = ()
    tees: tuple[str, ...] = ()
    note: str = ""


class ReleaseRule(_RuleWire, frozen=True, kw_only=True, omit_defaults=True):
    """One rule.

    Attributes:
        prefix: what it is about.
        init_data: digests of init data that may have the resource. An empty list is nobody. None, where the rule has no
            list, is nobody either, except at level `simulated`, where a guest names whatever it likes.
        insecure_any_init_data: every guest may have it whose evidence is accepted, whatever pod it runs.
        insecure_allow_levels: levels below `hardware` that may have it.
        appraisal_policy: id of the appraisal policy the evidence must have been judged by; empty for the service's own.
        lease_seconds: how long a release holds; 0 for no lease.
        witnesses: how many witnesses must have cosigned the log entry of a release.
        approvals: who must have approved a release.
        revoked: digests of init data that had it and must not have it again; they win over `init_data`.
        tees: technologies that may have it; empty for all.
        note: for people.
        rego: Rego source that decides instead of `init_data` and `tees`; empty for none.
        digest: `sha256:` of the text it was parsed from.
    """

    prefix: str
    rego: str = ""
    digest: str = ""

    @property
    def named(self) -> tuple[str, ...]:
        """The init data that the rule names."""
        return self.init_data or ()


class _LegacyRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    path: str
    init_data: tuple[str, ...]
    appraisal_policy: str
    insecure_accept_levels: tuple[Level, ...] = ()
    revoked: tuple[str, ...] = ()
    note: str = ""


class _LegacyPolicy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    id: str
    rules: tuple[_LegacyRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRules:
    """All rules in force, and the init data that the owner revoked for every resource.

    Attributes:
        rules: by prefix.
        revoked: digests of init data.
        judged: what the evaluator came to under them, for it alone (`cloister.trust.keybroker.decision`).
    """

    rules: Mapping[str, ReleaseRule] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    judged: dict[object, tuple[Finding, ...]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def rule_for(self, path: ResourcePath) -> ReleaseRule | None:
        """Return the most specific rule about `path`."""
        return next((self.rules[prefix] for prefix in prefixes_of(path) if prefix in self.rules), None)


def prefixes_of(path: ResourcePath) -> tuple[str, ...]:
    """Return the prefixes that are about `path`, the most specific first."""
    return (str(path), f"{path.repository}/{path.type}/*", f"{path.repository}/*/*", EVERYTHING)


def parse_prefix(text: str) -> str:
    """Return a checked prefix.

    Raises:
        FormatRefused: `trust.release_policy.malformed`.
    """
    if text == EVERYTHING:
        return text
    segments = text.split("/")
    literal = [segment for segment in segments if segment != _WILDCARD]
    try:
        if len(segments) != 3 or not literal or segments[: len(literal)] != literal:
            raise FormatRefused(_MALFORMED, "not a prefix")
        ResourcePath(*(literal + ["x"] * (3 - len(literal))))
    except FormatRefused as err:
        raise FormatRefused(
            _MALFORMED,
            "not a prefix of resources",
            path="prefix",
            expected="repository/type/tag, repository/type/*, repository/*/* or *",
            actual=text[:80],
        ) from err
    return text


def parse_release_rule(prefix: str, data: bytes) -> ReleaseRule:
    """Parse a rule's file: Rego when its first statement is a package, JSON when it begins with a brace, else TOML.

    Rego is not run here: whether it loads says `cloister.trust.keybroker.rego`.

    Raises:
        FormatRefused: unknown field or level, malformed prefix or digest, a number out of range, too long or empty
            (`trust.release_policy.malformed`).
    """
    parse_prefix(prefix)
    if len(data) > POLICY_BYTES:
        raise FormatRefused(_MALFORMED, "rule too long", expected=f"at most {POLICY_BYTES} bytes")
    if not data.strip():
        raise FormatRefused(
            _MALFORMED, "an empty file is no rule", hint="remove the rule instead; then the default applies"
        )
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    if looks_like_rego(data):
        try:
            return ReleaseRule(prefix=prefix, rego=data.decode("utf-8"), digest=digest)
        except UnicodeDecodeError as err:
            raise FormatRefused(_MALFORMED, "Rego that is not UTF-8") from err
    try:
        if data.lstrip()[:1] == b"{":
            wire = msgspec.json.decode(data, type=_RuleWire)
        else:
            wire = msgspec.convert(parse_toml(data, ceiling=POLICY_BYTES, code=_MALFORMED), _RuleWire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, f"not a release rule: {err}") from err
    rule = ReleaseRule(prefix=prefix, digest=digest, **msgspec.structs.asdict(wire))
    _check_rule(rule)
    return rule


def encode_release_rule(rule: ReleaseRule) -> bytes:
    """Return the text of a rule; `parse_release_rule` reads it back under the same prefix."""
    if rule.rego:
        return rule.rego.encode("utf-8")
    fields = {name: getattr(rule, name) for name in _RuleWire.__struct_fields__}
    return msgspec.json.encode(_RuleWire(**fields), order="deterministic")


def parse_legacy_policy(data: bytes) -> tuple[ReleaseRule, ...]:
    """Return the rules of a policy document as earlier releases stored it, all paths in one text.

    Raises:
        FormatRefused: unknown version or field, a malformed path or digest, two rules for one path, too long
            (`trust.release_policy.malformed`).
    """
    if len(data) > POLICY_BYTES:
        raise FormatRefused(_MALFORMED, "policy too long", expected=f"at most {POLICY_BYTES} bytes")
    try:
        wire = msgspec.json.decode(data, type=_LegacyPolicy)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, f"not a key-release policy: {err}") from err
    if wire.version != 1 or not wire.id:
        raise FormatRefused(_MALFORMED, "a policy has version 1 and an id", actual=f"version {wire.version}")
    if len(wire.rules) > POLICY_LIST_ITEMS or len({rule.path for rule in wire.rules}) != len(wire.rules):
        raise FormatRefused(_MALFORMED, "too many rules, or two of the same path", path="rules")
    return tuple(_from_legacy(rule) for rule in wire.rules)


def _from_legacy(rule: _LegacyRule) -> ReleaseRule:
    draft = ReleaseRule(
        prefix=parse_prefix(rule.path),
        init_data=rule.init_data,
        insecure_allow_levels=tuple(level for level in rule.insecure_accept_levels if level is not Level.HARDWARE),
        appraisal_policy=rule.appraisal_policy,
        revoked=rule.revoked,
        note=rule.note,
    )
    return parse_release_rule(draft.prefix, encode_release_rule(draft))


def _check_rule(rule: ReleaseRule) -> None:
    if len(rule.named) + len(rule.revoked) > POLICY_LIST_ITEMS or len(rule.tees) > POLICY_LIST_ITEMS:
        raise FormatRefused(_MALFORMED, "list too long", path="init_data", expected=f"at most {POLICY_LIST_ITEMS}")
    for digest in (*rule.named, *rule.revoked):
        if not is_init_data_digest(digest):
            raise FormatRefused(
                _MALFORMED,
                "not a digest",
                path="init_data",
                expected="sha256: and 64 lower-case digits",
                actual=digest[:80],
            )
    if rule.named and rule.insecure_any_init_data:
        raise FormatRefused(
            _MALFORMED, "a rule names init data or accepts any, not both", path="insecure_any_init_data"
        )
    if any(level not in _BELOW_HARDWARE for level in rule.insecure_allow_levels):
        raise FormatRefused(
            _MALFORMED,
            "not a level below hardware",
            path="insecure_allow_levels",
            expected=" or ".join(_BELOW_HARDWARE),
        )
    for path, value, most in (
        ("lease_seconds", rule.lease_seconds, LEASE_SECONDS),
        ("witnesses", rule.witnesses, WITNESSES),
    ):
        if not 0 <= value <= most:
            raise FormatRefused(
                _MALFORMED, "number out of range", path=path, expected=f"0 to {most}", actual=str(value)[:20]
            )
    if rule.approvals is not None:
        _check_approvals(rule.approvals)


def _check_approvals(approvals: Approvals) -> None:
    names = approvals.of
    if not all(map(_NAME.fullmatch, names)) or len(set(names)) != len(names) or len(names) > APPROVERS:
        raise FormatRefused(_MALFORMED, "not a list of names, each once", path="approvals.of")
    if not 1 <= approvals.need <= len(names):
        raise FormatRefused(
            _MALFORMED, "more approvals than approvers", path="approvals.need", expected=f"1 to {len(names)}"
        )
