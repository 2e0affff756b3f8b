"""Signing keys: tokens (ES256), the service's own CA (P-256), and on demand others. Sealed in the database, so that
replicas share them.

RFC 7517 (JWK set), RFC 7518 (ES256), RFC 8032 (Ed25519). A key's record, private key and times together, is sealed
under the key ring; the columns beside it say the same for listings and are believed only as far as they agree. Nobody
who can merely write the database can make a key that is published or accepted.

What a key is used for follows from the time alone, so that replicas agree without talking: of the keys of a purpose
whose `not_before` has come, the newest signs; all that are not past their `not_after` are published and accepted. A
rotation makes a key whose `not_before` is a few minutes ahead: it is in every JWK set before it signs. Its predecessor
stays accepted until the last token it can have signed is dead.

The rows are read anew when the configuration counter grew, looked at every second.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from sqlalchemy import Connection, Row, delete, insert, select

from cloister.crypto.jwt import CLOCK_SKEW, key_id, public_jwk
from cloister.crypto.signer import ECDSAP256PublicKey, ECDSAP256Signer, Signer
from cloister.crypto.tlsca import CertificateAuthority
from cloister.errors import Refused, Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.events import NO_EVENTS, Events, LogEvent
from cloister.trust.keys.ring import KeyRing
from cloister.trust.rowseal import SealedColumn
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.schema import signing_keys
from cloister.trust.store.times import from_micros, to_micros

TOKEN: Final = "token"  # noqa: S105  a purpose, not a token
CA: Final = "ca"
LOG: Final = "log"
ADMIN: Final = "admin"
TOKEN_LEAD: Final = timedelta(minutes=5)  # so long a key is published before it signs
TOKEN_KEPT: Final = timedelta(minutes=15) + 2 * CLOCK_SKEW  # longest life of a token
DEAD_KEPT: Final = timedelta(days=1)
CA_NAME: Final = "cloister trust service CA"
_ED25519: Final = frozenset({LOG})
_SEAL_PURPOSE: Final = "signing key"
_LOOK_SECONDS: Final = 1.0
_LEAF_SECONDS: Final = 24 * 3600.0  # certificates of token keys live for a year
_ROWS: Final = select(signing_keys).order_by(signing_keys.c.not_before, signing_keys.c.kid)

State = Literal["next", "active", "retired"]
PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is sealed. Times in microseconds since 1970."""

    purpose: str
    kid: str
    created_at: int
    not_before: int
    not_after: int | None
    private: str
    certificate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A signing key in memory.

    Attributes:
        purpose: `token`, `ca`, `log` or `admin`.
        kid: RFC 7638 thumbprint for P-256, SHA-256 of the SubjectPublicKeyInfo in hexadecimal for Ed25519.
        created_at: aware UTC.
        not_before: signs from then on.
        not_after: accepted until then; None while it has no successor.
        private: the key itself.
        certificate: of a CA, PEM; otherwise empty.
    """

    purpose: str
    kid: str
    created_at: datetime
    not_before: datetime
    not_after: datetime | None
    private: Any  # Any: EllipticCurvePrivateKey or Ed25519PrivateKey, by purpose; not printed
    certificate: str = ""

    def __repr__(self) -> str:
        return f"SigningKey({self.purpose}, {self.kid})"

    def accepted(self, at: datetime) -> bool:
        """Whether signatures of this key still count."""
        return self.not_after is None or at < self.not_after

    def signer(self) -> Signer:
        """Return the key as an ES256 signer."""
        return ECDSAP256Signer(self.private)

    def authority(self) -> CertificateAuthority:
        """Return the key as a certificate authority."""
        pem = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return CertificateAuthority.from_pem(self.certificate.encode(), pem)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """What signs a token now: key and certificates, which belong together."""

    signer: Signer
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKeyEntry:
    """One line of a listing."""

    purpose: str
    kid: str
    state: State
    created_at: datetime
    not_before: datetime
    not_after: datetime | None


class SigningKeys:
    """Signing keys of one database. Safe to use from several threads.

    Every method raises `Unavailable` when store or key ring cannot be used.

    Args:
        store: the database.
        ring: seals the rows.
        clock: aware UTC now.
        events: told of every change, in its transaction.
    """

    def __init__(
        self,
        store: Store,
        ring: KeyRing,
        *,
        clock: Callable[[], datetime],
        events: Events = NO_EVENTS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._events = events
        self._monotonic = monotonic
        self._reading = threading.RLock()
        self._keys: tuple[SigningKey, ...] = ()
        self._parsed: dict[bytes, SigningKey] = {}
        self._publics: dict[str, ECDSAP256PublicKey] = {}
        self._configuration = -1
        self._looked = -1e9
        self._issuer: tuple[tuple[str, str], float, TokenIssuer] | None = None

    def begin(self, adopted: Sequence[SigningKey] = ()) -> None:
        """Make the keys every service needs, those of `adopted` first, unless they are there."""
        present = {key.purpose for key in self._read(older_than=0)}
        given = {key.purpose: key for key in adopted}
        missing = [given.get(purpose) or self._fresh(purpose) for purpose in (TOKEN, CA) if purpose not in present]
        if missing:
            self._add_first(missing)

    def signing_key(self, purpose: str) -> SigningKey:
        """Return the key that signs for `purpose` now, making the first one when there is none."""
        key = self._active(purpose)
        if key is None:
            self._add_first([self._fresh(purpose)])
            key = self._active(purpose)
        if key is None:
            raise Unavailable("trust.keys.missing", f"there is no signing key for {purpose}", hint="try again")
        return key

    def authority(self) -> CertificateAuthority:
        """Return the service's own CA."""
        return self.signing_key(CA).authority()

    def token_issuer(self) -> TokenIssuer:
        """Return what signs tokens now."""
        token, authority_key = self.signing_key(TOKEN), self.signing_key(CA)
        names, now = (token.kid, authority_key.kid), self._monotonic()
        held = self._issuer
        if held is not None and held[0] == names and now - held[1] < _LEAF_SECONDS:
            return held[2]
        signer, authority = token.signer(), authority_key.authority()
        leaf = authority.certify_signer("cloister verifier", signer.public_key.spki, at=self._clock())
        issuer = TokenIssuer(signer=signer, chain=(leaf, authority.certificate_der))
        self._issuer = (names, now, issuer)
        return issuer

    def token_keys(self) -> Mapping[str, ECDSAP256PublicKey]:
        """Return the keys whose tokens count, by key id: a view that follows rotations."""
        return _TokenKeys(self)

    def public_token_key(self, kid: str) -> ECDSAP256PublicKey | None:
        """Return an accepted key by its id."""
        for older_than in (_LOOK_SECONDS, 0.0):
            for key in self._accepted(TOKEN, older_than=older_than):
                if key.kid == kid:
                    return self._public(key)
        return None

    def token_key_ids(self) -> tuple[str, ...]:
        """Return the ids of all accepted keys."""
        return tuple(key.kid for key in self._accepted(TOKEN))

    def jwks(self) -> dict[str, Any]:  # Any: JSON
        """Return the JWK set (RFC 7517) of accepted and of coming token-signing keys."""
        keys = [(key.kid, self._public(key)) for key in self._accepted(TOKEN)]
        return {"keys": [{**public_jwk(key), "use": "sig", "kid": kid} for kid, key in keys]}

    def entries(self) -> tuple[SigningKeyEntry, ...]:
        """Return all keys, oldest first."""
        keys = self._read(older_than=0)
        signing = {key.kid for key in map(self._active, {key.purpose for key in keys}) if key is not None}
        return tuple(
            SigningKeyEntry(
                purpose=key.purpose,
                kid=key.kid,
                state=self._state(key, signing),
                created_at=key.created_at,
                not_before=key.not_before,
                not_after=key.not_after,
            )
            for key in keys
        )

    def rotate_token_key(self, *, lead: timedelta = TOKEN_LEAD, revoke: bool = False) -> SigningKey:
        """Make the next token-signing key; return it.

        Args:
            lead: how long it is published before it signs; longer than any relying party keeps a JWK set.
            revoke: for a key that leaked: the new key signs at once, and no token of an older one counts any more.
                Guests that hold one attest again.

        Raises:
            Refused: the last rotation has not finished (`trust.keys.pending`).
        """
        now = self._clock()
        starts = now if revoke else now + lead
        fresh = self._fresh(TOKEN, not_before=starts)
        ring = self._ring.current()

        def work(connection: Connection) -> None:
            keys = [self._opened(row, ring.open) for row in connection.execute(_ROWS) if row.purpose == TOKEN]
            if not revoke and any(key.not_before > now for key in keys):
                raise Refused(
                    "trust.keys.pending",
                    "the next key is published and does not sign yet",
                    hint="wait a few minutes; for a key that leaked, revoke",
                )
            ends = now if revoke else starts + TOKEN_KEPT
            for key in keys:
                if key.not_after is None or key.not_after > ends:
                    _store(connection, replace(key, not_after=ends), ring.seal)
                elif key.not_after < now - DEAD_KEPT:
                    _remove(connection, key)
            _store(connection, fresh, ring.seal)
            self._tell(connection, fresh, "revoke" if revoke else "rotate")
            bump_configuration(connection)

        self._store.write(work)
        self._read(older_than=0)
        return fresh

    def _tell(self, connection: Connection, key: SigningKey, action: str) -> None:
        fields = {"action": action, "purpose": key.purpose, "kid": key.kid}
        self._events.append(connection, LogEvent(kind="key", at=self._clock(), tenant=DEFAULT_TENANT, fields=fields))

    def _public(self, key: SigningKey) -> ECDSAP256PublicKey:
        if key.kid not in self._publics:
            self._publics[key.kid] = ECDSAP256PublicKey(key.private.public_key())
        return self._publics[key.kid]

    def _state(self, key: SigningKey, signing: set[str]) -> State:
        if key.kid in signing:
            return "active"
        return "next" if key.not_before > self._clock() and key.accepted(self._clock()) else "retired"

    def _active(self, purpose: str) -> SigningKey | None:
        """The newest whose time has come; before all of them (a clock that was set back), the first."""
        now = self._clock()
        keys = self._accepted(purpose)
        begun = [key for key in keys if key.not_before <= now]
        return begun[-1] if begun else keys[0] if keys else None

    def _accepted(self, purpose: str, *, older_than: float = _LOOK_SECONDS) -> list[SigningKey]:
        now = self._clock()
        return [key for key in self._read(older_than=older_than) if key.purpose == purpose and key.accepted(now)]

    def _add_first(self, keys: Sequence[SigningKey]) -> None:
        ring = self._ring.current()

        def work(connection: Connection) -> None:
            present = set(connection.execute(select(signing_keys.c.purpose)).scalars())
            for key in keys:
                if key.purpose not in present:  # else another replica was first
                    _store(connection, key, ring.seal)
                    self._tell(connection, key, "create")
            bump_configuration(connection)

        self._store.write(work)
        self._read(older_than=0)

    def _fresh(self, purpose: str, *, not_before: datetime | None = None) -> SigningKey:
        now = self._clock()
        begins = not_before or now
        if purpose == CA:
            return adopted_authority(CertificateAuthority.create(CA_NAME, at=now), at=begins)
        private = Ed25519PrivateKey.generate() if purpose in _ED25519 else generate_private_key(SECP256R1())
        return SigningKey(
            purpose=purpose,
            kid=_key_id(private),
            created_at=now,
            not_before=begins,
            not_after=None,
            private=private,
        )

    def _read(self, *, older_than: float) -> tuple[SigningKey, ...]:
        now = self._monotonic()
        if now - self._looked < older_than and self._keys:
            self._ring.require_open()  # in time, the key store has to prove itself for these, too
            return self._keys
        with self._reading:
            ring = self._ring.current()
            configuration = self._store.configuration()
            if configuration != self._configuration or not self._keys:
                rows = self._store.read(lambda connection: connection.execute(_ROWS).all())
                parsed = {row.sealed: self._parsed.get(row.sealed) or self._opened(row, ring.open) for row in rows}
                for row in rows:
                    _require_agreement(row, parsed[row.sealed])
                self._parsed, self._keys = parsed, tuple(parsed[row.sealed] for row in rows)
                self._configuration = configuration
            self._looked = now
            return self._keys

    def _opened(self, row: Row[Any], opening: Callable[[str, str, bytes], bytes]) -> SigningKey:  # Any: a table's row
        key = _decode(opening(_SEAL_PURPOSE, _row_name(row), row.sealed))
        _require_agreement(row, key)
        return key


