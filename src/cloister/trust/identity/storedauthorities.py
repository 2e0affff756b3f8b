"""A trust domain's keys in the service's own store: made when needed, rotated by age, withdrawn by hand.

All replicas share one database and so one set of keys: whoever needs a key first makes it, in a transaction that looks
again. Nothing has to run at a certain time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from cloister.crypto.jwt import key_id
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import Unavailable
from cloister.trust.identity.authorities import KEY_LIFE, OVERLAP, ROTATED_AFTER, Authority, Use
from cloister.trust.identity.certificates import authority_certificate
from cloister.trust.rowseal import RowSealer
from cloister.trust.store.database import Store
from cloister.trust.store.identitykeys import IdentityKeyRow, IdentityKeyStore


class StoredAuthorities:
    """Implements `cloister.trust.identity.authorities.Authorities`. May be used by several threads.

    Args:
        store: the database.
        sealer: seals the private keys.
        trust_domain: checked name.
    """

    def __init__(self, store: Store, sealer: RowSealer, trust_domain: str) -> None:
        self._store = store
        self._keys = IdentityKeyStore(store, sealer, trust_domain)
        self._trust_domain = trust_domain
        self._lock = threading.Lock()
        self._kept: tuple[int, tuple[IdentityKeyRow, ...]] | None = None

    def signing(self, use: Use, *, at: datetime) -> Authority:
        """Return the key that signs now, making or rotating keys as their age asks for."""
        row = _signing(self._current(at), use, at)
        if row is None:
            raise Unavailable("trust.identity.key", "no key of the trust domain signs now", hint="compare the clocks")
        return _authority(row)

    def published(self, *, at: datetime) -> tuple[Authority, ...]:
        """Return the keys of the bundle, oldest first."""
        return tuple(_authority(row) for row in self._current(at) if _good(row, at))

    def sequence(self, *, at: datetime) -> int:
        """Return the number of additions to and departures from the bundle so far."""
        rows = self._current(at)
        return len(rows) + sum(1 for row in rows if not _good(row, at))

    def history(self) -> tuple[IdentityKeyRow, ...]:
        """Return all keys there ever were, oldest first."""
        return self._read()

    def rotate(self, *, at: datetime) -> None:
        """Make a new key for each use; it signs after it has been in the bundle for `OVERLAP`.

        Raises:
            Unavailable: the store failed.
        """
        self._keys.add(lambda _: [self._new(use, at, active_at=at + OVERLAP) for use in Use])

    def withdraw(self, identity: str, *, at: datetime) -> None:
        """Take a key out of the bundle at once: what it signed is worthless as soon as relying parties refresh.

        Raises:
            Refused: there is no such key (`trust.identity.key`).
            Unavailable: the store failed.
        """
        self._keys.withdraw(identity, at=at)

    def _current(self, at: datetime) -> tuple[IdentityKeyRow, ...]:
        rows = self._read()
        if self._wanted(rows, at):
            self._keys.add(lambda found: self._wanted(found, at))
            rows = self._read()
        return rows

    def _read(self) -> tuple[IdentityKeyRow, ...]:
        configuration = self._store.configuration()
        with self._lock:
            if self._kept is not None and self._kept[0] == configuration:
                return self._kept[1]
        rows = self._keys.list()
        with self._lock:
            # Read after the count: what is kept under it is at least as new.
            self._kept = (configuration, rows)
        return rows

    def _wanted(self, rows: Sequence[IdentityKeyRow], at: datetime) -> list[IdentityKeyRow]:
        """Return the keys that are lacking now.

        Without a key that signs, one that signs at once: nobody can have been told in advance. With one that grows
        old and no successor, one that signs when everybody knows it.
        """
        lacking = []
        for use in Use:
            signing = _signing(rows, use, at)
            if signing is None:
                lacking.append(self._new(use, at, active_at=at))
            elif signing.active_at + ROTATED_AFTER <= at and not any(
                row.use == use and _good(row, at) and row.active_at > at for row in rows
            ):
                lacking.append(self._new(use, at, active_at=at + OVERLAP))
        return lacking

    def _new(self, use: Use, at: datetime, *, active_at: datetime) -> IdentityKeyRow:
        signer = ECDSAP256Signer.generate()
        row = IdentityKeyRow(
            id=key_id(signer.public_key),
            trust_domain=self._trust_domain,
            use=use.value,
            private_pem=signer.private_pem(),
            certificate=b"",
            created_at=at,
            active_at=active_at,
            expires_at=at + KEY_LIFE,
        )
        if use is Use.X509:
            made = authority_certificate(signer, self._trust_domain, at=at, expires_at=row.expires_at)
            row = replace(row, certificate=made)
        return row


def _good(row: IdentityKeyRow, at: datetime) -> bool:
    return row.withdrawn_at is None and at < row.expires_at


def _signing(rows: Sequence[IdentityKeyRow], use: Use, at: datetime) -> IdentityKeyRow | None:
    active = [row for row in rows if row.use == use and _good(row, at) and row.active_at <= at]
    return max(active, key=lambda row: row.active_at, default=None)


def _authority(row: IdentityKeyRow) -> Authority:
    return Authority(
        use=Use(row.use),
        signer=ECDSAP256Signer.from_pem(row.private_pem),
        certificate=row.certificate,
        created_at=row.created_at,
        active_at=row.active_at,
        expires_at=row.expires_at,
    )
