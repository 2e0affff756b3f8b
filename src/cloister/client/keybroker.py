"""Client of the key broker protocol 0.4.0: Request, Challenge, Attestation, Response.

CNCF Confidential Containers KBS protocol (`cloister.protocol.kbs`); works against any broker that speaks it. The
client trusts the broker it is pointed to, by CA, with the decision; it trusts nobody with its private key, which is
made here and never leaves. What a broker refuses comes out as a typed error with the broker's code and denial id.

Only connections are tried again, a bounded number of times. A refusal never is: the same evidence would be refused
again. A handshake whose connection broke begins anew with a fresh nonce, because the broker accepts a nonce once.

Loaded early inside the pod VM. `cryptography` is imported by `prepare`, which a caller may run in a background thread
while it does other things; `socket` and `ssl` with the first request.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from cloister.client.channel import PinnedChannel, Response
from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    FormatRefused,
    KeyReleaseDenied,
    Refused,
    RequestRefused,
    Unavailable,
)
from cloister.protocol.initdata import BrokerAddress, parse_initdata
from cloister.protocol.kbs import (
    PREFIX,
    SESSION_COOKIE,
    TPM_EXTRA,
    VERSION,
    AttestAnswer,
    Attestation,
    Challenge,
    ErrorBody,
    InitDataMember,
    Request,
    RuntimeData,
    SealedResource,
    TEEEvidence,
    decode_nonce,
    encode_message,
    parse_tpm_credential,
    report_data,
)
from cloister.protocol.resourceuri import ResourcePath
from cloister.wire.base64 import decode_b64url, encode_b64
from cloister.wire.canonicaljson import encode_canonical
from cloister.wire.limits import KBS_RESPONSE_BYTES

if TYPE_CHECKING:
    from cloister.crypto.jwe import EphemeralKey

ATTEMPTS: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.2  # doubled after each attempt
RENEW_BEFORE_SECONDS: Final = 30.0
_COOKIE: Final = re.compile(rf"{SESSION_COOKIE}=([0-9A-Za-z_-]{{1,128}})(?:;|$)")
_CODE: Final = r"[a-z0-9_]+(\.[a-z0-9_]+)+"
_DENIAL: Final = r"d-[a-z2-7]{10}"
_TEXT_CHARS: Final = 400
_MALFORMED: Final = "client.broker_malformed"
_RECEIPT_HEADER: Final = "cloister-receipt"
_LEASE_HEADER: Final = "cloister-lease"
_LEASE: Final = re.compile(r"[0-9]{1,8}")
_RELEASES: Final = ("release", "renewal")

_T = TypeVar("_T")


class Attester(Protocol):
    """What the client needs of a technology's attester."""

    def enrol(self) -> tuple[bytes, bytes] | None:
        """Return (EK certificate DER, AK TPM2B_PUBLIC), or None where there is no credential activation."""
        ...

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Return the activated credential."""
        ...

    def attest(self, report_data: bytes, secret: bytes) -> dict[str, Any]:  # Any: JSON of the technology's own shape
        """Return the evidence body that binds `report_data`."""
        ...


class Channel(Protocol):
    """What the client needs of a channel; `PinnedChannel` is the one over a network."""

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send one request and return its answer."""
        ...

    def close(self) -> None:
        """Release what the channel holds."""
        ...


class _Session(msgspec.Struct, frozen=True, kw_only=True):
    cookie: str
    nonce: str
    secret: bytes

    def __repr__(self) -> str:
        return "_Session()"


class _Times(msgspec.Struct, frozen=True, kw_only=True):
    iat: int
    exp: int


class ReleasedResource(msgspec.Struct, frozen=True, kw_only=True):
    """A resource as the broker released it. The repr holds no secret.

    Attributes:
        content: the secret.
        lease_seconds: for how long it may be used before fresh evidence is shown; 0 is as long as one likes.
    """

    content: bytes
    lease_seconds: int

    def __repr__(self) -> str:
        return f"ReleasedResource(content=<hidden>, lease_seconds={self.lease_seconds})"