class _TokenKeys(Mapping[str, ECDSAP256PublicKey]):
    """A view of the accepted token keys as they are now."""

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

    def __getitem__(self, kid: str) -> ECDSAP256PublicKey:
        key = self._keys.public_token_key(kid)
        if key is None:
            raise KeyError(kid)
        return key

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys.token_key_ids())

    def __len__(self) -> int:
        return len(self._keys.token_key_ids())


def adopted_token_key(pem: bytes, *, at: datetime) -> SigningKey:
    """Return the token-signing key in a PEM file of before keys were in the database.

    Raises:
        Refused: `crypto.signer.malformed_key`, `crypto.signer.unsupported_key`.
    """
    ECDSAP256Signer.from_pem(pem)
    return _signing_key(TOKEN, load_pem_private_key(pem, None), at)


def adopted_authority(authority: CertificateAuthority, *, at: datetime) -> SigningKey:
    """Return a certificate authority as a signing key."""
    key = _signing_key(CA, load_pem_private_key(authority.key_pem(), None), at)
    return replace(key, certificate=authority.certificate_pem.decode("ascii"))


def _signing_key(purpose: str, private: Any, at: datetime) -> SigningKey:  # Any: of `cryptography`, checked before
    return SigningKey(
        purpose=purpose, kid=_key_id(private), created_at=at, not_before=at, not_after=None, private=private
    )


