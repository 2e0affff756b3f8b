"""Sessions and nonces of the RCAR handshake: a nonce is accepted once, ever, and a session is attested once.

A session that only has begun is nowhere but in its cookie. What belongs to it (nonce, secret of credential activation)
is derived from a key of the service and the session's random id, and the cookie's MAC says that it was issued: so any
replica goes on with it, before or after a restart, and a stranger who begins sessions writes nothing.

What is stored is that a nonce was spent, in the transaction of what it was spent for: an Attestation Result, or the
denial of one. All writers take turns, so of any number of concurrent uses, at any replica, exactly one succeeds.

Spent nonces are forgotten when their sessions are long over by the clock of whoever looks, or when there are very many.
The newest begin of a session whose nonce was forgotten is kept, and no session that began before it is accepted any
more: so a clock that was wrong, however far, cannot make a nonce good again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Text, bindparam, delete, exists, func, insert, select

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.protocol.kbs import VERSION, VERSIONS
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.rowseal import KEY_ID_BYTES, RowSealer
from cloister.trust.store.database import Store
from cloister.trust.store.deferred import defer
from cloister.trust.store.dialects import upsert
from cloister.trust.store.prepared import Prepared, PreparedRows
from cloister.trust.store.schema import INT64, nonce_marks, nonces, sessions
from cloister.trust.store.tenancy import sealed_name
from cloister.trust.store.times import to_micros
from cloister.wire.base64 import decode_b64url, encode_b64url
from cloister.wire.limits import NONCE_BYTES

COOKIE_CHARS: Final = 128  # what our clients keep; CoCo's keep any
SHORTEST_COOKIE: Final = 64
SESSION_KEPT: Final = timedelta(hours=1)  # so long after its end the result of a session can be read
NONCE_KEPT: Final = timedelta(days=30)  # a clock that is ahead for longer than this stops sessions once it is right
NONCES_KEPT: Final = 1_000_000  # of one tenant
_PRUNED_SECONDS: Final = 60.0
_SLACK_MICROS: Final = 30_000_000  # what clocks of replicas may differ by
_PURPOSE: Final = "session"
_ID_BYTES: Final = 16
# Form of the cookie, 1; data key; id; begin and end, microseconds; index of the version; flags. The technology follows.
_HEAD: Final = struct.Struct(f">B{KEY_ID_BYTES}s{_ID_BYTES}sQQBB")
_FORM: Final = 1
_ACTIVATED: Final = 1  # a credential was made, so a secret must come back
_TEE_CHARS: Final = 24
_MAC_BYTES: Final = 16
_COOKIE_BYTES: Final = _HEAD.size + _TEE_CHARS + _MAC_BYTES

_NAMED: Final = (nonces.c.tenant == bindparam("of_tenant", type_=Text()), nonces.c.hash == bindparam("wanted"))
_FORGOTTEN: Final = (nonce_marks.c.tenant == bindparam("of_tenant"), nonce_marks.c.forgotten >= bindparam("issued"))
_SPENT: Final = Prepared(
    select(exists(select(nonces.c.hash).where(*_NAMED)), exists(select(nonce_marks.c.forgotten).where(*_FORGOTTEN)))
)
_SPEND: Final = Prepared(
    insert(nonces)
    .from_select(
        ["tenant", "hash", "issued_at", "used_at"],
        select(
            bindparam("of_tenant", type_=Text()),
            bindparam("wanted", type_=Text()),
            bindparam("issued", type_=INT64),
            bindparam("now", type_=INT64),
        ).where(
            ~exists(select(nonces.c.hash).where(*_NAMED)), ~exists(select(nonce_marks.c.forgotten).where(*_FORGOTTEN))
        ),
    )
    .returning(nonces.c.hash)
)
_KEEP: Final = PreparedRows(sessions)
_TOKEN: Final = Prepared(
    select(sessions.c.token).where(sessions.c.tenant == bindparam("of_tenant"), sessions.c.key == bindparam("wanted"))
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Session:
    """A session that this service began.

    Attributes:
        key: its row, once it has attested.
        tee: technology announced at `/auth`.
        secret: what credential activation must recover.
        tenant: whose session it is.
        version: of the protocol, as announced at `/auth`.
        nonce: that the evidence must bind.
        issued: its begin, microseconds.
        expires: its end, microseconds.
        identity: random, in the cookie.
        data_key: identity of the key that it is derived from.
    """

    key: str
    tee: str
    secret: bytes
    tenant: str
    version: str
    nonce: bytes
    issued: int
    expires: int
    identity: bytes
    data_key: str


class SessionStore:
    """Sessions of one tenant.

    Args:
        store: the database.
        root_key: of which sessions have their key.
        random: returns that many unpredictable bytes.
        tenant: whose.
    """

    def __init__(
        self,
        store: Store,
        root_key: RowSealer,
        *,
        random: Callable[[int], bytes] = secrets.token_bytes,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        self._store = store
        self._random = random
        self._root_key = root_key
        self._tenant = tenant
        self._pruning = threading.Lock()
        self._pruned = float("-inf")

    def begin(self, *, tee: str, at: datetime, lifetime: timedelta, version: str = VERSION) -> Session:
        """Return a new session; nothing is written.

        Raises:
            FormatRefused: no name of a technology (`tee.unknown`).
            Unavailable: the keys are not had.
        """
        if not tee.isascii() or len(tee) > _TEE_CHARS:
            raise FormatRefused("tee.unknown", "no name of a technology", actual=tee[:_TEE_CHARS])
        named = self._root_key.derived(_PURPOSE)
        times = (to_micros(at), to_micros(at + lifetime))
        return self._session(named, self._random(_ID_BYTES), times, version, tee, activated=True)

    def cookie(self, session: Session, *, activated: bool) -> str:
        """Return what names a session to whoever began it.

        Args:
            session: as `begin` returned it.
            activated: whether its secret was put into a credential, so that the guest must recover it.
        """
        named, key = self._root_key.derived(_PURPOSE, session.data_key)
        version, flags = VERSIONS.index(session.version), _ACTIVATED if activated else 0
        times = (session.issued, session.expires)
        head = _HEAD.pack(_FORM, bytes.fromhex(named), session.identity, *times, version, flags)
        signed = head + session.tee.encode("ascii")
        return encode_b64url(signed + self._mac(key, signed))

    def resume(self, cookie: str, nonce: bytes | None, *, at: datetime) -> Session:
        """Return the session that is about to attest. Its nonce is spent with what becomes of that.

        Steps: 1 the service issued the cookie; 2 the session has not expired; 3 the message is of the version the
        session began with, and the nonce is its own; 4 the nonce was not used so far.

        Args:
            cookie: names the session.
            nonce: as sent; None for a message of a version before 0.4.0, which sends none.
            at: aware UTC.

        Raises:
            Refused: `trust.session.unknown`, `trust.session.expired`, `trust.session.version`,
                `trust.session.nonce_mismatch`, `trust.session.nonce_used`.
            Unavailable: the store failed, or the keys are not had.
        """
        # 1, 2
        session = self._live(cookie, at)
        # 3
        if (nonce is None) is (session.version == VERSION):
            raise Refused(
                "trust.session.version",
                "the message is of another protocol version than the session",
                expected=session.version,
                hint="go on in the version that was announced at /auth",
            )
        if nonce is not None and not hmac.compare_digest(nonce, session.nonce):
            raise Refused(
                "trust.session.nonce_mismatch",
                "the nonce is not the one issued for this session",
                path="runtime-data.nonce",
                hint="attest with the nonce of the last challenge",
            )
        # 4
        named = self._named(session)
        [(used, forgotten)] = self._store.read(lambda connection: _SPENT.rows(connection, named))
        if used:
            raise _used()
        if forgotten:
            raise _expired()
        return session

    def spend(self, connection: Connection, session: Session, *, at: datetime) -> bool:
        """Spend a session's nonce in the caller's transaction; return False when it was spent before, or forgotten."""
        parameters = {**self._named(session), "now": to_micros(at)}
        spent = _SPEND.row(connection, parameters) is not None
        self._prune_sometimes(connection, at)
        return spent

    def keep(self, connection: Connection, session: Session, token: str, *, at: datetime) -> None:
        """Spend a session's nonce for an Attestation Result, which the session then has, in the caller's transaction.

        Nothing has to be undone when it refuses: the nonce is spent by one statement, the result deferred.

        Raises:
            Refused: it was spent before (`trust.session.nonce_used`).
        """
        if not self.spend(connection, session, at=at):
            raise _used()
        row = {"tenant": self._tenant, "key": session.key, "tee": session.tee, "nonce": _hash(session.nonce)}
        times = {"issued_at": session.issued, "expires_at": session.expires}
        defer(connection, _KEEP.run, {**row, **times, "token": token, "version": session.version})

    def token(self, cookie: str, *, at: datetime) -> str:
        """Return the token of an attested session.

        Raises:
            Refused: `trust.session.unknown`, `trust.session.expired`, `trust.session.not_attested`.
            Unavailable: the store failed, or the keys are not had.
        """
        named = {"of_tenant": self._tenant, "wanted": self._live(cookie, at).key}
        row = self._store.read(lambda connection: _TOKEN.row(connection, named))
        if row is None:
            raise Refused(
                "trust.session.not_attested", "the session has not attested", hint="send /attest before /resource"
            )
        return str(row[0])

    def _live(self, cookie: str, at: datetime) -> Session:
        try:
            data = decode_b64url(cookie, path="cookie", ceiling=_COOKIE_BYTES)
            form, named, identity, issued, expires, version, flags = _HEAD.unpack_from(data)
        except (FormatRefused, struct.error):
            raise _unknown() from None
        signed, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if form != _FORM or len(signed) <= _HEAD.size:
            raise _unknown()
        try:
            derived = self._root_key.derived(_PURPOSE, named.hex())
        except Unavailable as err:
            if err.code != "trust.keys.unknown_data_key":
                raise
            raise _unknown() from None
        if not hmac.compare_digest(mac, self._mac(derived[1], signed)):
            raise _unknown()
        # A clock that was set back must not lengthen a session.
        if not issued - _SLACK_MICROS <= to_micros(at) < expires:
            raise _expired()
        tee, activated = signed[_HEAD.size :].decode("ascii"), bool(flags & _ACTIVATED)
        return self._session(derived, identity, (issued, expires), VERSIONS[version], tee, activated=activated)

    def _session(
        self,
        derived: tuple[str, bytes],
        identity: bytes,
        times: tuple[int, int],
        version: str,
        tee: str,
        *,
        activated: bool,
    ) -> Session:
        data_key, key = derived
        return Session(
            key=hashlib.sha256(b"cookie:" + identity).hexdigest(),
            tee=tee,
            secret=self._derived(key, b"secret", identity) if activated else b"",
            tenant=self._tenant,
            version=version,
            nonce=self._derived(key, b"nonce", identity)[:NONCE_BYTES],
            issued=times[0],
            expires=times[1],
            identity=identity,
            data_key=data_key,
        )

    def _mac(self, key: bytes, signed: bytes) -> bytes:
        return self._derived(key, b"cookie", signed)[:_MAC_BYTES]

    def _derived(self, key: bytes, label: bytes, data: bytes) -> bytes:
        """Return 32 bytes; tenant and label come first and end unmistakably, so that no two uses share an input."""
        named = sealed_name(self._tenant, label.decode()).encode() + b"\0" + data
        return hmac.new(key, named, "sha256").digest()  # unlike hmac.digest() it gives no other thread a turn

    def _named(self, session: Session) -> dict[str, str | int]:
        return {"of_tenant": self._tenant, "wanted": _hash(session.nonce), "issued": session.issued}

    def _prune_sometimes(self, connection: Connection, at: datetime) -> None:
        with self._pruning:
            now = time.monotonic()
            if now - self._pruned < _PRUNED_SECONDS:
                return
            self._pruned = now
        _prune(connection, self._tenant, at)


def _prune(connection: Connection, tenant: str, at: datetime) -> None:
    """Forget what is long past, and of very many the oldest."""
    ended = (sessions.c.tenant == tenant, sessions.c.expires_at < to_micros(at - SESSION_KEPT))
    connection.execute(delete(sessions).where(*ended))
    own, newest = nonces.c.tenant == tenant, nonces.c.issued_at.desc()
    surplus = select(nonces.c.issued_at).where(own).order_by(newest).offset(NONCES_KEPT).limit(1)
    latest = max(to_micros(at - NONCE_KEPT), connection.execute(surplus).scalar_one_or_none() or 0)
    in_use = select(sessions.c.nonce).where(sessions.c.tenant == tenant)
    old = (own, nonces.c.issued_at <= latest, nonces.c.hash.not_in(in_use))
    forgotten = connection.execute(select(func.max(nonces.c.issued_at)).where(*old)).scalar_one_or_none()
    if forgotten is None:
        return
    before = connection.execute(
        select(nonce_marks.c.forgotten).where(nonce_marks.c.tenant == tenant)
    ).scalar_one_or_none()
    upsert(connection, nonce_marks, {"tenant": tenant}, {"forgotten": max(forgotten, before or 0)})
    connection.execute(delete(nonces).where(*old))


def _used() -> Refused:
    return Refused(
        "trust.session.nonce_used",
        "the nonce was used before",
        path="runtime-data.nonce",
        hint="a nonce is accepted once: begin again with /auth",
    )


def _expired() -> Refused:
    return Refused("trust.session.expired", "the session has expired", hint="begin again with /auth")


def _unknown() -> Refused:
    return Refused("trust.session.unknown", "no such session", hint="begin with /auth and send its cookie")


def _hash(nonce: bytes) -> str:
    return hashlib.sha256(b"nonce:" + nonce).hexdigest()
