"""Notation's trust policy: whose signatures count for which repository (Notary Project, trust-store-trust-policy.md,
version 1.0 of `trustpolicy.json`).

Levels: `strict` enforces everything; `permissive` only tells of expiry, of certificates out of date and of revocation;
`audit` only tells of an unknown signer too; `skip` verifies nothing. Integrity is enforced at every level but `skip`.
Revocation is not looked up (that needs the network): where it is enforced, a certificate that names a place to ask
is refused, and `"override": {"revocation": "skip"}` is the way to say that this is accepted. Pure; trusts the policy
and the certificates it is given.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from cloister.crypto.x509path import PARSE_ERRORS
from cloister.errors import ImageRefused, Refused
from cloister.oci.document import Members, parse_document
from cloister.oci.manifest import parse_either
from cloister.oci.reference import OCIReference
from cloister.oci.signing.notation import Scheme, VerifiedEnvelope, verify_envelope
from cloister.oci.signing.referred import EnvelopeCandidate
from cloister.oci.signing.requirements import AnyCandidate, Signer
from cloister.oci.signing.verify import require_same_image
from cloister.wire.limits import SIGNATURE_POLICY_BYTES, SIGNATURE_POLICY_ITEMS

_CODE: Final = "oci.signing.trust_policy"
_NOTATION: Final = "oci.signing.notation"
_CHECKS: Final = ("authenticity", "authenticTimestamp", "expiry", "revocation")
_STORE: Final = re.compile(r"(?:ca|signingAuthority|tsa):[A-Za-z0-9_.-]{1,128}")
_SCOPE: Final = re.compile(r"[a-zA-Z0-9.-]+(?::\d{1,5})?/[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")
_SUBJECT: Final = "x509.subject:"
_REQUIRED_NAMES: Final = ("C", "ST", "O")


class Action(enum.Enum):
    """What a failed check does."""

    ENFORCE = "enforce"
    LOG = "log"
    SKIP = "skip"


_LEVELS: Final[Mapping[str, Mapping[str, Action]]] = {
    "strict": dict.fromkeys(_CHECKS, Action.ENFORCE),
    "permissive": {"authenticity": Action.ENFORCE, **dict.fromkeys(_CHECKS[1:], Action.LOG)},
    "audit": dict.fromkeys(_CHECKS, Action.LOG),
    "skip": dict.fromkeys(_CHECKS, Action.SKIP),
}


class TrustPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the file.

    Attributes:
        name: for the report.
        scopes: repositories, or `*`.
        level: name of the level.
        actions: what each check does, overrides included.
        stores: `ca:NAME`, `signingAuthority:NAME`.
        identities: distinguished names, attribute by attribute; None is anybody whom the stores vouch for.
    """

    name: str
    scopes: tuple[str, ...]
    level: str
    actions: Mapping[str, Action]
    stores: tuple[str, ...]
    identities: tuple[Mapping[str, str], ...] | None


def parse_trust_policy(data: bytes) -> tuple[TrustPolicy, ...]:
    """Parse `trustpolicy.json`.

    Raises:
        ImageRefused: `oci.signing.trust_policy.*`.
    """
    top = Members(parse_document(data, ceiling=SIGNATURE_POLICY_BYTES, code=_CODE), path="", code=_CODE)
    top.only("version", "trustPolicies")
    if top.text("version") != "1.0":
        raise _refused("version", "trust policy is of a version that is not read", "version", top.text("version"))
    items = top.array("trustPolicies", ceiling=SIGNATURE_POLICY_ITEMS, required=True)
    policies = tuple(
        _policy(Members(item, path=f"trustPolicies[{number}]", code=_CODE)) for number, item in enumerate(items)
    )
    scopes = [scope for policy in policies for scope in policy.scopes]
    names = [policy.name for policy in policies]
    if not policies or len(set(scopes)) != len(scopes) or len(set(names)) != len(names):
        raise _refused("ambiguous", "no policy, or two for one scope or under one name", "trustPolicies")
    return policies


def select_policy(policies: Sequence[TrustPolicy], reference: OCIReference) -> TrustPolicy:
    """Return the policy for an image's repository.

    Raises:
        ImageRefused: none applies (`oci.signing.trust_policy.no_policy`).
    """
    for scope in (reference.name, "*"):
        for policy in policies:
            if scope in policy.scopes:
                return policy
    raise _refused("no_policy", "no trust policy applies to the repository", "registryScopes", reference.name)


