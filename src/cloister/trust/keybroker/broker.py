"""The key broker: sessions, attestation, release. A Relying Party in the words of RFC 9334.

Key broker protocol 0.4.0, 0.2.0 and 0.1.1 (`cloister.protocol.kbs`), without HTTP: each method takes what a request
carries and returns an `Answer`. A refusal is recorded before it is answered; a release is recorded, durably, before the
sealed resource leaves this module. When the store cannot record, nothing is released and `Unavailable` comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec
from cryptography.x509 import Certificate
from sqlalchemy import Connection

from cloister.crypto.jwe import parse_recipient, seal_for
from cloister.crypto.jwt import HeldTokens
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import AppraisalRefused, FormatRefused, KeyReleaseDenied, Refused, RequestRefused, Unavailable
from cloister.protocol.initdata import InitData, parse_initdata
from cloister.protocol.initdataclaims import init_data_claims
from cloister.protocol.kbs import (
    VERSION,
    VERSIONS,
    AttestAnswer,
    Attestation,
    Challenge,
    InitDataMember,
    Request,
    RuntimeData,
    TEEEvidence,
    decode_message,
    decode_nonce,
    encode_message,
    is_legacy_attestation,
    parse_legacy_attestation,
)
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.result import Tier
from cloister.trust.events import Receipts
from cloister.trust.keybroker.answers import VERSION_CODE, Answer
from cloister.trust.keybroker.decision import (
    NOT_ASKED,
    RegoAnswer,
    ReleaseDecision,
    ReleaseFacts,
    evaluate_floor,
    evaluate_release,
)
from cloister.trust.keybroker.denials import DenialBook, RequestContext, event_fields
from cloister.trust.keybroker.foreign import is_foreign, verify_foreign_token
from cloister.trust.keybroker.inputs import ReleaseInputs
from cloister.trust.keybroker.leasing import grant_lease
from cloister.trust.keybroker.policy import ReleaseRule
from cloister.trust.keybroker.regoinput import rego_input
from cloister.trust.keybroker.token import VerifiedToken, verify_token
from cloister.trust.rego.engine import RegoEngine, RegoQuery
from cloister.trust.roles import (
    NO_EVENTS,
    AppraisalRequest,
    Appraised,
    AttestationService,
    Events,
    LogEvent,
    Plugin,
    Undecided,
)
from cloister.trust.rowseal import RowSealer
from cloister.trust.store.database import Store
from cloister.trust.store.evidence import seal_binding
from cloister.trust.store.leases import Lease
from cloister.trust.store.records import RELEASED, RENEWED, RecordStore, appraisal_row, store_appraisal, store_audit
from cloister.trust.store.resources import Resource, ResourceStore
from cloister.trust.store.sessions import Session, SessionStore
from cloister.trust.tracing import mark, span
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import KIB

RELEASED_CODE: Final = "trust.released"
RENEWED_CODE: Final = "trust.renewed"
Headers = tuple[tuple[bytes, bytes], ...]
_OLD_NAMES: Final = {"azsnpvtpm": "az-snp-vtpm", "aztdxvtpm": "az-tdx-vtpm"}  # as guests wrote them before 0.4.0
_INIT_DATA_FORMAT: Final = "toml"
_INITDATA_REMEMBERED: Final = 16 * KIB


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    """What of a Request is read before its version is known to be ours."""

    version: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Credentials:
    """What a request presents: a session cookie, a bearer token, or neither."""

    cookie: str = ""
    bearer: str = ""


def nobody_approved(resource: str, init_data: str) -> frozenset[str]:
    """Return who approved the release of a resource to guests with this init data: nobody."""
    return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerParts:
    """What a key broker is made of.

    Attributes:
        store: the database.
        root_key: opens resources and session secrets.
        verifier: the attestation service it relies on.
        token_keys: keys whose tokens it accepts, by key id.
        session_lifetime: from `/auth` on.
        clock: aware UTC now.
        random: returns that many unpredictable bytes.
        tenant: whose key broker it is.
        events: told of every release and denial, in its transaction.
        receipts: hands out what proves a release to the guest; None where there is no release log.
        witnesses: how many witnesses cosign the release log.
        cosignatures: how many of them must have cosigned any release; a rule may ask for more.
        approved_by: names of those who approved the release of a resource (first) to guests with init data (second).
        rego: evaluates rules in Rego; None where there are none.
        plugins: what answers `/kbs/v0/{name}/..`, by name.
        minimum_protocol: oldest version of the protocol that is spoken.
        insecure_rsa1_5: whether guests may have keys for RSA1_5; those of protocol 0.1.1 have no others.
        foreign_roots: CAs that name other verifiers whose tokens are accepted; none when empty.
    """

    store: Store
    root_key: RowSealer
    verifier: AttestationService
    token_keys: Mapping[str, ECDSAP256PublicKey]
    session_lifetime: timedelta
    clock: Callable[[], datetime]
    random: Callable[[int], bytes]
    tenant: str = DEFAULT_TENANT
    events: Events = NO_EVENTS
    receipts: Receipts | None = None
    witnesses: int = 0
    cosignatures: int = 0
    approved_by: Callable[[str, str], frozenset[str]] = nobody_approved
    rego: RegoEngine | None = None
    plugins: Mapping[str, Plugin] = field(default_factory=dict)
    minimum_protocol: str = VERSIONS[0]
    insecure_rsa1_5: bool = False
    foreign_roots: Sequence[Certificate] = ()


class KeyBroker:
    """Answers the requests of guests."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        tenant = parts.tenant
        self._sessions = SessionStore(parts.store, parts.root_key, random=parts.random, tenant=tenant)
        self._resources = ResourceStore(parts.store, parts.root_key, tenant=tenant)
        self._records = RecordStore(parts.store, tenant=tenant)
        self._inputs = ReleaseInputs(parts.store, tenant=tenant)
        self._denials = DenialBook(self._records, tenant=tenant, events=parts.events)
        self._held = HeldTokens()
        self._spoken = VERSIONS[VERSIONS.index(parts.minimum_protocol) :]

    def auth(self, body: bytes) -> Answer:
        """Answer `POST /auth`.

        Raises:
            Unavailable: the store failed, or the service is sealed.
        """
        self._parts.root_key.require_open()
        context = RequestContext(stage="auth", at=self._parts.clock())
        try:
            return self._auth(body, context)
        except Refused as err:
            return self._denials.deny(err, context)

    def attest(self, body: bytes, credentials: Credentials) -> Answer:
        """Answer `POST /attest`.

        Raises:
            Unavailable: the store failed.
        """
        self._parts.root_key.require_open()
        context = RequestContext(stage="attest", at=self._parts.clock())
        try:
            return self._attest(body, credentials, context)
        except (Refused, Undecided) as err:
            return self._denials.deny(err, context)

    def resource(self, path: str, credentials: Credentials, *, deadline: float) -> Answer:
        """Answer `GET /resource/{path}`.

        Args:
            path: `repository/type/tag` as in the address.
            credentials: cookie first, then bearer token.
            deadline: on the monotonic clock; past it nothing is released any more.

        Raises:
            Unavailable: the store failed, or the deadline passed.
        """
        self._parts.root_key.require_open()
        context = RequestContext(stage="resource", at=self._parts.clock(), resource=path[:400])
        try:
            return self._release(path, credentials, deadline, context)
        except Refused as err:
            return self._denials.deny(err, context)

    def plugin(
        self, name: str, path: str, query: str, body: bytes, credentials: Credentials, *, deadline: float
    ) -> Answer:
        """Answer a request to a plugin, `/{name}/{path}?{query}`.

        Raises:
            Unavailable: the store failed, or the deadline passed.
        """
        self._parts.root_key.require_open()
        context = RequestContext(stage="resource", at=self._parts.clock(), resource=f"{name}/{path}"[:400])
        try:
            return self._ask_plugin(name, path, query, body, credentials, deadline, context)
        except Refused as err:
            return self._denials.deny(err, context)

    def _auth(self, body: bytes, context: RequestContext) -> Answer:
        version = decode_message(body, _Version).version
        self._require_spoken(version)
        request = decode_message(body, Request)
        tee = _OLD_NAMES.get(request.tee, request.tee)
        context.tee = tee[:40]
        lifetime = self._parts.session_lifetime
        session = self._sessions.begin(version=version, tee=tee, at=context.at, lifetime=lifetime)
        issued = self._parts.verifier.challenge(tee, request.extra_params, session.secret)
        cookie = self._sessions.cookie(session, activated=issued.activated)
        challenge = Challenge(nonce=encode_b64(session.nonce), extra_params=issued.extra_params)
        return Answer(status=200, body=encode_message(challenge), cookie=cookie)

    def _require_spoken(self, version: str) -> None:
        if version in self._spoken:
            return
        raise Refused(
            VERSION_CODE,
            # CoCo's clients look for this phrase.
            f"KBS Client Protocol Version Mismatch: expect ={VERSION} while the request is {version[:20]}",
            hint=f"use a guest whose key broker client speaks one of {', '.join(self._spoken)}",
        )

    def _attest(self, body: bytes, credentials: Credentials, context: RequestContext) -> Answer:
        """Steps: 1 a session is named; 2 the message is well formed; 3 the session, and its nonce, which is not used;
        4 init data; 5 a guest key that can be sealed to; 6 the verifier; 7 the nonce spent, result and session, in one
        transaction. A refusal after 3 spends the nonce as well, in the transaction of its denial.
        """
        # 1
        if not credentials.cookie:
            raise Refused("trust.session.none", "no session", hint="begin with /auth and send its cookie")
        # 2
        message = None if is_legacy_attestation(body) else decode_message(body, Attestation)
        nonce = decode_nonce(message.runtime_data.nonce) if message is not None else None
        # 3
        session = self._sessions.resume(credentials.cookie, nonce, at=context.at)
        context.spend = lambda connection: self._sessions.spend(connection, session, at=context.at)
        context.tee = session.tee
        self._require_spoken(session.version)
        if message is None:
            message = _modern(body, session)
        # 4
        init_data = _init_data(message.init_data)
        context.init_data = init_data.digest_text if init_data is not None else ""
        # 5
        parse_recipient(message.runtime_data.tee_pubkey, insecure_rsa1_5=self._parts.insecure_rsa1_5)
        # 6
        appraised = self._parts.verifier.appraise(
            AppraisalRequest(
                tee=session.tee,
                evidence=message.tee_evidence.primary_evidence,
                additional_evidence=message.tee_evidence.additional_evidence,
                runtime_data=message.runtime_data,
                init_data=init_data,
                session_secret=session.secret,
                at=context.at,
                version=session.version,
                init_data_claims=init_data_claims(init_data) if init_data is not None else {},
            )
        )
        # 7
        self._keep(session, appraised, context)
        self._held.add(appraised.token, appraised.claims)  # from the verifier itself, whose keys are the pinned ones
        mark(tee=session.tee, tier=appraised.record.tier)
        return Answer(status=200, body=encode_message(AttestAnswer(token=appraised.token)), cookie=credentials.cookie)

    def _release(self, path: str, credentials: Credentials, deadline: float, context: RequestContext) -> Answer:
        """Steps: 1 the path; 2 a token; 3 verified; 4 the release rule; 5 the resource, sealed to the guest's key; 6
        the audit row, the lease and the log entry, durable before the deadline; 7 the release, with what proves it.
        """
        # 1
        wanted = parse_resource_path(path)
        context.resource = str(wanted)
        # 2, 3
        token = self._verified(credentials, context)
        # 4
        with span("policy"):
            decision = self._decide(wanted, token, context, deadline)
        # 5
        resource = self._resources.get(wanted)
        with span("seal"):
            sealed = encode_message(seal_for(token.guest_key, resource.content, version=token.protocol))
        # 6
        with span("audit"):
            headers = self._record(resource, decision, token, context, deadline)
        # 7
        return Answer(status=200, body=sealed, headers=headers)

    def _ask_plugin(
        self,
        name: str,
        path: str,
        query: str,
        body: bytes,
        credentials: Credentials,
        deadline: float,
        context: RequestContext,
    ) -> Answer:
        """Steps: 1 there is such a plugin; 2 a token, 3 verified; 4 the guest is not revoked, and was judged by the
        policy in force; 5 the plugin, which decides and records; 6 its answer, sealed to the guest's key.
        """
        # 1
        plugin = self._parts.plugins.get(name)
        if plugin is None:
            raise RequestRefused("trust.request.path", "no such address", hint="this key broker has no such plugin")
        # 2, 3
        token = self._verified(credentials, context)
        # 4
        rules, appraisal_digest = self._inputs.current(token.policy_id)
        facts = ReleaseFacts(appraisal_policy_digest=appraisal_digest)
        decision = evaluate_floor(rules, token, facts, at=context.at)
        context.findings = decision.findings
        if not decision.allowed:
            raise _denied(decision, token, context.resource)
        if time.monotonic() >= deadline:
            raise _too_late()
        # 5
        plaintext = plugin.handle(path, query, body, token)
        # 6
        return Answer(status=200, body=encode_message(seal_for(token.guest_key, plaintext, version=token.protocol)))

    def _verified(self, credentials: Credentials, context: RequestContext) -> VerifiedToken:
        """Return the token of a request, verified."""
        parts = self._parts
        text = self._token(credentials, context.at)
        if parts.foreign_roots and is_foreign(text, parts.token_keys):
            token = verify_foreign_token(text, parts.foreign_roots, at=context.at)
        else:
            token = verify_token(
                text,
                parts.token_keys,
                at=context.at,
                tenant=parts.tenant,
                insecure_rsa1_5=parts.insecure_rsa1_5,
                held=self._held,
            )
        context.token = token
        mark(tee=token.tee, tier=token.tier.value)
        return token

    def _token(self, credentials: Credentials, at: datetime) -> str:
        if credentials.cookie:
            return self._sessions.token(credentials.cookie, at=at)
        if credentials.bearer:
            return credentials.bearer
        raise Refused(
            "trust.token.missing", "neither session nor token", hint="attest first; send the cookie or the token"
        )

    def _decide(
        self, wanted: ResourcePath, token: VerifiedToken, context: RequestContext, deadline: float
    ) -> ReleaseDecision:
        rules, appraisal_digest = self._inputs.current(token.policy_id)
        rule = rules.rule_for(wanted)
        facts = ReleaseFacts(
            appraisal_policy_digest=appraisal_digest,
            rego=self._ask_rego(rule, wanted, token, deadline) if rule is not None and rule.rego else NOT_ASKED,
            approved_by=self._approved(rule, wanted, token),
            witnesses=self._parts.witnesses if self._parts.receipts is not None else 0,
        )
        decision = evaluate_release(rules, wanted, token, facts, at=context.at)
        context.findings = decision.findings
        context.release_policy_digest = decision.rule.digest if decision.rule is not None else ""
        if decision.allowed:
            return decision
        # An affirmed guest learns that a name is wrong; anybody else learns nothing about which names exist.
        if token.tier is Tier.AFFIRMING:
            self._resources.require(wanted)
        raise _denied(decision, token, str(wanted))

    def _approved(self, rule: ReleaseRule | None, wanted: ResourcePath, token: VerifiedToken) -> frozenset[str]:
        if rule is None or rule.approvals is None:
            return frozenset()
        return self._parts.approved_by(str(wanted), token.init_data)

    def _ask_rego(self, rule: ReleaseRule, wanted: ResourcePath, token: VerifiedToken, deadline: float) -> RegoAnswer:
        if self._parts.rego is None:
            return RegoAnswer(allowed=False, said="this service evaluates no Rego")
        query = RegoQuery(plugin="resource", path=(wanted.repository, wanted.type, wanted.tag), query={})
        said = self._parts.rego.decide(rule.rego, query, rego_input(token), deadline=deadline)
        return RegoAnswer(allowed=said.allowed, said=said.words)

    def _record(
        self,
        resource: Resource,
        decision: ReleaseDecision,
        token: VerifiedToken,
        context: RequestContext,
        deadline: float,
    ) -> Headers:
        """Make a release durable, with its lease and its entry in the release log; return what goes with it."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise _too_late()
        parts, rule = self._parts, decision.rule

        def work(connection: Connection) -> tuple[Lease | None, object]:
            grant = grant_lease(connection, parts.tenant, rule, token, str(resource.path), at=context.at)
            renewal = grant is not None and grant.renewal
            row = context.audit_row(
                decision=RENEWED if renewal else RELEASED,
                code=RENEWED_CODE if renewal else RELEASED_CODE,
                resource_version=resource.version,
            )
            store_audit(connection, parts.tenant, row)
            kind = "renewal" if renewal else "release"
            event = LogEvent(kind=kind, at=context.at, tenant=parts.tenant, fields=event_fields(row))
            return grant.lease if grant is not None else None, parts.events.append(connection, event)

        leases = rule is not None and bool(rule.lease_seconds)
        lease, appended = parts.store.write(work, seconds=left, single=not leases)
        headers: Headers = ()
        if lease is not None:
            # Rounded down: a guest must not believe in a second that it does not have.
            headers = ((b"cloister-lease", str(int((lease.expires_at - context.at).total_seconds())).encode()),)
        if parts.receipts is not None:
            wanted = max(parts.cosignatures, rule.witnesses if rule is not None else 0)
            receipt = parts.receipts.receipt(appended, cosignatures=wanted, deadline=deadline)
            headers = (*headers, (b"cloister-receipt", receipt.encode()))
        return headers

    def _keep(self, session: Session, appraised: Appraised, context: RequestContext) -> None:
        tenant = self._parts.tenant
        binding = seal_binding(self._parts.root_key, appraised.record.id, appraised.binding, tenant=tenant)

        kept = appraisal_row(appraised.record, appraised.body, binding=binding, tenant=tenant)

        def work(connection: Connection) -> None:
            self._sessions.keep(connection, session, appraised.token, at=context.at)
            store_appraisal(connection, kept)

        self._parts.store.write(work, single=True)


def _init_data(member: InitDataMember | None) -> InitData | None:
    """Return the init data of a guest that sent some; the token of one that did not names none, and rules see that."""
    if member is None:
        return None
    if member.format != _INIT_DATA_FORMAT:
        raise FormatRefused(
            "trust.attest.init_data_format",
            "unknown init data format",
            path="init-data.format",
            expected=_INIT_DATA_FORMAT,
            actual=member.format[:20],
        )
    try:
        text = member.body.encode("utf-8")
    except UnicodeEncodeError as err:
        raise FormatRefused("trust.attest.init_data_format", "init data is not text", path="init-data.body") from err
    return _known_initdata(text) if len(text) <= _INITDATA_REMEMBERED else parse_initdata(text)


@lru_cache(maxsize=64)
def _known_initdata(text: bytes) -> InitData:
    """Return parsed init data; many guests send the same text, and what it says depends on nothing else."""
    return parse_initdata(text)


def _modern(body: bytes, session: Session) -> Attestation:
    """Return a message of an older version as one of the newest; the nonce is the session's."""
    key, evidence = parse_legacy_attestation(body, session.version)
    return Attestation(
        runtime_data=RuntimeData(nonce=encode_b64(session.nonce), tee_pubkey=key),
        tee_evidence=TEEEvidence(primary_evidence=evidence),
    )


def _too_late() -> Unavailable:
    return Unavailable("trust.request.timeout", "the request took too long", hint="try again later")


def _denied(decision: ReleaseDecision, token: VerifiedToken, wanted: str) -> Refused:
    """Return the primary cause: what is wrong with the guest comes before what is wrong with the rule."""
    if token.tier is not Tier.AFFIRMING and token.failures:
        cause = token.failures[0]
        return AppraisalRefused(cause.code, cause.message, path=wanted, hint=cause.hint)
    failure = decision.failures[0]
    return KeyReleaseDenied(
        failure.code,
        failure.message,
        path=wanted,
        expected=failure.expected,
        actual=failure.actual,
        hint=failure.hint,
    )
