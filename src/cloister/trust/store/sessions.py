"""Sessions and nonces of the RCAR handshake: a nonce is accepted once, ever, and a session is attested once.

The state lives in the database only, so that a handshake survives a restart. Accepting a nonce is one transaction on
the one writing connection: of any number of concurrent uses, before or after a restart, exactly one succeeds. Whether
the evidence then verifies makes no difference: the nonce is spent.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from cloister.errors import Refused, Unavailable
from cloister.trust.rowseal import RowSealer, SealedColumn
from cloister.trust.store.database import Store
from cloister.trust.store.schema import nonces, sessions
from cloister.trust.store.times import from_micros, to_micros

COOKIE_CHARS: Final = 32
SESSION_KEPT: Final = timedelta(hours=1)  # so long an expired session is told apart from one never issued
NONCE_KEPT: Final = timedelta(days=1)
_PRUNE_SECONDS: Final = 5.0
_CLOCK_SLACK: Final = timedelta(seconds=30)
_PURPOSE: Final = "session secret"

# Made once: building a statement costs more than running it.
_ISSUE_NONCE: Final = insert(nonces)
_OPEN_SESSION: Final = insert(sessions)
_SESSION: Final = select(sessions).where(sessions.c.key == bindparam("wanted"))
_SPEND_NONCE: Final = (
    update(nonces)
    .where(nonces.c.hash == bindparam("wanted"), nonces.c.used_at.is_(None))
    .values(used_at=bindparam("now"))
)
_ATTACH_TOKEN: Final = update(sessions).where(sessions.c.key == bindparam("wanted")).values(token=bindparam("text"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedSession:
    """A session whose nonce was just accepted; nobody else gets it a second time.

    Attributes:
        key: its row.
        tee: technology announced at `/auth`.
        secret: what credential activation must have recovered; empty without activation.
    """

    key: str
    tee: str
    secret: bytes


class SessionStore:
    """Sessions of one database.

    Args:
        store: the database.
        root_key: seals session secrets.
        limit: most live sessions; an unauthenticated peer must not fill the disk.
    """

    def __init__(self, store: Store, root_key: RowSealer, *, limit: int) -> None:
        self._store = store
        self._root_key = root_key
        self._limit = limit
        self._gauge = threading.Lock()
        self._live = 0
        self._next_prune = 0.0

    def open(self, *, tee: str, nonce: bytes, secret: bytes, at: datetime, lifetime: timedelta) -> str:
        """Record a new session; return its cookie value.

        Raises:
            Unavailable: too many live sessions (`trust.session.overload`), or the store failed.
        """
        cookie = secrets.token_hex(COOKIE_CHARS // 2)
        key = _key(cookie)
        sealed = self._root_key.seal(_PURPOSE, key, secret) if secret else None
        with self._gauge:
            prune = time.monotonic() >= self._next_prune
            if prune:
                self._next_prune = time.monotonic() + _PRUNE_SECONDS
            elif self._live >= self._limit:
                raise Unavailable("trust.session.overload", "too many sessions are open", hint="try again later")
        now = to_micros(at)

        def work(connection: Connection) -> int:
            live = _prune(connection, at) if prune else -1
            connection.execute(_ISSUE_NONCE, {"hash": _nonce(nonce), "issued_at": now})
            row = {"key": key, "tee": tee, "nonce": _nonce(nonce), "secret": sealed}
            connection.execute(_OPEN_SESSION, {**row, "issued_at": now, "expires_at": to_micros(at + lifetime)})
            return live

        live = self._store.write(work)
        with self._gauge:
            self._live = live + 1 if live >= 0 else self._live + 1
        return cookie

    def accept_nonce(self, cookie: str, nonce: bytes, *, at: datetime) -> AcceptedSession:
        """Spend the session's nonce.

        Steps, all in one transaction: 1 the session exists; 2 it has not expired; 3 the nonce is the one issued for
        it; 4 the nonce was never used.

        Raises:
            Refused: `trust.session.unknown`, `trust.session.expired`, `trust.session.nonce_mismatch`,
                `trust.session.nonce_used`.
            Unavailable: the store failed.
        """
        key = _key(cookie)

        def work(connection: Connection) -> Row[tuple[str, bytes | None]]:
            # 1, 2
            row = _live_session(connection, key, at)
            # 3
            if row.nonce != _nonce(nonce):
                raise Refused(
                    "trust.session.nonce_mismatch",
                    "the nonce is not the one issued for this session",
                    path="runtime-data.nonce",
                    hint="attest with the nonce of the last challenge",
                )
            # 4
            spent = connection.execute(_SPEND_NONCE, {"wanted": row.nonce, "now": to_micros(at)})
            if spent.rowcount != 1:
                raise Refused(
                    "trust.session.nonce_used",
                    "the nonce was used before",
                    path="runtime-data.nonce",
                    hint="a nonce is accepted once: begin again with /auth",
                )
            return row

        row = self._store.write(work)
        secret = self._root_key.open(_PURPOSE, key, row.secret) if row.secret is not None else b""
        return AcceptedSession(key=key, tee=row.tee, secret=secret)

    def token(self, cookie: str, *, at: datetime) -> str:
        """Return the token of an attested session.

        Raises:
            Refused: `trust.session.unknown`, `trust.session.expired`, `trust.session.not_attested`.
            Unavailable: the store failed.
        """
        row = self._store.read(lambda connection: _live_session(connection, _key(cookie), at))
        if row.token is None:
            raise Refused(
                "trust.session.not_attested", "the session has not attested", hint="send /attest before /resource"
            )
        token: str = row.token
        return token


def attach_token(connection: Connection, session: AcceptedSession, token: str) -> None:
    """Record the Attestation Result of a session, within the caller's transaction."""
    connection.execute(_ATTACH_TOKEN, {"wanted": session.key, "text": token})


def _live_session(connection: Connection, key: str, at: datetime) -> Row[tuple[str, bytes | None]]:
    row = connection.execute(_SESSION, {"wanted": key}).one_or_none()
    if row is None:
        raise Refused("trust.session.unknown", "no such session", hint="begin with /auth and send its cookie")
    # A clock that was set back must not lengthen a session.
    if not from_micros(row.issued_at) - _CLOCK_SLACK <= at < from_micros(row.expires_at):
        raise Refused("trust.session.expired", "the session has expired", hint="begin again with /auth")
    return row


def _prune(connection: Connection, at: datetime) -> int:
    """Forget what is long past; return the number of live sessions."""
    connection.execute(delete(sessions).where(sessions.c.expires_at < to_micros(at - SESSION_KEPT)))
    in_use = select(sessions.c.nonce)
    connection.execute(
        delete(nonces).where(nonces.c.issued_at < to_micros(at - NONCE_KEPT), nonces.c.hash.not_in(in_use))
    )
    live = select(func.count()).select_from(sessions).where(sessions.c.expires_at >= to_micros(at))
    return int(connection.execute(live).scalar_one())


def _key(cookie: str) -> str:
    return hashlib.sha256(b"cookie:" + cookie.encode()).hexdigest()


def _nonce(nonce: bytes) -> str:
    return hashlib.sha256(b"nonce:" + nonce).hexdigest()


SESSION_ROWS: Final = SealedColumn(purpose=_PURPOSE, table=sessions, column="secret", row_of=lambda row: str(row.key))