class NotationRequirement(msgspec.Struct, frozen=True, kw_only=True):
    """A Notation signature that a trust policy accepts.

    Attributes:
        policy: the entry that applies.
        stores: certificates of its stores, by name.
    """

    policy: TrustPolicy
    stores: Mapping[str, tuple[x509.Certificate, ...]]

    @property
    def enforces(self) -> bool:
        """See `requirements.Requirement`: level audit lets every signer pass."""
        return self.policy.actions["authenticity"] is Action.ENFORCE

    @property
    def text(self) -> str:
        """See `requirements.Requirement`."""
        return f"Notation signature under trust policy {self.policy.name} ({self.policy.level})"

    def judge(self, candidate: AnyCandidate, artifact: bytes, now: datetime) -> Signer:
        """Return who signed.

        Steps: 1 integrity, with the subject; 2 authenticity: store and identity; 3 the certificates' validity; 4
        expiry; 5 revocation.

        Raises:
            ImageRefused: `oci.signing.notation.*`, `oci.signing.other_image`, `oci.signing.bad_signature`.
        """
        if not isinstance(candidate, EnvelopeCandidate):
            raise ImageRefused(
                "oci.signing.other_format", "signature is of a format that is not asked for", expected="Notation"
            )
        # 1
        if candidate.refusal is not None:
            raise candidate.refusal
        envelope = verify_envelope(candidate.raw, candidate.media_type)
        _require_target(envelope, artifact)
        told: list[str] = []
        # 2 and 3: whoever is not trusted now may still have been trusted at the time, which is another check
        at = envelope.signed_at if envelope.scheme is Scheme.SIGNING_AUTHORITY else now
        self._check("authenticity", told, lambda: self._authentic(envelope))
        self._check("authenticTimestamp", told, lambda: _valid_at(envelope, at))
        # 4
        self._check("expiry", told, lambda: _not_expired(envelope, now))
        # 5
        self._check("revocation", told, lambda: _no_revocation(envelope))
        signer = envelope.chain[0].subject.rfc4514_string()[:160]
        return Signer(signer + (f" (not enforced: {'; '.join(told)})" if told else ""), envelope.signed_at)

    def _check(self, name: str, told: list[str], check: Callable[[], None]) -> None:
        action = self.policy.actions[name]
        if action is Action.SKIP:
            return
        try:
            check()
        except Refused as err:
            if action is Action.ENFORCE:
                raise
            told.append(err.code)

    def _authentic(self, envelope: VerifiedEnvelope) -> None:
        kind = "signingAuthority:" if envelope.scheme is Scheme.SIGNING_AUTHORITY else "ca:"
        trusted = [item for name, items in self.stores.items() if name.startswith(kind) for item in items]
        if not any(certificate in trusted for certificate in envelope.chain):
            raise ImageRefused(
                f"{_NOTATION}.untrusted",
                "no certificate of the chain is in a trust store of the policy",
                expected=", ".join(name for name in self.stores if name.startswith(kind)) or f"a store {kind}NAME",
                actual=envelope.chain[-1].subject.rfc4514_string()[:160],
            )
        subject = _names(envelope.chain[0].subject)
        identities = self.policy.identities
        if identities is not None and not any(wanted.items() <= subject.items() for wanted in identities):
            raise ImageRefused(
                f"{_NOTATION}.identity",
                "signer is not a trusted identity",
                expected=" or ".join(", ".join(f"{k}={v}" for k, v in item.items()) for item in identities)[:300],
                actual=envelope.chain[0].subject.rfc4514_string()[:160],
            )


def _require_target(envelope: VerifiedEnvelope, artifact: bytes) -> None:
    target = envelope.target
    require_same_image(target.digest, artifact)
    media_type = parse_either(artifact).media_type
    if target.size != len(artifact) or target.media_type != media_type:
        raise ImageRefused(
            "oci.signing.other_image",
            "signature describes the manifest otherwise",
            expected=f"{media_type}, {len(artifact)} bytes",
            actual=f"{target.media_type[:80]}, {target.size} bytes",
        )


def _valid_at(envelope: VerifiedEnvelope, at: datetime) -> None:
    for certificate in envelope.chain:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= at <= end:
            raise ImageRefused(
                f"{_NOTATION}.certificate_time",
                "a certificate is not valid at the time that counts",
                expected=f"{start.isoformat()} to {end.isoformat()}",
                actual=at.isoformat(timespec="seconds"),
                hint="timestamps of other authorities are not verified: sign again under a valid certificate",
            )


