"""The identity policy: which attested guest gets which SPIFFE ID, as strict TOML or JSON, and its one evaluator.

    version = 1
    id = "shop"

    [[grants]]
    template = "shop/{pod}"
    init_data = ["sha256:9a1e.."]
    appraisal_policy = "default"
    audiences = ["https://sts.example.org"]

Like a key-release rule: a grant names the init data (and with it the pod policy) that may have the name; without a
grant there is no name; an unknown field refuses the whole policy. Levels below `hardware` pass only by a field that
begins with `insecure_`, and only under a template with `{level}` in it: a relying party that reads nothing but the
name still sees `simulated` there, and can never mistake it for the name of the real thing.

Pure: values in, findings out; verdict and explanation are the same findings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.protocol.spiffe import AUDIENCE_CHARS, SPIFFEID
from cloister.rats.claims import Level
from cloister.rats.result import Finding, Question, Tier
from cloister.trust.identity.template import LEVEL, check_template
from cloister.trust.roles import AttestedGuest
from cloister.wire.limits import POLICY_BYTES, POLICY_LIST_ITEMS
from cloister.wire.stricttoml import parse_toml

_MALFORMED: Final = "trust.identity.policy"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_SHOWN: Final = 23  # "sha256:" and 16 digits
WILDCARD: Final = "*"


class IdentityGrant(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """One grant.

    Attributes:
        template: path of the name below trust domain and tenant.
        init_data: digests of init data that may have the name; empty grants nothing.
        appraisal_policy: id of the appraisal policy the evidence must have been judged by.
        audiences: for whom a JWT-SVID may be; empty grants none, an X509-SVID needs none.
        insecure_allow_levels: levels below `hardware` that may have the name.
        revoked: digests of init data that must not have it any more; they win over `init_data`.
        note: for people.
    """

    template: str
    init_data: tuple[str, ...]
    appraisal_policy: str
    audiences: tuple[str, ...] = ()
    insecure_allow_levels: tuple[Level, ...] = ()
    revoked: tuple[str, ...] = ()
    note: str = ""


class _PolicyWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    id: str
    grants: tuple[IdentityGrant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityPolicy:
    """A parsed identity policy and the digest of the text it came from."""

    id: str
    grants: tuple[IdentityGrant, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityDecision:
    """The findings of one evaluation; the verdict is a function of them.

    Attributes:
        name: the SPIFFE ID, None when no grant is about this guest.
        findings: all checks.
    """

    name: SPIFFEID | None
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that did not hold."""
        return tuple(finding for finding in self.findings if not finding.ok)


def parse_identity_policy(data: bytes) -> IdentityPolicy:
    """Parse policy text: JSON when it begins with a brace, else TOML.

    Raises:
        FormatRefused: unknown version or field, a malformed template, digest or audience, two grants of one template
            (`trust.identity.policy`, `trust.identity.template`).
    """
    if len(data) > POLICY_BYTES:
        raise FormatRefused(_MALFORMED, "policy too long", expected=f"at most {POLICY_BYTES} bytes")
    try:
        if data.lstrip()[:1] == b"{":
            wire = msgspec.json.decode(data, type=_PolicyWire)
        else:
            wire = msgspec.convert(parse_toml(data, ceiling=POLICY_BYTES, code=_MALFORMED), _PolicyWire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, f"not an identity policy: {err}") from err
    if wire.version != 1 or not wire.id:
        raise FormatRefused(_MALFORMED, "a policy has version 1 and an id", actual=f"version {wire.version}")
    if len(wire.grants) > POLICY_LIST_ITEMS:
        raise FormatRefused(_MALFORMED, "too many grants", expected=f"at most {POLICY_LIST_ITEMS}")
    for index, grant in enumerate(wire.grants):
        _check_grant(grant, f"grants[{index}]")
    if len({grant.template for grant in wire.grants}) != len(wire.grants):
        raise FormatRefused(_MALFORMED, "two grants have the same template", path="grants")
    return IdentityPolicy(id=wire.id, grants=wire.grants, digest="sha256:" + hashlib.sha256(data).hexdigest())


