"""Composition of the trust service: one state directory, one store, the RATS roles side by side.

The key broker gets the verifier as an `AttestationService` and the verifier's public key as a pinned key; nothing else
passes between them. Replace `VerifierService` by a client of somebody else's verifier and the broker is unchanged.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final

from cloister.errors import RequestRefused
from cloister.trust.identity import PLUGIN, IdentityParts, IdentityService, StoredAuthorities
from cloister.trust.keybroker import BrokerParts, KeyBroker
from cloister.trust.keys import ServiceKeys
from cloister.trust.keys.signing import LOG
from cloister.trust.rego.engine import RegoEngine
from cloister.trust.releaselog import Announced, EventsOnceOpen, PublicLog, announce, make_release_log, parse_witnesses
from cloister.trust.settings import TrustSettings
from cloister.trust.statedir import StateDirectory
from cloister.trust.statestore import open_store
from cloister.trust.verifier import CollateralSource, VerifierService

DEFAULT_TENANT: Final = "default"


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class TrustService:
    """Verifier and key broker over one state directory. Use as a context manager, or `close` it.

    Args:
        settings: what to run with.
        clock: aware UTC now.

    Raises:
        Refused: the state directory is not private.
        Unavailable: state or store cannot be used.
    """

    def __init__(self, settings: TrustSettings, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.settings = settings
        self.state = StateDirectory(settings.state)
        announce(settings.state, Announced(witnesses=settings.log_witnesses, cosignatures=settings.log_cosignatures))
        self.log = make_release_log(settings.state, parse_witnesses(settings.log_witnesses))
        try:
            self.store = open_store(
                self.state,
                database=settings.database,
                password_file=settings.database_password_file,
                seconds=settings.store_seconds,
                batch_hook=self.log,
            )
        except BaseException:
            self.log.close()
            raise
        try:
            events = EventsOnceOpen(self.log)
            self.keys = ServiceKeys(self.state, self.store, key_store=settings.key_store, clock=clock, events=events)
            self.keys.take_shares()
            self._open_log()
        except BaseException:
            self.store.close()
            self.log.close()
            raise
        self.public_log = PublicLog(self.log, self.store)
        self.rego = RegoEngine()
        verifier = VerifierService(
            self.store,
            self.keys.token_issuer,
            policy_id=settings.appraisal_policy,
            collateral=CollateralSource(settings.collateral or settings.state),
        )
        self._clock = clock
        self._authorities = (
            StoredAuthorities(self.store, self.keys.ring, settings.trust_domain) if settings.trust_domain else None
        )
        self.identity = self.identity_of(DEFAULT_TENANT)
        self.broker = KeyBroker(
            BrokerParts(
                store=self.store,
                root_key=self.keys.ring,
                verifier=verifier,
                token_keys=self.keys.signing.token_keys(),
                session_lifetime=timedelta(seconds=settings.session_seconds),
                session_limit=settings.sessions,
                clock=clock,
                random=secrets.token_bytes,
                events=self.log,
                receipts=self.log,
                witnesses=len(settings.log_witnesses),
                cosignatures=settings.log_cosignatures,
                rego=self.rego,
                minimum_protocol=settings.minimum_protocol,
                insecure_rsa1_5=settings.insecure_rsa1_5,
                plugins={PLUGIN: self.identity} if self.identity is not None else {},
            )
        )

    def check(self) -> None:
        """Return if guests can be served: the store answers, the key store does, and the log may be written.

        Raises:
            Unavailable: one does not, or the service is sealed.
        """
        self.store.check()
        self.keys.check()
        self._open_log()
        self.log.check()

    def broker_of(self, tenant: str) -> KeyBroker:
        """Return the key broker of a tenant.

        Raises:
            Refused: no such tenant (`trust.request.path`).
        """
        if tenant != DEFAULT_TENANT:
            raise RequestRefused("trust.request.path", "no such address")
        self._open_log()
        return self.broker

    def identity_of(self, tenant: str) -> IdentityService | None:
        """Return the SPIFFE identities of a tenant, None without a trust domain; all tenants share its keys."""
        if self._authorities is None:
            return None
        return IdentityService(
            IdentityParts(
                store=self.store,
                authorities=self._authorities,
                trust_domain=self.settings.trust_domain,
                tenant=tenant,
                issuer=self.settings.identity_issuer,
                clock=self._clock,
                events=self.log,
            )
        )

    def __enter__(self) -> TrustService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store and the log in it, and let go of the keys."""
        self.store.close()
        self.log.close()
        self.keys.close()
        self.rego.close()

    def _open_log(self) -> None:
        """Begin with the log, unless its key is sealed still: then the first request after that does."""
        if not self.log.opened and not self.keys.sealed:
            self.log.open(self.store, self.keys.signing.signing_key(LOG).private)