def _not_expired(envelope: VerifiedEnvelope, now: datetime) -> None:
    if envelope.expires is not None and now >= envelope.expires:
        raise ImageRefused(
            f"{_NOTATION}.expired",
            "signature has expired",
            expected=f"before {envelope.expires.isoformat()}",
            actual=now.isoformat(timespec="seconds"),
        )


def _no_revocation(envelope: VerifiedEnvelope) -> None:
    """Refuse certificates that could be revoked, because nobody asks whether they are."""
    for certificate in envelope.chain[:-1]:
        oids = [item.oid for item in certificate.extensions]
        if ExtensionOID.CRL_DISTRIBUTION_POINTS in oids or ExtensionOID.AUTHORITY_INFORMATION_ACCESS in oids:
            raise ImageRefused(
                f"{_NOTATION}.revocation",
                "revocation of a certificate is not looked up",
                actual=certificate.subject.rfc4514_string()[:160],
                hint='write "override": {"revocation": "skip"} if that is acceptable',
            )


def _policy(members: Members) -> TrustPolicy:
    members.only("name", "registryScopes", "signatureVerification", "trustStores", "trustedIdentities")
    verification = members.members("signatureVerification")
    verification.only("level", "override", "verifyTimestamp")
    level = verification.text("level")
    if level not in _LEVELS:
        raise _refused("level", "level is not known", verification.place("level"), level)
    actions = {**_LEVELS[level], **_overrides(verification, level)}
    stores = members.texts("trustStores", ceiling=SIGNATURE_POLICY_ITEMS)
    identities = members.texts("trustedIdentities", ceiling=SIGNATURE_POLICY_ITEMS)
    if (level == "skip") != (not stores) or (level == "skip") != (not identities):
        raise _refused(
            "stores", "stores and identities are needed, and not with level skip", members.place("trustStores")
        )
    for store in stores:
        if not _STORE.fullmatch(store):
            raise _refused("stores", "not a trust store", members.place("trustStores"), store)
    scopes = members.texts("registryScopes", ceiling=SIGNATURE_POLICY_ITEMS)
    if not scopes or ("*" in scopes and len(scopes) > 1) or not all(s == "*" or _SCOPE.fullmatch(s) for s in scopes):
        raise _refused("scope", "not a list of repositories", members.place("registryScopes"), ", ".join(scopes))
    if "*" in identities and len(identities) > 1:
        raise _refused("identity", "`*` stands beside other identities", members.place("trustedIdentities"))
    return TrustPolicy(
        name=members.text("name"),
        scopes=scopes,
        level=level,
        actions=actions,
        stores=stores,
        identities=None if identities == ("*",) else tuple(map(_identity, identities)),
    )


def _overrides(verification: Members, level: str) -> dict[str, Action]:
    if "override" not in verification:
        return {}
    override = verification.members("override")
    override.only(*_CHECKS)
    texts = {name: override.text(name) for name in override.names()}
    known = {action.value: action for action in Action}
    if level == "skip" or not all(text in known for text in texts.values()):
        raise _refused("level", "not an override of this level", override.place(""), str(texts))
    if (
        texts.get("authenticity") == "skip"
        or texts.get("authenticTimestamp") == "skip"
        or texts.get("expiry") == "skip"
    ):
        raise _refused("level", "only revocation can be skipped", override.place(""), str(texts))
    return {name: known[text] for name, text in texts.items()}


def _identity(text: str) -> Mapping[str, str]:
    """Parse `x509.subject: C=US, ST=WA, O=name`."""
    if not text.startswith(_SUBJECT):
        raise _refused("identity", "not a trusted identity", "trustedIdentities", text)
    compact = re.sub(r"(?<!\\)\s*,\s*", ",", text.removeprefix(_SUBJECT).strip())
    try:
        names = _names(x509.Name.from_rfc4514_string(compact))
    except PARSE_ERRORS as err:
        raise _refused("identity", "not a distinguished name", "trustedIdentities", text) from err
    if any(name not in names for name in _REQUIRED_NAMES):
        raise _refused("identity", "distinguished name lacks C, ST or O", "trustedIdentities", text)
    return names


def _names(name: x509.Name) -> dict[str, str]:
    """Return attributes by their short names; one that occurs twice makes no match."""
    found: dict[str, str] = {}
    for attribute in name:
        key = attribute.rfc4514_attribute_name
        found[key] = str(attribute.value) if key not in found else "\0"
    return found


def _refused(reason: str, message: str, path: str, actual: str = "") -> ImageRefused:
    return ImageRefused(f"{_CODE}.{reason}", message, path=path, actual=actual[:120])