def check_audience(audience: str, *, path: str) -> str:
    """Return an audience of a JWT-SVID.

    Raises:
        FormatRefused: empty, too long, unprintable, or a wildcard (`trust.identity.audience`): a token for everybody
            can be replayed by anybody it is shown to.
    """
    if not audience or len(audience) > AUDIENCE_CHARS or not audience.isprintable() or WILDCARD in audience:
        raise FormatRefused(
            "trust.identity.audience",
            "not an audience",
            path=path,
            expected="the exact name of one relying party",
            actual=audience[:80] or "nothing",
        )
    return audience


def evaluate_identity(
    policy: IdentityPolicy | None,
    token: AttestedGuest,
    name_of: Callable[[IdentityGrant], SPIFFEID],
    *,
    wanted: SPIFFEID | None,
    audiences: Sequence[str],
    appraisal_policy_digest: str,
    at: datetime,
) -> IdentityDecision:
    """Decide which name the guest that `token` is about gets.

    Steps: 1 the evidence was affirmed; 2 the result is fresh; 3 exactly one grant is about this guest and the name it
    asks for; 4 the owner did not revoke this init data, and the grant names it; 5 the grant accepts the level; 6 the
    evidence was judged by the policy the grant names, 7 in the version in force; 8 the grant names every audience.

    Args:
        policy: in force, None when none is stored.
        token: verified Attestation Result.
        name_of: fills a grant's template.
        wanted: the name asked for, None for the only one.
        audiences: of the JWT-SVID asked for.
        appraisal_policy_digest: of the version in force of the policy that the token names, empty when none.
        at: aware UTC.
    """
    # 1, 2
    findings = [
        _finding(
            "trust.identity.tier",
            token.tier is Tier.AFFIRMING,
            "the verifier affirmed the evidence",
            "the verifier did not affirm the evidence",
            expected=Tier.AFFIRMING.value,
            actual=token.tier.value,
            hint="the guest's evidence is not acceptable: see the findings of its appraisal",
        ),
        _finding(
            "trust.identity.fresh",
            token.issued_at <= token.expires_at and at < token.expires_at,
            "the Attestation Result is fresh",
            "the Attestation Result is too old",
            expected=f"before {token.expires_at.isoformat(timespec='seconds')}",
            actual=at.isoformat(timespec="seconds"),
            hint="attest again",
        ),
    ]
    # 3
    found, nameless = _grants_about(policy, token, name_of, wanted)
    if nameless is not None and not found:
        findings.append(
            _finding(
                nameless.code,
                False,
                "",
                nameless.message,
                expected=nameless.expected,
                actual=nameless.actual,
                hint=nameless.hint,
                origin=f"grant {nameless.path}",
            )
        )
        return IdentityDecision(name=None, findings=tuple(findings))
    findings.append(
        _finding(
            "trust.identity.no_grant",
            len(found) == 1,
            "one grant of the identity policy is about this guest",
            "no grant of the identity policy is about this guest and name"
            if not found
            else "several grants of the identity policy are about this guest",
            expected="one grant",
            actual=", ".join(str(name) for _, name in found)[:200] or "none",
            origin=f"identity policy {policy.id}" if policy else "no identity policy is stored",
            hint="add a grant that names this init data; with several, ask for one name with `id=`",
        )
    )
    if policy is None or len(found) != 1:
        return IdentityDecision(name=None, findings=tuple(findings))
    [(grant, name)] = found
    findings += _grant_findings(policy, grant, token, appraisal_policy_digest, audiences)
    return IdentityDecision(name=name, findings=tuple(findings))


def _grants_about(
    policy: IdentityPolicy | None,
    token: AttestedGuest,
    name_of: Callable[[IdentityGrant], SPIFFEID],
    wanted: SPIFFEID | None,
) -> tuple[list[tuple[IdentityGrant, SPIFFEID]], FormatRefused | None]:
    """Return the grants that name this init data, with the name each gives, as far as it is the wanted one.

    Beside them the first reason why a grant gives no name: a fact that it uses may be unknown of this guest.
    """
    found: list[tuple[IdentityGrant, SPIFFEID]] = []
    nameless: FormatRefused | None = None
    for grant in policy.grants if policy is not None else ():
        if token.init_data not in (*grant.init_data, *grant.revoked):
            continue
        try:
            name = name_of(grant)
        except FormatRefused as err:
            nameless = nameless or err
            continue
        if wanted in (None, name):
            found.append((grant, name))
    return found, nameless


