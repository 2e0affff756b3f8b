"""Composition of the trust service: one state directory, one store, the RATS roles side by side.

The key broker gets the verifier as an `AttestationService` and the verifier's public key as a pinned key; nothing else
passes between them. Replace `VerifierService` by a client of somebody else's verifier and the broker is unchanged.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from cryptography.x509 import Certificate, load_pem_x509_certificate, load_pem_x509_certificates
from sqlalchemy import func, select

from cloister.errors import FormatRefused, RequestRefused, Unavailable
from cloister.protocol.resourceuri import parse_resource_path
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.tee.regopolicy import RegoVector
from cloister.tlog.checkpoint import parse_checkpoint
from cloister.trust.identity import PLUGIN, IdentityParts, IdentityService, StoredAuthorities
from cloister.trust.keybroker import BrokerParts, KeyBroker
from cloister.trust.keybroker.policy import prefixes_of
from cloister.trust.keys import ServiceKeys
from cloister.trust.keys.signing import LOG
from cloister.trust.readiness import Check, Readiness, check_clock, check_collateral, collateral_age
from cloister.trust.rego.engine import RegoEngine
from cloister.trust.releaselog import Announced, EventsOnceOpen, PublicLog, announce, make_release_log, parse_witnesses
from cloister.trust.settings import TrustSettings
from cloister.trust.statedir import StateDirectory
from cloister.trust.statestore import open_store
from cloister.trust.store import schema
from cloister.trust.store.proposals import ProposalStore
from cloister.trust.store.tenants import TenantStore
from cloister.trust.store.times import from_micros
from cloister.trust.verifier import CollateralSource, VerifierService
from cloister.trust.verifier.collateral import SUBDIRECTORY
from cloister.wire.structs import prepare_structs

_TOKEN_ROOTS: Final = 16


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class TrustService:
    """Verifier and key broker of each tenant over one state directory. Use as a context manager, or `close` it.

    Args:
        settings: what to run with.
        clock: aware UTC now.
        random: returns that many unpredictable bytes.
        exists: whether guests of a tenant beside the default one are answered, asked with each request; by default
            those are that administration made and did not disable.
        committed: told the number of writes and the seconds of each commit.

    Raises:
        Refused: the state directory is not private.
        Unavailable: state or store cannot be used.
    """

    def __init__(
        self,
        settings: TrustSettings,
        *,
        clock: Callable[[], datetime] = utc_now,
        random: Callable[[int], bytes] = secrets.token_bytes,
        exists: Callable[[str], bool] | None = None,
        committed: Callable[[int, float], None] | None = None,
    ) -> None:
        prepare_structs()  # before any thread of the service is there
        self.settings = settings
        self._clock = clock
        self._random = random
        self._brokers: dict[str, KeyBroker] = {}
        self._making = threading.Lock()
        self._foreign_roots = _roots_in(settings.trusted_token_roots)
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
                committed=committed,
            )
        except BaseException:
            self.log.close()
            raise
        self._exists = exists if exists is not None else TenantStore(self.store).serves
        try:
            events = EventsOnceOpen(self.log)
            self.keys = ServiceKeys(self.state, self.store, key_store=settings.key_store, clock=clock, events=events)
            self.keys.take_shares()
            self._open_log()
        except BaseException:
            self.store.close()
            self.log.close()
            raise
        self.rego = RegoEngine()
        self.appraisal_rego = RegoEngine()  # of its own: appraisals must not wait for releases, nor they for these
        self.public_log = PublicLog(self.log, self.store)
        self.collateral = CollateralSource(settings.collateral or settings.state)
        self._authorities = (
            StoredAuthorities(self.store, self.keys.ring, settings.trust_domain) if settings.trust_domain else None
        )
        self.identity = self.identity_of(DEFAULT_TENANT)

    @property
    def broker(self) -> KeyBroker:
        """The key broker of the default tenant."""
        return self.broker_of(DEFAULT_TENANT)

    @broker.setter
    def broker(self, broker: KeyBroker) -> None:
        self._brokers[DEFAULT_TENANT] = broker

    def broker_of(self, tenant: str) -> KeyBroker:
        """Return the key broker of a tenant; it is made, with its verifier, when it is first asked for.

        Raises:
            Refused: no such tenant (`trust.request.path`).
        """
        # Asked each time, before anything is made: a stranger's names must not fill memory, a tenant may have ended.
        if tenant != DEFAULT_TENANT and not self._exists(tenant):
            raise RequestRefused("trust.request.path", "no such address")
        self._open_log()
        broker = self._brokers.get(tenant)
        if broker is None:
            with self._making:
                broker = self._brokers.get(tenant) or self._made(tenant)
                self._brokers[tenant] = broker
        return broker

    def readiness(self) -> Readiness:
        """Return the checks of everything that a release needs."""
        checks: dict[str, Check] = {
            "store": self.store.probe,
            "key_store": self.keys.ring.check,
            "log": self._check_log,
            "clock": self._check_clock,
        }
        if self.settings.collateral_days:
            most = timedelta(days=self.settings.collateral_days)
            checks["collateral"] = lambda: check_collateral(self._collateral_place, self._clock(), most=most)
        return Readiness(checks)

    def collateral_seconds(self) -> float:
        """Return the age of the newest collateral in seconds, 0 when there is none."""
        age = collateral_age(self._collateral_place, self._clock())
        return age.total_seconds() if age is not None else 0.0

    def sessions(self) -> float:
        """Return the number of sessions that attested and are on record, of all tenants."""
        statement = select(func.count()).select_from(schema.sessions)
        return float(self.store.read(lambda connection: connection.execute(statement).scalar_one()))

    @property
    def _collateral_place(self) -> Path:
        return (self.settings.collateral or self.settings.state) / SUBDIRECTORY

    def _made(self, tenant: str) -> KeyBroker:
        verifier = VerifierService(
            self.store,
            self.keys.token_issuer,
            policy_id=self.settings.appraisal_policy,
            collateral=self.collateral,
            tenant=tenant,
            ask_rego=self.ask_rego,
        )
        identity = self.identity if tenant == DEFAULT_TENANT else self.identity_of(tenant)
        return KeyBroker(
            BrokerParts(
                store=self.store,
                root_key=self.keys.ring,
                verifier=verifier,
                token_keys=self.keys.signing.token_keys(),
                session_lifetime=timedelta(seconds=self.settings.session_seconds),
                clock=self._clock,
                random=self._random,
                tenant=tenant,
                events=self.log,
                receipts=self.log,
                witnesses=len(self.settings.log_witnesses),
                cosignatures=self.settings.log_cosignatures,
                rego=self.rego,
                approved_by=self._approvals(tenant),
                minimum_protocol=self.settings.minimum_protocol,
                insecure_rsa1_5=self.settings.insecure_rsa1_5,
                foreign_roots=self._foreign_roots if tenant == self.settings.trusted_token_tenant else (),
                plugins={PLUGIN: identity} if identity is not None else {},
            )
        )

    def ask_rego(
        self,
        text: str,
        values: Mapping[str, Any],  # Any: JSON
        seen: Mapping[str, Any],  # Any: JSON
    ) -> RegoVector:
        """Ask an appraisal policy in Rego; see `cloister.trust.rego.engine.RegoEngine.appraise`."""
        deadline = time.monotonic() + self.settings.request_seconds
        return self.appraisal_rego.appraise(text, values, seen, deadline=deadline)

    def _approvals(self, tenant: str) -> Callable[[str, str], frozenset[str]]:
        """Return who approved the release of a resource to guests with init data, as the broker asks."""
        proposals = ProposalStore(self.store, tenant=tenant)

        def approved_by(resource: str, init_data: str) -> frozenset[str]:
            return proposals.approved_by(prefixes_of(parse_resource_path(resource)), init_data, at=self._clock())

        return approved_by

    def log_size(self) -> float:
        """Return the number of entries of the newest checkpoint."""
        return float(parse_checkpoint(self.log.newest.text).size)

    def _check_log(self) -> None:
        self._open_log()
        self.log.check()

    def _check_clock(self) -> None:
        try:
            certificate = load_pem_x509_certificate(self.state.ca_file.read_bytes())
        except (OSError, ValueError) as err:
            raise Unavailable("trust.state.io", "the service's CA cannot be read") from err
        statement = select(func.max(schema.sessions.c.issued_at))
        newest = self.store.read(lambda connection: connection.execute(statement).scalar_one())
        check_clock(
            self._clock(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            newest=None if newest is None else from_micros(newest),
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
        self.appraisal_rego.close()

    def _open_log(self) -> None:
        """Begin with the log, unless its key is sealed still: then the first request after that does."""
        if not self.log.opened and not self.keys.sealed:
            self.log.open(self.store, self.keys.signing.signing_key(LOG).private)


def _roots_in(file: Path | None) -> tuple[Certificate, ...]:
    """Return the CAs in a PEM file.

    Raises:
        FormatRefused: it holds none, or too many (`trust.settings.token_roots`).
        Unavailable: it cannot be read.
    """
    if file is None:
        return ()
    try:
        found = load_pem_x509_certificates(file.read_bytes())
    except OSError as err:
        raise Unavailable("trust.state.io", f"cannot read the token roots: {err.strerror}", path=str(file)) from err
    except ValueError as err:
        raise FormatRefused("trust.settings.token_roots", "not certificates in PEM", path=str(file)) from err
    if len(found) > _TOKEN_ROOTS:
        raise FormatRefused(
            "trust.settings.token_roots", "too many token roots", path=str(file), expected=f"at most {_TOKEN_ROOTS}"
        )
    return tuple(found)
