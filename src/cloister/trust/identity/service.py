"""SPIFFE identities for attested guests: the plugin behind `kbs+spiffe:///`.

    x509-svid?csr=..[&id=..]            X509-SVID for the key of a certificate request (or the request in the body)
    jwt-svid?audience=..[&id=..]        JWT-SVID
    bundle                              the trust domain's bundle

The broker has verified the guest's Attestation Result and seals the answer to the guest's key, so whoever stole a
token learns nothing here. What is issued is recorded before it leaves, in the audit table and in the release log, in
one transaction; when that cannot be done nothing is issued. An SVID never outlives the Attestation Result it was
issued on: the next one needs fresh evidence.

Names and claims are made from what was attested. Of the guest's request only a key, an audience and the choice among
names it has anyway are used.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from cryptography import x509
from sqlalchemy import Connection

from cloister.crypto.jwt import sign_jwt
from cloister.errors import FormatRefused
from cloister.protocol.spiffe import (
    AUDIENCE_CHARS,
    AUDIENCES,
    BUNDLE,
    CSR_BYTES,
    JWT_SVID,
    SPIFFE_ID_BYTES,
    SPIFFEID,
    SVID_REQUEST_BYTES,
    X509_SVID,
    JWTSVIDAnswer,
    SVIDRequest,
    X509SVIDAnswer,
    parse_spiffe_id,
)
from cloister.protocol.svidextension import AttestationStatement
from cloister.trust.events import NO_EVENTS, Events, LogEvent
from cloister.trust.identity.authorities import JWT_LIFE, SVID_LIFE, Authorities, Use
from cloister.trust.identity.certificates import issue_x509_svid
from cloister.trust.identity.csr import certified_key, parse_csr
from cloister.trust.identity.documents import (
    BUNDLE_PATH,
    DISCOVERY_PATH,
    KEYS_PATH,
    PublicDocument,
    encode_bundle,
    encode_discovery,
    encode_keys,
    public_document,
)
from cloister.trust.identity.policy import IdentityPolicy, check_audience, evaluate_identity, parse_identity_policy
from cloister.trust.identity.template import AttestedFacts, attested_facts, fill_template
from cloister.trust.roles import AttestedGuest, PluginDenied
from cloister.trust.store.database import Store
from cloister.trust.store.policies import APPRAISAL, IDENTITY, PolicyStore
from cloister.trust.store.records import RELEASED, AuditRow, store_audit
from cloister.wire.base64 import decode_b64, decode_b64url, encode_b64

PLUGIN: Final = "spiffe"
IDENTITY_POLICY: Final = "identity"  # name of the one identity policy of a tenant
ISSUED: Final = "trust.identity.issued"
_QUERY_CHARS: Final = 2 * CSR_BYTES + 3 * (SPIFFE_ID_BYTES + AUDIENCES * AUDIENCE_CHARS)
_PARAMETERS: Final = AUDIENCES + 2
_REQUEST: Final = "trust.identity.request"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityParts:
    """What the identities of one tenant are made of.

    Attributes:
        store: the database.
        authorities: keys of the trust domain.
        trust_domain: checked name.
        tenant: first segment of every path.
        issuer: https address for OpenID Connect, without a slash at its end; empty when JWT-SVIDs name no issuer.
        clock: aware UTC now.
        events: the release log.
    """

    store: Store
    authorities: Authorities
    trust_domain: str
    tenant: str
    clock: Callable[[], datetime]
    issuer: str = ""
    events: Events = NO_EVENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Granted:
    """A decision in favour of a guest: what it is called, and what is said of it."""

    name: SPIFFEID
    statement: AttestationStatement
    policy_digest: str
    at: datetime


class IdentityService:
    """Implements `cloister.trust.roles.Plugin` for one tenant."""

    def __init__(self, parts: IdentityParts) -> None:
        self._parts = parts
        self._policies = PolicyStore(parts.store, tenant=parts.tenant)

    def handle(self, path: str, query: str, body: bytes, token: AttestedGuest) -> bytes:
        """Answer one request of an attested guest; as `Plugin.handle`.

        Raises:
            Refused: malformed (`trust.identity.request`, `.csr`, `.audience`, `protocol.spiffe.id`), unknown path
                (`trust.request.path`), or not granted (`PluginDenied`).
            Unavailable: the store failed; nothing was issued.
        """
        parameters = _parse_query(query)
        request = _parse_body(body)
        if path == X509_SVID:
            return self._x509_svid(parameters, request, token)
        if path == JWT_SVID:
            return self._jwt_svid(parameters, request, token)
        if path == BUNDLE and not parameters and request == SVIDRequest():
            return self.bundle()
        raise FormatRefused(
            "trust.request.path",
            "no such identity",
            path=path[:80],
            expected=f"{X509_SVID}, {JWT_SVID} or {BUNDLE}",
        )

    def bundle(self) -> bytes:
        """Return the trust domain's bundle, a JWK set.

        Raises:
            Unavailable: the store failed.
        """
        at = self._parts.clock()
        return encode_bundle(self._parts.authorities.published(at=at), self._parts.authorities.sequence(at=at))

    def document(self, path: str) -> PublicDocument | None:
        """Return the public document at `path`, None when there is none.

        Raises:
            Unavailable: the store failed.
        """
        if path == BUNDLE_PATH:
            return public_document(self.bundle())
        if path == KEYS_PATH:
            return public_document(encode_keys(self._parts.authorities.published(at=self._parts.clock())))
        if path == DISCOVERY_PATH and self._parts.issuer:
            return public_document(encode_discovery(self._parts.issuer))
        return None

    def _x509_svid(self, parameters: Mapping[str, Sequence[str]], request: SVIDRequest, token: AttestedGuest) -> bytes:
        """Steps: 1 a proven key; 2 the grant; 3 the request asks for no more than that; 4 the certificate, no longer
        than the result lives; 5 recorded; 6 given out.
        """
        _only(parameters, "csr", "id")
        # 1
        csr = parse_csr(_csr(parameters, request))
        # 2
        granted = self._decide(_wanted(parameters), request.init_data, (), token)
        # 3
        key = certified_key(csr, granted.name)
        # 4
        authority = self._parts.authorities.signing(Use.X509, at=granted.at)
        expires_at = _until(granted.at, token, SVID_LIFE)
        certificate = issue_x509_svid(
            authority, key, granted.name, granted.statement, at=granted.at, expires_at=expires_at
        )
        # 5
        serial = x509.load_der_x509_certificate(certificate).serial_number
        self._record(granted, token, {"svid": X509_SVID, "serial": f"{serial:x}", "until": _text(expires_at)})
        # 6
        bundle = [item.certificate for item in self._parts.authorities.published(at=granted.at) if item.certificate]
        return msgspec.json.encode(
            X509SVIDAnswer(
                spiffe_id=str(granted.name), x509_svid=encode_b64(certificate), bundle=encode_b64(b"".join(bundle))
            )
        )

    def _jwt_svid(self, parameters: Mapping[str, Sequence[str]], request: SVIDRequest, token: AttestedGuest) -> bytes:
        """Steps: 1 for whom; 2 the grant; 3 the token, no longer than the result lives; 4 recorded; 5 given out."""
        _only(parameters, "audience", "id")
        # 1
        audiences = tuple(dict.fromkeys(parameters.get("audience", ())))
        if request.csr or not audiences or len(audiences) > AUDIENCES:
            raise FormatRefused(
                "trust.identity.audience",
                "a JWT-SVID is for somebody",
                path="audience",
                expected=f"one to {AUDIENCES} audiences and no certificate request",
            )
        for audience in audiences:
            check_audience(audience, path="audience")
        # 2
        granted = self._decide(_wanted(parameters), request.init_data, audiences, token)
        # 3
        expires_at = _until(granted.at, token, JWT_LIFE)
        identity = secrets.token_hex(16)
        claims = {
            "sub": str(granted.name),
            "aud": list(audiences),
            "iat": int(granted.at.timestamp()),
            "exp": int(expires_at.timestamp()),
            "jti": identity,
            "cloister.level": granted.statement.level,
            "cloister.policy-digest": granted.statement.policy_digest,
            "cloister.contract-id": granted.statement.contract_id,
            "cloister.attestation": granted.statement.attestation,
        }
        if self._parts.issuer:
            claims["iss"] = self._parts.issuer
        signer = self._parts.authorities.signing(Use.JWT, at=granted.at).signer
        svid = sign_jwt(claims, signer, carry_key=False)
        # 4
        details = {"svid": JWT_SVID, "jti": identity, "until": _text(expires_at), "audience": " ".join(audiences)}
        self._record(granted, token, details)
        # 5
        return msgspec.json.encode(JWTSVIDAnswer(spiffe_id=str(granted.name), svid=svid))

    def _decide(
        self, wanted: SPIFFEID | None, init_data: str, audiences: Sequence[str], token: AttestedGuest
    ) -> _Granted:
        at = self._parts.clock()
        facts = attested_facts(token, init_data)
        policy = self._policy()
        appraisal = self._policies.current(APPRAISAL, token.policy_id)
        decision = evaluate_identity(
            policy,
            token,
            lambda grant: fill_template(
                grant.template, facts, trust_domain=self._parts.trust_domain, tenant=self._parts.tenant
            ),
            wanted=wanted,
            audiences=audiences,
            appraisal_policy_digest=appraisal.digest if appraisal is not None else "",
            at=at,
        )
        if decision.failures or decision.name is None or policy is None:
            asked = str(wanted) if wanted is not None else PLUGIN
            raise PluginDenied(decision.failures[0], path=asked, findings=decision.findings)
        return _Granted(name=decision.name, statement=_statement(token, facts), policy_digest=policy.digest, at=at)

    def _policy(self) -> IdentityPolicy | None:
        stored = self._policies.current(IDENTITY, IDENTITY_POLICY)
        return parse_identity_policy(stored.text) if stored is not None else None

    def _record(self, granted: _Granted, token: AttestedGuest, details: Mapping[str, str]) -> None:
        """Make the record durable; a caller gives nothing out when this raises."""
        row = AuditRow(
            at=granted.at,
            decision=RELEASED,
            code=ISSUED,
            resource=str(granted.name),
            tee=token.tee,
            level=token.level.value,
            instance=token.instance,
            init_data=token.init_data,
            pcr00=token.pcr00,
            guest_key=token.guest_key_id,
            appraisal_policy=token.policy_id,
            appraisal_policy_digest=token.policy_digest,
            release_policy_digest=granted.policy_digest,
            attestation=token.attestation,
        )
        fields = {
            "resource": str(granted.name),
            "code": ISSUED,
            "level": token.level.value,
            "init_data": token.init_data,
            "guest_key": token.guest_key_id,
            "appraisal_policy_digest": token.policy_digest,
            "identity_policy_digest": granted.policy_digest,
            "attestation": token.attestation,
            **details,
        }
        event = LogEvent(kind="release", at=granted.at, tenant=self._parts.tenant, fields=fields)

        def work(connection: Connection) -> None:
            store_audit(connection, self._parts.tenant, row)
            self._parts.events.append(connection, event)

        self._parts.store.write(work)


def _statement(token: AttestedGuest, facts: AttestedFacts) -> AttestationStatement:
    return AttestationStatement(
        level=token.level.value,
        policy_digest=token.policy_digest,
        contract_id=facts.contract,
        init_data=token.init_data,
        attestation=token.attestation,
    )


def _until(at: datetime, token: AttestedGuest, longest: timedelta) -> datetime:
    return min(token.expires_at, at + longest)


def _text(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _parse_query(query: str) -> dict[str, list[str]]:
    """Return the parameters of a query by name.

    Raises:
        FormatRefused: too long, too many, not percent-encoded text (`trust.identity.request`).
    """
    if not query:
        return {}
    if len(query) > _QUERY_CHARS or not query.isascii():
        raise FormatRefused(_REQUEST, "query too long", expected=f"at most {_QUERY_CHARS} characters")
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_PARAMETERS
        )
    except ValueError as err:
        raise FormatRefused(_REQUEST, "not a query", expected=f"at most {_PARAMETERS} of name=value") from err
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _parse_body(body: bytes) -> SVIDRequest:
    if not body:
        return SVIDRequest()
    if len(body) > SVID_REQUEST_BYTES:
        raise FormatRefused(_REQUEST, "request too long", expected=f"at most {SVID_REQUEST_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=SVIDRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_REQUEST, f"not a request for an SVID: {err}") from err


def _only(parameters: Mapping[str, Sequence[str]], *known: str) -> None:
    unknown = [name for name in parameters if name not in known]
    twice = [name for name, values in parameters.items() if len(values) > 1 and name != "audience"]
    if unknown or twice:
        raise FormatRefused(
            _REQUEST,
            "a parameter that does not belong there" if unknown else "a parameter is given twice",
            path=(unknown or twice)[0][:40],
            expected=" ".join(known),
        )


def _csr(parameters: Mapping[str, Sequence[str]], request: SVIDRequest) -> bytes:
    given = parameters.get("csr", ())
    if bool(given) == bool(request.csr):
        raise FormatRefused(_REQUEST, "one certificate request is needed, in the query or in the body", path="csr")
    if given:
        return decode_b64url(given[0], path="csr", ceiling=CSR_BYTES)
    return decode_b64(request.csr, path="csr", ceiling=CSR_BYTES)


def _wanted(parameters: Mapping[str, Sequence[str]]) -> SPIFFEID | None:
    given = parameters.get("id", ())
    return parse_spiffe_id(given[0]) if given else None