def _key_id(private: PrivateKey) -> str:
    if isinstance(private, EllipticCurvePrivateKey):
        return key_id(ECDSAP256PublicKey(private.public_key()))
    spki = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def _row_name(row: Row[Any]) -> str:  # Any: the table's row type
    return f"{row.purpose}#{row.kid}"


def _store(connection: Connection, key: SigningKey, sealing: Callable[[str, str, bytes], bytes]) -> None:
    record = _Record(
        purpose=key.purpose,
        kid=key.kid,
        created_at=to_micros(key.created_at),
        not_before=to_micros(key.not_before),
        not_after=None if key.not_after is None else to_micros(key.not_after),
        private=key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii"),
        certificate=key.certificate,
    )
    sealed = sealing(_SEAL_PURPOSE, f"{key.purpose}#{key.kid}", msgspec.json.encode(record))
    _remove(connection, key)
    columns = {name: getattr(record, name) for name in ("purpose", "kid", "created_at", "not_before", "not_after")}
    connection.execute(insert(signing_keys).values(sealed=sealed, **columns))


def _remove(connection: Connection, key: SigningKey) -> None:
    same = (signing_keys.c.purpose == key.purpose, signing_keys.c.kid == key.kid)
    connection.execute(delete(signing_keys).where(*same))


def _decode(data: bytes) -> SigningKey:
    try:
        record = msgspec.json.decode(data, type=_Record)
        private = load_pem_private_key(record.private.encode(), None)
    except (msgspec.MsgspecError, ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise _disagreement() from err
    return SigningKey(
        purpose=record.purpose,
        kid=record.kid,
        created_at=from_micros(record.created_at),
        not_before=from_micros(record.not_before),
        not_after=None if record.not_after is None else from_micros(record.not_after),
        private=private,
        certificate=record.certificate,
    )


def _require_agreement(row: Row[Any], key: SigningKey) -> None:  # Any: the table's row type
    said = (row.purpose, row.kid, row.not_before, row.not_after)
    ends = None if key.not_after is None else to_micros(key.not_after)
    if said != (key.purpose, key.kid, to_micros(key.not_before), ends):
        raise _disagreement()


def _disagreement() -> Unavailable:
    return Unavailable(
        "trust.store.sealed_row",
        "a stored signing key is not what its row says",
        hint="somebody edited the database: restore it from a backup",
    )


SIGNING_KEY_ROWS: Final = SealedColumn(purpose=_SEAL_PURPOSE, table=signing_keys, column="sealed", row_of=_row_name)
