"""The key broker: sessions, attestation, release. A Relying Party in the words of RFC 9334.

Key broker protocol 0.4.0 (`cloister.protocol.kbs`), without HTTP: each method takes what a request carries and
returns an `Answer`. A refusal is recorded before it is answered; a release is recorded, durably, before the sealed
resource leaves this module. When the store cannot record, nothing is released and `Unavailable` comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy import Connection

from cloister.crypto.jwe import parse_recipient, seal_for
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import AppraisalRefused, FormatRefused, KeyReleaseDenied, Refused, Unavailable
from cloister.protocol.initdata import InitData, parse_initdata
from cloister.protocol.kbs import (
    VERSION,
    AttestAnswer,
    Attestation,
    Challenge,
    InitDataMember,
    Request,
    decode_message,
    decode_nonce,
    encode_message,
)
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.result import Tier
from cloister.tlog.receipt import HEADER as RECEIPT_HEADER
from cloister.trust.events import NO_EVENTS, Receipts
from cloister.trust.keybroker.answers import VERSION_CODE, Answer
from cloister.trust.keybroker.denials import DenialBook, RequestContext
from cloister.trust.keybroker.inputs import ReleaseInputs
from cloister.trust.keybroker.policy import ReleaseDecision, ReleaseFacts, ReleaseRules, evaluate_release, prefixes_of
from cloister.trust.keybroker.token import VerifiedToken, verify_token
from cloister.trust.roles import AppraisalRequest, Appraised, AttestationService, Undecided
from cloister.trust.rowseal import RowSealer
from cloister.trust.store.database import Store
from cloister.trust.store.proposals import ProposalStore
from cloister.trust.store.records import RELEASED, RecordStore, store_appraisal
from cloister.trust.store.resources import Resource, ResourceStore
from cloister.trust.store.sessions import AcceptedSession, SessionStore, attach_token
from cloister.trust.tracing import mark, span
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import NONCE_BYTES

RELEASED_CODE: Final = "trust.released"
_INIT_DATA_FORMAT: Final = "toml"


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    """What of a Request is read before its version is known to be ours."""

    version: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Credentials:
    """What a request presents: a session cookie, a bearer token, or neither."""

    cookie: str = ""
    bearer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerParts:
    """What a key broker is made of.

    Attributes:
        store: the database.
        root_key: opens resources and session secrets.
        verifier: the attestation service it relies on.
        token_keys: keys whose tokens it accepts, by key id.
        session_lifetime: from `/auth` on.
        session_limit: most live sessions.
        clock: aware UTC now.
        random: returns that many unpredictable bytes.
        tenant: whose key broker it is.
        log: the release log.
        cosignatures: how many witnesses must have cosigned a release before the resource goes out.
    """

    store: Store
    root_key: RowSealer
    verifier: AttestationService
    token_keys: Mapping[str, ECDSAP256PublicKey]
    session_lifetime: timedelta
    session_limit: int
    clock: Callable[[], datetime]
    random: Callable[[int], bytes]
    tenant: str = DEFAULT_TENANT
    log: Receipts = NO_EVENTS
    cosignatures: int = 0


class KeyBroker:
    """Answers the requests of guests."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        tenant = parts.tenant
        self._sessions = SessionStore(parts.store, parts.root_key, limit=parts.session_limit, tenant=tenant)
        self._resources = ResourceStore(parts.store, parts.root_key, tenant=tenant)
        self._records = RecordStore(parts.store, tenant=tenant, events=parts.log)
        self._inputs = ReleaseInputs(parts.store, tenant=tenant)
        self._proposals = ProposalStore(parts.store, tenant=tenant)
        self._denials = DenialBook(self._records)

    def auth(self, body: bytes) -> Answer:
        """Answer `POST /auth`.

        Raises:
            Unavailable: the store failed, the service is sealed, or too many sessions are open.
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

    def _auth(self, body: bytes, context: RequestContext) -> Answer:
        version = decode_message(body, _Version).version
        if version != VERSION:
            raise Refused(
                VERSION_CODE,
                # CoCo's clients look for this phrase.
                f"KBS Client Protocol Version Mismatch: expect ={VERSION} while the request is {version[:20]}",
                hint="use a guest whose key broker client speaks this version",
            )
        request = decode_message(body, Request)
        context.tee = request.tee[:40]
        issued = self._parts.verifier.challenge(request.tee, request.extra_params)
        nonce = self._parts.random(NONCE_BYTES)
        cookie = self._sessions.open(
            tee=request.tee,
            nonce=nonce,
            secret=issued.secret,
            at=context.at,
            lifetime=self._parts.session_lifetime,
        )
        challenge = Challenge(nonce=encode_b64(nonce), extra_params=issued.extra_params)
        return Answer(status=200, body=encode_message(challenge), cookie=cookie)

    def _attest(self, body: bytes, credentials: Credentials, context: RequestContext) -> Answer:
        """Steps: 1 a session is named; 2 the message is well formed; 3 session and nonce, spent in one transaction;
        4 init data; 5 a guest key that can be sealed to; 6 the verifier; 7 result and session, in one transaction.
        """
        # 1
        if not credentials.cookie:
            raise Refused("trust.session.none", "no session", hint="begin with /auth and send its cookie")
        # 2
        message = decode_message(body, Attestation)
        nonce = decode_nonce(message.runtime_data.nonce)
        # 3
        session = self._sessions.accept_nonce(credentials.cookie, nonce, at=context.at)
        context.tee = session.tee
        # 4
        init_data = _init_data(message.init_data)
        context.init_data = init_data.digest_text if init_data is not None else ""
        # 5
        parse_recipient(message.runtime_data.tee_pubkey)
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
            )
        )
        # 7
        self._keep(session, appraised)
        mark(tee=session.tee, tier=appraised.record.tier)
        return Answer(status=200, body=encode_message(AttestAnswer(token=appraised.token)), cookie=credentials.cookie)

    def _release(self, path: str, credentials: Credentials, deadline: float, context: RequestContext) -> Answer:
        """Steps: 1 the path; 2 a token; 3 verified; 4 the key-release policy; 5 the resource, sealed to the guest's
        key; 6 the audit row and the log's entry, durable and cosigned before the deadline; 7 the release.
        """
        # 1
        wanted = parse_resource_path(path)
        context.resource = str(wanted)
        # 2
        text = self._token(credentials, context.at)
        # 3
        token = verify_token(text, self._parts.token_keys, at=context.at, tenant=self._parts.tenant)
        context.token = token
        mark(tee=token.tee, tier=token.tier.value)
        # 4
        with span("policy"):
            self._decide(wanted, token, context)
        # 5
        resource = self._resources.get(wanted)
        with span("seal"):
            sealed = encode_message(seal_for(token.guest_key, resource.content))
        # 6
        with span("audit"):
            receipt = self._record(resource, context, deadline)
        # 7
        headers = ((RECEIPT_HEADER.lower().encode(), receipt.encode()),) if receipt else ()
        return Answer(status=200, body=sealed, headers=headers)

    def _token(self, credentials: Credentials, at: datetime) -> str:
        if credentials.cookie:
            return self._sessions.token(credentials.cookie, at=at)
        if credentials.bearer:
            return credentials.bearer
        raise Refused(
            "trust.token.missing", "neither session nor token", hint="attest first; send the cookie or the token"
        )

    def _decide(self, wanted: ResourcePath, token: VerifiedToken, context: RequestContext) -> None:
        rules, appraisal_digest = self._inputs.current(token.policy_id)
        facts = ReleaseFacts(
            appraisal_policy_digest=appraisal_digest, approved_by=self._approved_by(rules, wanted, token, context.at)
        )
        decision = evaluate_release(rules, wanted, token, facts, at=context.at)
        context.findings = decision.findings
        context.release_policy_digest = decision.rule.digest if decision.rule is not None else ""
        if decision.allowed:
            return
        # An affirmed guest learns that a name is wrong; anybody else learns nothing about which names exist.
        if token.tier is Tier.AFFIRMING:
            self._resources.require(wanted)
        raise _denied(decision, token, wanted)

    def _approved_by(
        self, rules: ReleaseRules, wanted: ResourcePath, token: VerifiedToken, at: datetime
    ) -> frozenset[str]:
        """Return who approved this release, asked for only where the rule wants to know."""
        rule = rules.rule_for(wanted)
        if rule is None or rule.approvals is None:
            return frozenset()
        return self._proposals.approved_by(prefixes_of(wanted), token.init_data, at=at)

    def _record(self, resource: Resource, context: RequestContext, deadline: float) -> str:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable("trust.request.timeout", "the request took too long", hint="try again later")
        row = context.audit_row(decision=RELEASED, code=RELEASED_CODE, resource_version=resource.version)
        appended = self._records.record_release(row, seconds=left)
        return self._parts.log.receipt(appended, cosignatures=self._parts.cosignatures, deadline=deadline)

    def _keep(self, session: AcceptedSession, appraised: Appraised) -> None:
        def work(connection: Connection) -> None:
            store_appraisal(connection, appraised.record, appraised.body)
            attach_token(connection, session, appraised.token)

        self._parts.store.write(work)


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
    return parse_initdata(text)


def _denied(decision: ReleaseDecision, token: VerifiedToken, wanted: ResourcePath) -> Refused:
    """Return the primary cause: what is wrong with the guest comes before what is wrong with the rule."""
    if token.tier is not Tier.AFFIRMING and token.failures:
        cause = token.failures[0]
        return AppraisalRefused(cause.code, cause.message, path=str(wanted), hint=cause.hint)
    failure = decision.failures[0]
    return KeyReleaseDenied(
        failure.code,
        failure.message,
        path=str(wanted),
        expected=failure.expected,
        actual=failure.actual,
        hint=failure.hint,
    )
