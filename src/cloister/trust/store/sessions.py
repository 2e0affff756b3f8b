"""Sessions and nonces of the RCAR handshake: a nonce is accepted once, ever, and a session is attested once.

The state lives in the database only, so that a handshake survives a restart. Accepting a nonce is one transaction on
the one writing connection: of any number of concurrent uses, before or after a restart, exactly one succeeds. Whether
the evidence then verifies makes no difference: the nonce is spent.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from cloister.errors import Refused, Unavailable
from cloister.protocol.kbs import VERSION
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.rowseal import RowSealer, SealedColumn
from cloister.trust.store.database import Store
from cloister.trust.store.dialects import upsert
from cloister.trust.store.schema import nonces, session_gauges, sessions
from cloister.trust.store.tenancy import sealed_name
from cloister.trust.store.times import from_micros, to_micros
from cloister.wire.limits import NONCE_BYTES

COOKIE_CHARS: Final = 32
SESSION_KEPT: Final = timedelta(hours=1)  # so long an expired session is told apart from one never issued
NONCE_KEPT: Final = timedelta(days=1)
_PRUNED_EVERY: Final = timedelta(seconds=5)
_FULL_SECONDS: Final = 1.0  # so long a refusal for the number of sessions is repeated without asking the store
_CLOCK_SLACK: Final = timedelta(seconds=30)
_PURPOSE: Final = "session secret"

# Made once: building a statement costs more than running it.
_ISSUE_NONCE: Final = insert(nonces)
_OPEN_SESSION: Final = insert(sessions)
_SESSION: Final = select(sessions).where(
    sessions.c.tenant == bindparam("of_tenant"), sessions.c.key == bindparam("wanted")
)
_SPEND_NONCE: Final = (
    update(nonces)
    .where(nonces.c.tenant == bindparam("of_tenant"), nonces.c.hash == bindparam("wanted"), nonces.c.used_at.is_(None))
    .values(used_at=bindparam("now"))
)
_ATTACH_TOKEN: Final = (
    update(sessions)
    .where(sessions.c.tenant == bindparam("of_tenant"), sessions.c.key == bindparam("wanted"))
    .values(token=bindparam("text"))
)
_TAKE_PLACE: Final = (
    update(session_gauges)
    .where(
        session_gauges.c.tenant == bindparam("of_tenant"),
        session_gauges.c.live < bindparam("limit"),
        session_gauges.c.pruned_at.between(bindparam("due"), bindparam("latest")),
    )
    .values(live=session_gauges.c.live + 1)
)
_PRUNED_AT: Final = select(session_gauges.c.pruned_at).where(session_gauges.c.tenant == bindparam("of_tenant"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedSession:
    """A session whose nonce was just accepted; nobody else gets it a second time.

    Attributes:
        key: its row.
        tee: technology announced at `/auth`.
        secret: what credential activation must have recovered; empty without activation.
        tenant: whose session it is.
        version: of the protocol, as announced at `/auth`.
        nonce: that was accepted.
    """

    key: str
    tee: str
    secret: bytes
    tenant: str = DEFAULT_TENANT
    version: str = VERSION
    nonce: bytes = b""


class SessionStore:
    """Sessions of one tenant.

    Args:
        store: the database.
        root_key: seals session secrets.
        limit: most live sessions of the tenant over all replicas; an unauthenticated peer must not fill the disk.
        tenant: whose.
    """

    def __init__(self, store: Store, root_key: RowSealer, *, limit: int, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._root_key = root_key
        self._limit = limit
        self._tenant = tenant
        self._full_until = 0.0

    def open(
        self, *, tee: str, nonce: bytes, secret: bytes, at: datetime, lifetime: timedelta, version: str = VERSION
    ) -> str:
        """Record a new session; return its cookie value.

        Guests of versions before 0.4.0 do not send the nonce again, so it is kept with the secret, sealed.

        Raises:
            Unavailable: too many live sessions (`trust.session.overload`), or the store failed.
        """
        if time.monotonic() < self._full_until:
            raise _overload()
        cookie = secrets.token_hex(COOKIE_CHARS // 2)
        key = _key(cookie)
        kept = secret if version == VERSION else nonce + secret
        sealed = self._root_key.seal(_PURPOSE, sealed_name(self._tenant, key), kept) if kept else None
        now = to_micros(at)

        def work(connection: Connection) -> bool:
            if not _take_place(connection, self._tenant, self._limit, at):
                return False
            issued = {"tenant": self._tenant, "issued_at": now}
            connection.execute(_ISSUE_NONCE, {**issued, "hash": _nonce(nonce)})
            row = {"key": key, "tee": tee, "nonce": _nonce(nonce), "secret": sealed, "version": version}
            connection.execute(_OPEN_SESSION, {**issued, **row, "expires_at": to_micros(at + lifetime)})
            return True

        # What was pruned is kept also when there is no place, so the answer is not an error within the transaction.
        if not self._store.write(work):
            self._full_until = time.monotonic() + _FULL_SECONDS
            raise _overload()
        return cookie

    def accept_nonce(self, cookie: str, nonce: bytes | None, *, at: datetime) -> AcceptedSession:
        """Spend the session's nonce.

        Steps, all in one transaction: 1 the session exists; 2 it has not expired; 3 the message is of the version the
        session began with, and the nonce is the one issued for it; 4 the nonce was never used.

        Args:
            cookie: names the session.
            nonce: as sent; None for a message of a version before 0.4.0, which sends none.
            at: aware UTC.

        Raises:
            Refused: `trust.session.unknown`, `trust.session.expired`, `trust.session.version`,
                `trust.session.nonce_mismatch`, `trust.session.nonce_used`.
            Unavailable: the store failed.
        """
        key = _key(cookie)

        def work(connection: Connection) -> Row[tuple[str, bytes | None]]:
            # 1, 2
            row = _live_session(connection, self._tenant, key, at)
            # 3
            if (nonce is None) is (row.version == VERSION):
                raise Refused(
                    "trust.session.version",
                    "the message is of another protocol version than the session",
                    expected=row.version,
                    hint="go on in the version that was announced at /auth",
                )
            if nonce is not None and row.nonce != _nonce(nonce):
                raise Refused(
                    "trust.session.nonce_mismatch",
                    "the nonce is not the one issued for this session",
                    path="runtime-data.nonce",
                    hint="attest with the nonce of the last challenge",
                )
            # 4
            wanted = {"of_tenant": self._tenant, "wanted": row.nonce}
            spent = connection.execute(_SPEND_NONCE, {**wanted, "now": to_micros(at)})
            if spent.rowcount != 1:
                raise Refused(
                    "trust.session.nonce_used",
                    "the nonce was used before",
                    path="runtime-data.nonce",
                    hint="a nonce is accepted once: begin again with /auth",
                )
            return row

        row = self._store.write(work)
        name = sealed_name(self._tenant, key)
        kept = self._root_key.open(_PURPOSE, name, row.secret) if row.secret is not None else b""
        if nonce is None:
            nonce, kept = kept[:NONCE_BYTES], kept[NONCE_BYTES:]
        return AcceptedSession(key=key, tee=row.tee, secret=kept, tenant=self._tenant, version=row.version, nonce=nonce)

    def token(self, cookie: str, *, at: datetime) -> str:
        """Return the token of an attested session.

        Raises:
            Refused: `trust.session.unknown`, `trust.session.expired`, `trust.session.not_attested`.
            Unavailable: the store failed.
        """
        row = self._store.read(lambda connection: _live_session(connection, self._tenant, _key(cookie), at))
        if row.token is None:
            raise Refused(
                "trust.session.not_attested", "the session has not attested", hint="send /attest before /resource"
            )
        token: str = row.token
        return token


def attach_token(connection: Connection, session: AcceptedSession, token: str) -> None:
    """Record the Attestation Result of a session, within the caller's transaction."""
    connection.execute(_ATTACH_TOKEN, {"of_tenant": session.tenant, "wanted": session.key, "text": token})


