"""The keys of one service: key store, key ring and signing keys over its state directory, and their first start.

`open` may leave them sealed: then every use refuses with `trust.keys.sealed` until `unseal` was given enough. A
directory of an older version is taken over: its root key becomes a retired data key (and stays the root key, where
that is a file), its token and CA keys become rows. The files go once the rows are durable; a crash in between is
repeated harmlessly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cloister.crypto.keystore import KeyStore, UnsealProgress, open_keystore
from cloister.crypto.keystore.file import file_uri
from cloister.crypto.tlsca import CertificateAuthority
from cloister.errors import Refused
from cloister.trust.events import NO_EVENTS, Events
from cloister.trust.keys.ring import PROVED_SECONDS, KeyRing
from cloister.trust.keys.signing import SigningKey, SigningKeys, TokenIssuer, adopted_authority, adopted_token_key
from cloister.trust.keys.unsealing import UnsealSocket
from cloister.trust.rowseal import LEGACY
from cloister.trust.statedir import LegacyKeys, StateDirectory
from cloister.trust.store.database import Store


class ServiceKeys:
    """All keys of one service. `close` it.

    Args:
        state: the state directory.
        store: the database.
        key_store: address of the key store; empty for what the state directory says.
        clock: aware UTC now.
        events: told of every change of a key, in its transaction.
        proved_seconds: how long the service goes on without its key store.

    Raises:
        Refused: files that others can read, or a key store of another database.
        Unavailable: key store or store cannot be used.
    """

    def __init__(
        self,
        state: StateDirectory,
        store: Store,
        *,
        key_store: str = "",
        clock: Callable[[], datetime],
        events: Events = NO_EVENTS,
        proved_seconds: float = PROVED_SECONDS,
    ) -> None:
        self._state = state
        self._clock = clock
        self._uri = state.key_store(key_store)
        self._keystore: KeyStore = open_keystore(self._uri)
        self._begun = False
        self._socket: UnsealSocket | None = None
        self._started_sealed = self._keystore.sealed
        self.ring = KeyRing(
            store, self._keystore, clock=clock, seen=state.seen_file, events=events, proved_seconds=proved_seconds
        )
        self.signing = SigningKeys(store, self.ring, clock=clock, events=events)
        if not self._started_sealed:
            self._begin()

    @property
    def sealed(self) -> bool:
        """Whether people have to give their shares first."""
        return self.ring.sealed

    @property
    def place(self) -> str:
        """Where the root key is, without any secret."""
        return self._keystore.place

    def require_open(self) -> None:
        """Return if keys can be used.

        Raises:
            Unavailable: `trust.keys.sealed`, `crypto.keystore.*`, or the store failed.
        """
        self.ring.require_open()

    def check(self) -> None:
        """Return if the key store answered within the last seconds; for readiness.

        Raises:
            Unavailable: it does not, or is sealed.
        """
        self.ring.check()

    def unseal(self, secret: str) -> UnsealProgress:
        """Give one share, or the passphrase.

        Raises:
            Refused: `crypto.keystore.share`, `crypto.keystore.unseal`.
            Unavailable: key store or store cannot be used.
        """
        progress = self.ring.unseal(secret)
        if not progress.sealed and not self._begun:
            self._begin()
        return progress

    def take_shares(self) -> None:
        """Take shares by a socket in the state directory while the service is sealed.

        Raises:
            Unavailable: the socket cannot be made (`trust.state.io`).
        """
        if self.sealed and self._socket is None:
            self._socket = UnsealSocket(self._state.path, self.unseal)

    def progress(self) -> UnsealProgress:
        """Return how far a sealed service is."""
        return self.ring.progress()

    def move_root(self, key_store: str) -> str:
        """Go on with a root key of another key store; see `KeyAdministration.move_root`.

        Steps: 1 a root key there; 2 every data key wrapped with it, in one transaction; 3 the state directory names
        the new key store; 4 the old file goes. After a crash between 2 and 3 the service refuses to start
        (`crypto.keystore.unknown_root`) until it is told the new address with `--key-store`.

        Raises:
            Refused: not an address of a key store.
            Unavailable: key store or store cannot be used.
        """
        fresh = open_keystore(key_store)
        # 1, 2
        identity = self.ring.move_root(fresh)
        # 3
        old, self._keystore = self._keystore, fresh
        self._uri = self._state.key_store(key_store)
        old.close()
        # 4
        if not self._uri.startswith(file_uri(self._state.root_key_file)):
            self._state.taken_over(["root.key"])
        return identity

    def prepare_seal(self, names: tuple[str, ...]) -> Path:
        """Return the root key file that can be sealed; see `KeyAdministration.prepare_seal`."""
        if self._uri.partition("?")[0] != file_uri(self._state.root_key_file):
            raise Refused(
                "crypto.keystore.uri",
                "only a root key in the state directory is sealed here",
                path=self.place,
                hint="Vault and hardware modules have their own seal; other files: `cloister key move` first",
            )
        # Only if a service never ran here: what it kept has the names it was started with.
        if not self._state.has_kept_tls:
            with self._state.issued_tls(self.authority(), names, at=self._clock(), keep=True):
                pass
        return self._state.root_key_file

    def token_issuer(self) -> TokenIssuer:
        """Return what signs tokens now."""
        return self.signing.token_issuer()

    def authority(self) -> CertificateAuthority:
        """Return the service's own CA."""
        return self.signing.authority()

    @contextmanager
    def issued_tls(self, names: tuple[str, ...], *, at: datetime) -> Iterator[tuple[Path, Path]]:
        """Give the server certificate and its key as files; a sealed service answers with one kept from before."""
        authority = None if self.sealed else self.authority()
        with self._state.issued_tls(authority, names, at=at, keep=self._keystore.sealable) as files:
            yield files

    def close(self) -> None:
        """Let go of the key store and take no more shares."""
        if self._socket is not None:
            self._socket.close()
        self._keystore.close()

    def _begin(self) -> None:
        """Steps: 1 keys of an older version; 2 the ring; 3 signing keys; 4 the files of 1 go; 5 the CA for clients."""
        with self._state.alone():
            # 1
            legacy = self._state.legacy()
            now = self._clock()
            # 2
            self.ring.begin(legacy.root)
            # 3
            adopted: list[SigningKey] = []
            if legacy.token_pem is not None:
                adopted.append(adopted_token_key(legacy.token_pem, at=now))
            if legacy.authority is not None:
                adopted.append(adopted_authority(legacy.authority, at=now))
            self.signing.begin(adopted)
            # 4
            self._state.taken_over(self._taken_over(legacy, adopted))
            # 5
            self._state.publish_ca(self.authority().certificate_pem)
        self._begun = True

    def _taken_over(self, legacy: LegacyKeys, adopted: Sequence[SigningKey]) -> list[str]:
        """Return the files whose keys are in the database; a file of another service's key is left alone."""
        present = {(key.purpose, key.kid) for key in self.signing.entries()}
        done = [f"{key.purpose}.key" for key in adopted if (key.purpose, key.kid) in present]
        old = self.ring.current().keys.get(LEGACY)
        elsewhere = not self._uri.startswith(file_uri(self._state.root_key_file))
        if elsewhere and old is not None and legacy.root == old.secret():
            done.append("root.key")
        return done