def _grant_findings(
    policy: IdentityPolicy,
    grant: IdentityGrant,
    token: AttestedGuest,
    appraisal_policy_digest: str,
    audiences: Sequence[str],
) -> list[Finding]:
    origin = f"identity policy {policy.id}, grant {grant.template}"
    levels = {Level.HARDWARE, *grant.insecure_allow_levels}
    others = [audience for audience in audiences if audience not in grant.audiences]
    return [
        # 4
        _finding(
            "trust.identity.revoked",
            token.init_data in grant.init_data and token.init_data not in grant.revoked,
            "the owner did not revoke this pod's name",
            "the owner revoked this pod's name",
            expected="not revoked",
            actual="revoked" if token.init_data in grant.revoked else "not revoked",
            origin=origin,
            hint="the owner withdrew this pod's approval; only the owner can approve it again",
        ),
        # 5
        _finding(
            "trust.identity.level",
            token.level in levels,
            "the grant accepts the level of this guest",
            "the grant does not accept the level of this guest",
            expected=", ".join(sorted(level.value for level in levels)),
            actual=token.level.value,
            origin=origin,
            hint="run on real hardware, or accept the weaker level in `insecure_allow_levels`",
        ),
        # 6
        _finding(
            "trust.identity.appraisal_policy",
            token.policy_id == grant.appraisal_policy,
            "the evidence was judged by the policy the grant asks for",
            "the evidence was judged by another policy than the grant asks for",
            expected=grant.appraisal_policy,
            actual=token.policy_id,
            origin=origin,
            hint="start the service with that appraisal policy, or change the grant",
        ),
        # 7
        _finding(
            "trust.identity.appraisal_policy.version",
            token.policy_digest == appraisal_policy_digest,
            "the evidence was judged by the version of the policy that is in force",
            "the evidence was judged by a version of the policy that is not in force",
            expected=appraisal_policy_digest[:_SHOWN] + ".." if appraisal_policy_digest else "no such policy",
            actual=token.policy_digest[:_SHOWN] + "..",
            origin="stored appraisal policies",
            hint="the policy changed since the guest attested: attest again",
        ),
        # 8
        _finding(
            "trust.identity.audience_granted",
            not others,
            "the grant names every audience asked for",
            "the grant does not name an audience asked for",
            expected=", ".join(grant.audiences)[:200] or "nothing: the list is empty",
            actual=", ".join(others)[:200],
            origin=origin,
            hint="add the audience to `audiences` of the grant",
        ),
    ]


def _finding(
    code: str,
    ok: bool,
    message: str,
    otherwise: str,
    *,
    expected: str,
    actual: str,
    hint: str,
    origin: str = "identity",
) -> Finding:
    return Finding(
        code=code,
        question=Question.ACCEPTABLE,
        ok=ok,
        message=message if ok else otherwise,
        expected=expected,
        actual=actual,
        origin=origin,
        hint="" if ok else hint,
    )


def _check_grant(grant: IdentityGrant, where: str) -> None:
    used = check_template(grant.template, path=f"{where}.template")
    if set(grant.insecure_allow_levels) - {Level.HARDWARE} and LEVEL not in used:
        raise FormatRefused(
            _MALFORMED,
            "a grant for a level below hardware has the level in its names",
            path=f"{where}.template",
            expected="a template with {level}",
            actual=grant.template[:80],
            hint="names of weaker levels must not look like names of hardware: put `{level}` into the template",
        )
    if len(grant.init_data) + len(grant.revoked) + len(grant.audiences) > POLICY_LIST_ITEMS:
        raise FormatRefused(_MALFORMED, "too many items", path=where, expected=f"at most {POLICY_LIST_ITEMS}")
    for digest in (*grant.init_data, *grant.revoked):
        if not _DIGEST.fullmatch(digest):
            raise FormatRefused(
                _MALFORMED,
                "not a digest",
                path=f"{where}.init_data",
                expected="sha256: and 64 lower-case digits",
                actual=digest[:80],
            )
    for index, audience in enumerate(grant.audiences):
        check_audience(audience, path=f"{where}.audiences[{index}]")
    if not grant.appraisal_policy:
        raise FormatRefused(_MALFORMED, "a grant names an appraisal policy", path=f"{where}.appraisal_policy")