class KeyBrokerClient:
    """One guest's dealings with its key broker. Not for several threads at once, except `prepare`.

    Args:
        broker: address and CA, from the measured init data.
        attester: makes evidence.
        init_data_text: the exact text that is measured.
        tee: wire name of the technology.
        timeout: seconds of silence after which the broker counts as unreachable.
        attempts: connections tried for one step before giving up.
        channel: how to reach the broker; one pinned to the broker's CA when absent.
        sleep: waits that many seconds.
        monotonic: a clock that only goes forward, seconds.
        key_kind: kind of the ephemeral key, a value of `cloister.crypto.jwe.KeyKind`: `P-256`, `P-521`, `RSA-OAEP-256`.

    Raises:
        FormatRefused: the address is not https.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        attester: Attester,
        init_data_text: str,
        tee: str,
        *,
        timeout: float = 30.0,
        attempts: int = ATTEMPTS,
        channel: Channel | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        key_kind: str = "P-256",
    ) -> None:
        self._broker = broker
        self._logged = 0  # entries of the log that were there when it was last looked at; a new one lies behind them
        self._channel: Channel = channel or PinnedChannel(broker.url, broker.ca_pem, timeout=timeout)
        self._attester = attester
        self._init_data = init_data_text
        self._tee = tee
        self._attempts = attempts
        self._sleep = sleep
        self._monotonic = monotonic
        self._key_kind = key_kind
        self._making_key = threading.Lock()
        self._key: EphemeralKey | None = None
        self._wiped = False
        self._token = ""
        self._renew_at = 0.0

    @property
    def token(self) -> str:
        """The Attestation Result of the last handshake, a JWT; empty before the first."""
        return self._token

    def prepare(self) -> None:
        """Import what is slow to import and make the ephemeral key. Harmless to call twice or beside `attest`."""
        with self._making_key:
            if self._wiped:
                raise RuntimeError("the client was wiped")
            if self._key is None:
                from cloister.crypto.jwe import EphemeralKey, KeyKind

                self._key = EphemeralKey.generate(KeyKind(self._key_kind))

    def attest(self) -> str:
        """Do the handshake; return the token.

        Raises:
            AppraisalRefused: the evidence is refused; `path` holds the denial id.
            Refused: anything else the broker or this client refuses.
            Unavailable: no connection after the last attempt, or the broker cannot tell now.
        """

        def handshake() -> str:
            session = self._challenge()
            return self._attestation(session)

        self._token = self._persist(handshake)
        self._renew_at = self._monotonic() + _life(self._token) - RENEW_BEFORE_SECONDS
        return self._token

    def get_resource(self, path: ResourcePath) -> bytes:
        """Return a resource, as `release` does, without what is said of a lease."""
        return self.release(path).content

    def release(self, path: ResourcePath) -> ReleasedResource:
        """Return a resource and its lease; attests first when there is no token or it is about to expire.

        Raises:
            KeyReleaseDenied: the key-release policy says no; `path` holds the denial id.
            Refused: the release is not in the log that init data pin (`client.receipt.*`, `tlog.*`); no such resource
                (`client.resource_not_found`), an answer that does not open with our key, or a lease that is none
                (`client.lease`).
            Unavailable: no connection after the last attempt, or the broker cannot tell now.
        """
        if not self._token or self._monotonic() >= self._renew_at:
            self.attest()
        headers = {"Authorization": f"Bearer {self._token}"}
        response = self._persist(lambda: self._channel.request("GET", f"{PREFIX}/resource/{path}", headers=headers))
        if response.status != 200:
            raise _broker_error(response, stage="resource", resource=str(path))
        if not self._broker.insecure_no_release_log:
            self._verify_receipt(response.headers.get(_RECEIPT_HEADER, ""), path)
        content = self._ephemeral().open(_decode(response.body, SealedResource))
        return ReleasedResource(content=content, lease_seconds=_lease(response.headers.get(_LEASE_HEADER, ""), path))

    def plugin(self, name: str, path: str, *, query: str = "", body: bytes = b"") -> bytes:
        """Return what a plugin of the broker answers; attests first when there is no token or it is about to expire.

        Args:
            name: of the plugin.
            path: what it takes, without a slash at either end.
            query: percent-encoded, without `?`.
            body: sent as JSON.

        Raises:
            KeyReleaseDenied: its policy says no; `path` holds the denial id.
            Refused: no such plugin or path (`client.resource_not_found`), or an answer that does not open with our key.
            Unavailable: no connection after the last attempt, or the broker cannot tell now.
        """
        if not self._token or self._monotonic() >= self._renew_at:
            self.attest()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        target = f"{PREFIX}/{name}/{path}" + (f"?{query}" if query else "")
        response = self._persist(lambda: self._channel.request("POST", target, body=body, headers=headers))
        if response.status != 200:
            raise _broker_error(response, stage="resource", resource=f"{name}/{path}")
        return self._ephemeral().open(_decode(response.body, SealedResource))

    def _verify_receipt(self, text: str, path: ResourcePath) -> None:
        """Return if the release of `path` to this guest is in the pinned log, behind all that was released before.

        Steps: 1 a receipt is there; 2 it holds, by the pinned keys (`cloister.tlog.receipt`); 3 the entry is of this
        resource, this key and this pod; 4 it is a new one, in a log that did not become smaller or another.
        """
        import hashlib

        from cloister.tlog.receipt import parse_pins, parse_receipt, verify_receipt

        pins = self._broker.release_log
        if pins is None:
            raise FormatRefused("client.receipt.no_log", "nothing says which release log to believe", path="init data")
        # 1
        if not text:
            raise Refused(
                "client.receipt.missing",
                "the key came without a receipt of the release log",
                path=str(path),
                hint="the trust service is of an older release, hides the release, or a proxy dropped the header",
            )
        # 2
        log = parse_pins(pins.key, pins.witnesses, pins.cosignatures)
        entry = verify_receipt(parse_receipt(text), log)
        # 3
        expected = {
            "resource": str(path),
            "guest_key": hashlib.sha256(encode_canonical(self._ephemeral().public_jwk())).hexdigest(),
            "init_data": parse_initdata(self._init_data.encode()).digest_text,
        }
        if entry.kind not in _RELEASES:
            raise _other_receipt("kind", " or ".join(_RELEASES), entry.kind)
        for name, value in expected.items():
            if entry.fields.get(name) != value:
                raise _other_receipt(name, value, entry.fields.get(name, ""))
        # 4
        if entry.index < self._logged:
            raise Refused(
                "client.receipt.replayed",
                "the receipt is of a release that was used before, or the log became smaller",
                path=str(path),
                expected=f"an entry from {self._logged} on",
                actual=str(entry.index),
            )
        self._logged = entry.checkpoint.size

    def wipe(self) -> None:
        """Forget key and token and close the connection; the client is of no use afterwards."""
        with self._making_key:
            if self._key is not None:
                self._key.wipe()
            self._key, self._wiped = None, True
        self._token = ""
        self._channel.close()

    def _challenge(self) -> _Session:
        enrolment = self._attester.enrol()
        extra: Any = ""  # Any: JSON for the broker
        if enrolment is not None:
            extra = {TPM_EXTRA: {"ek_certificate": encode_b64(enrolment[0]), "ak_public": encode_b64(enrolment[1])}}
        request = Request(version=VERSION, tee=self._tee, extra_params=extra)
        response = self._post("auth", encode_message(request), {})
        if response.status != 200:
            raise _broker_error(response, stage="auth")
        challenge = _decode(response.body, Challenge)
        decode_nonce(challenge.nonce)
        cookie = _COOKIE.match(response.headers.get("set-cookie", ""))
        if cookie is None:
            raise FormatRefused(_MALFORMED, "the broker opened no session", path="set-cookie")
        secret = b""
        if enrolment is not None:
            secret = self._attester.activate(*parse_tpm_credential(challenge.extra_params))
        return _Session(cookie=cookie.group(1), nonce=challenge.nonce, secret=secret)

    def _attestation(self, session: _Session) -> str:
        self.prepare()
        runtime = RuntimeData(nonce=session.nonce, tee_pubkey=self._ephemeral().public_jwk())
        evidence = self._attester.attest(report_data(runtime, ""), session.secret)
        message = Attestation(
            runtime_data=runtime,
            tee_evidence=TEEEvidence(primary_evidence=evidence, additional_evidence=""),
            init_data=InitDataMember(format="toml", body=self._init_data),
        )
        headers = {"Cookie": f"{SESSION_COOKIE}={session.cookie}"}
        response = self._post("attest", encode_message(message), headers)
        if response.status != 200:
            raise _broker_error(response, stage="attest")
        return _decode(response.body, AttestAnswer).token

    def _post(self, route: str, body: bytes, headers: dict[str, str]) -> Response:
        headers["Content-Type"] = "application/json"
        return self._channel.request("POST", f"{PREFIX}/{route}", body=body, headers=headers)

    def _persist(self, step: Callable[[], _T]) -> _T:
        """Run `step`, again while only the connection failed."""
        pause = FIRST_PAUSE_SECONDS
        for _ in range(self._attempts - 1):
            try:
                return step()
            except Unavailable as err:
                if err.code != "client.unreachable":
                    raise
            self._sleep(pause)
            pause *= 2
        return step()

    def _ephemeral(self) -> EphemeralKey:
        if self._key is None:
            raise RuntimeError("the client was wiped")
        return self._key


def _broker_error(response: Response, *, stage: str, resource: str = "") -> CloisterError:
    """Return the typed error for an answer that is not 200. The broker is pinned: its words may be shown, bounded."""
    try:
        body = msgspec.json.decode(response.body, type=ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        body = ErrorBody(type="", detail=f"HTTP status {response.status}")
    code = body.code if re.fullmatch(_CODE, body.code) else ""
    denial = body.denial_id if re.fullmatch(_DENIAL, body.denial_id) else ""
    kind, fallback = _classify(response.status, stage)
    if fallback == "client.resource_not_found":
        code = fallback
    return kind(
        code or fallback,
        body.detail[:_TEXT_CHARS],
        path=denial or resource,
        hint=body.hint[:_TEXT_CHARS],
    )


def _lease(text: str, path: ResourcePath) -> int:
    """Return the seconds of a lease, 0 where there is none; of one that is about to end, the last second."""
    if not text:
        return 0
    if not _LEASE.fullmatch(text):
        raise FormatRefused(
            "client.lease", "the lease of a key is no number of seconds", path=str(path), actual=text[:40]
        )
    return max(1, int(text))


def _other_receipt(name: str, expected: str, actual: str) -> Refused:
    return Refused(
        "client.receipt.other",
        "the receipt is of another release than this one",
        path=name,
        expected=expected[:80],
        actual=actual[:80],
        hint="the trust service logs something else than it does, or somebody exchanged the receipt",
    )


def _classify(status: int, stage: str) -> tuple[type[CloisterError], str]:
    if status == 503 or status >= 500 or status == 429:
        return Unavailable, "client.broker_unavailable"
    if stage == "resource" and status == 404:
        return Refused, "client.resource_not_found"
    if stage == "resource" and status == 403:
        return KeyReleaseDenied, "client.denied"
    if stage == "attest" and status in (401, 403):
        return AppraisalRefused, "client.evidence_refused"
    return RequestRefused, "client.broker_refused"


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise FormatRefused(_MALFORMED, "the broker's answer is not of this protocol") from err


def _life(token: str) -> float:
    """Return how long the token lives, by its own word and the broker's clock; the broker checks it anyway."""
    parts = token.split(".")
    if len(parts) != 3:
        raise FormatRefused(_MALFORMED, "the broker's token is not a JWT", path="token")
    times = _decode(decode_b64url(parts[1], path="token", ceiling=KBS_RESPONSE_BYTES), _Times)
    return float(times.exp - times.iat)