def _live_session(connection: Connection, tenant: str, key: str, at: datetime) -> Row[tuple[str, bytes | None]]:
    row = connection.execute(_SESSION, {"of_tenant": tenant, "wanted": key}).one_or_none()
    if row is None:
        raise Refused("trust.session.unknown", "no such session", hint="begin with /auth and send its cookie")
    # A clock that was set back must not lengthen a session.
    if not from_micros(row.issued_at) - _CLOCK_SLACK <= at < from_micros(row.expires_at):
        raise Refused("trust.session.expired", "the session has expired", hint="begin again with /auth")
    return row


def _take_place(connection: Connection, tenant: str, limit: int, at: datetime) -> bool:
    """Count one more session; return False when there are `limit`.

    One statement in the common case. Now and then, by whichever replica comes first, what is past is pruned and what
    lives is counted anew. A time in the future is one of a clock that was wrong, and no reason not to.
    """
    theirs = {"of_tenant": tenant}
    due, latest = to_micros(at - _PRUNED_EVERY), to_micros(at + _CLOCK_SLACK)
    if connection.execute(_TAKE_PLACE, {**theirs, "limit": limit, "due": due, "latest": latest}).rowcount == 1:
        return True
    pruned_at = connection.execute(_PRUNED_AT, theirs).scalar_one_or_none()
    if pruned_at is not None and due <= pruned_at <= latest:
        return False
    live = _prune(connection, tenant, at)
    place = live < limit
    changes = {"live": live + 1 if place else live, "pruned_at": to_micros(at)}
    upsert(connection, session_gauges, {"tenant": tenant}, changes)
    return place


def _prune(connection: Connection, tenant: str, at: datetime) -> int:
    """Forget what is long past; return the number of live sessions."""
    ended = (sessions.c.tenant == tenant, sessions.c.expires_at < to_micros(at - SESSION_KEPT))
    connection.execute(delete(sessions).where(*ended))
    in_use = select(sessions.c.nonce).where(sessions.c.tenant == tenant)
    old = (nonces.c.tenant == tenant, nonces.c.issued_at < to_micros(at - NONCE_KEPT), nonces.c.hash.not_in(in_use))
    connection.execute(delete(nonces).where(*old))
    live = select(func.count()).select_from(sessions)
    alive = live.where(sessions.c.tenant == tenant, sessions.c.expires_at >= to_micros(at))
    return int(connection.execute(alive).scalar_one())


def _overload() -> Unavailable:
    return Unavailable("trust.session.overload", "too many sessions are open", hint="try again later")


def _key(cookie: str) -> str:
    return hashlib.sha256(b"cookie:" + cookie.encode()).hexdigest()


def _nonce(nonce: bytes) -> str:
    return hashlib.sha256(b"nonce:" + nonce).hexdigest()


SESSION_ROWS: Final = SealedColumn(
    purpose=_PURPOSE, table=sessions, column="secret", row_of=lambda row: sealed_name(row.tenant, row.key)
)
