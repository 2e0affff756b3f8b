"""The owner's own hands on a trust service: administration of its state directory on the same machine.

Needs no running service; a running one sees every change with its next request. Whoever can open the state directory
is the owner: there is no second authentication here. The functions are those of `cloister.trust.administration`, which
the network's interface uses as well; changes leave the same records, made by `local`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from cloister.protocol.initdata import ReleaseLogPins
from cloister.protocol.resourceuri import ResourcePath
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.reference import ReferenceEntry
from cloister.tlog.receipt import Receipt
from cloister.trust.access import LOCAL_OWNER, AccessControl
from cloister.trust.administration import Administration, AdministrationParts
from cloister.trust.keybroker.denials import event_fields
from cloister.trust.keybroker.policy import ReleaseRule, ReleaseRules, encode_release_rule
from cloister.trust.keys import KeyAdministration, ServiceKeys
from cloister.trust.keys.signing import LOG
from cloister.trust.rego.engine import RegoEngine
from cloister.trust.releaselog import EventsOnceOpen, make_release_log, parse_witnesses, read_announced
from cloister.trust.service import utc_now
from cloister.trust.statedir import StateDirectory
from cloister.trust.statestore import open_store
from cloister.trust.store.policies import PolicyStore, StoredPolicy
from cloister.trust.store.records import LISTED, AppraisalRecord, AuditRow, DenialRecord, RecordStore
from cloister.trust.store.resources import ResourceEntry
from cloister.trust.verifier import CollateralSource
from cloister.trust.verifier.survey import Survey


class TrustAdmin:
    """Administers one state directory, making it when absent. Use as a context manager, or `close` it.

    Every method raises `Unavailable` when the store cannot be used.

    Args:
        state_dir: the directory.
        clock: aware UTC now.
        database: address of the database; empty for the one the directory names.
        password_file: file with the password of the database's user, or None.
        key_store: address of the key store; empty for the one the directory names.

    Raises:
        Refused: the directory is not private.
        Unavailable: it cannot be used.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        clock: Callable[[], datetime] = utc_now,
        database: str = "",
        password_file: Path | None = None,
        key_store: str = "",
        collateral: Path | None = None,
    ) -> None:
        self._state = StateDirectory(state_dir)
        self._announced = read_announced(state_dir)
        self._log = make_release_log(state_dir, parse_witnesses(self._announced.witnesses))
        try:
            self._store = open_store(self._state, database=database, password_file=password_file, batch_hook=self._log)
        except BaseException:
            self._log.close()
            raise
        try:
            events = EventsOnceOpen(self._log)
            self._keys = ServiceKeys(self._state, self._store, key_store=key_store, clock=clock, events=events)
            if not self._keys.sealed:
                self._log.open(self._store, self._keys.signing.signing_key(LOG).private)
        except BaseException:
            self._store.close()
            self._log.close()
            raise
        self._rego = RegoEngine()
        self.keys = KeyAdministration(self._store, self._keys)
        self.administration = Administration(
            parts=AdministrationParts(
                store=self._store,
                keys=self._keys.ring,
                clock=clock,
                events=self._log,
                collateral=CollateralSource(collateral or self._state.path),
                ask_rego=self._rego.appraise,
            ),
            access=AccessControl(self._store, clock),
            keys=self.keys,
        )
        self._office = self.administration.office(LOCAL_OWNER, DEFAULT_TENANT, None, record_reading=False)
        self._policies = PolicyStore(self._store)
        self._records = RecordStore(self._store)

    def __enter__(self) -> TrustAdmin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store and the log in it, and let go of the keys."""
        self._store.close()
        self._log.close()
        self._keys.close()
        self._rego.close()

    # Resources

    def put_resource(self, path: ResourcePath, content: bytes, *, replaces: int | None = None) -> int:
        """Store a resource, 1 byte to 1 MiB; return its version. Nobody gets it without a release rule.

        Args:
            path: where.
            content: what.
            replaces: the version that was read, 0 for none; None to replace whatever is there.

        Raises:
            FormatRefused: empty or too long.
            Refused: another version is there by now (`trust.resource.conflict`).
        """
        return self._office.resources.put(path, content, replaces=replaces).version

    def get_resource(self, path: ResourcePath) -> bytes:
        """Return the content of a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
        """
        return self._office.resources.content(path)

    def list_resources(self) -> tuple[ResourceEntry, ...]:
        """Return path, version and time of each resource."""
        return self._office.resources.list()

    def delete_resource(self, path: ResourcePath) -> None:
        """Delete a resource.

        Raises:
            Refused: there is none (`trust.resource.missing`).
        """
        self._office.resources.delete(path)

    # Policies

    def put_appraisal_policy(self, text: bytes, *, name: str = "") -> StoredPolicy:
        """Store the next version of an appraisal policy, under the id in its text; one in Rego under `name`.

        Raises:
            FormatRefused: not an appraisal policy, Rego that does not load, or Rego without a name.
            Unavailable: Rego, and this installation cannot run it.
        """
        return self._office.appraisal.put(text, name=name)

    def appraisal_policy(self, policy_id: str = "default") -> StoredPolicy | None:
        """Return the version in force, None when there is none."""
        return self._office.appraisal.current(policy_id)

    def put_release_rule(self, prefix: str, text: bytes) -> StoredPolicy:
        """Store the next version of the release rule of a prefix, given as its file (TOML, JSON or Rego).

        Raises:
            FormatRefused: not a rule, or not a prefix; Rego that does not load.
            Unavailable: Rego, and this installation cannot run it.
        """
        return self._office.rules.put(prefix, text)

    def put_identity_policy(self, text: bytes) -> StoredPolicy:
        """Store the identity policy: which pod gets which SPIFFE ID.

        Raises:
            FormatRefused: not a policy (`trust.identity.policy`, `trust.identity.template`).
            Unavailable: the store failed.
        """
        return self._office.identities.put_policy(text)

    def identity_policy(self) -> StoredPolicy:
        """Return the identity policy in force.

        Raises:
            Refused: there is none (`trust.policy.missing`).
        """
        return self._office.identities.policy()

    def release_rules(self) -> ReleaseRules:
        """Return the release rules and revocations in force."""
        return self._office.rules.rules()

    def add_release_rule(self, rule: ReleaseRule) -> StoredPolicy:
        """Store a rule, replacing the one of the same prefix.

        Raises:
            FormatRefused: a malformed rule.
        """
        return self._office.rules.put(rule.prefix, encode_release_rule(rule))

    def remove_release_rule(self, prefix: str) -> StoredPolicy:
        """Remove the rule of a prefix; the next wider one decides about its resources then, or the default.

        Raises:
            Refused: there is none (`trust.release_policy.missing_rule`).
        """
        return self._office.rules.remove(prefix)

    def approve(
        self,
        init_data: str,
        paths: Sequence[ResourcePath],
        *,
        appraisal_policy: str = "default",
        insecure_accept_levels: Sequence[Level] = (),
    ) -> None:
        """Let pods with this init data have these resources, beside who may have them already, in one step.

        Raises:
            FormatRefused: not a digest of init data.
            Refused: another pod is approved for one of them at other levels, which this would change
                (`trust.release_policy.levels_differ`); a rule has no list (`trust.release_policy.not_a_list`).
        """
        self._office.rules.approve(init_data, paths, appraisal_policy=appraisal_policy, levels=insecure_accept_levels)

    def revoke(self, init_data: str) -> None:
        """Withdraw every approval of this init data, whatever rule gave it; pods under a lease stop within it."""
        self._office.rules.revoke(init_data)

    def forget(self, init_data: str) -> None:
        """Remove this init data from every rule; a rule left without any releases nothing and goes too.

        For a pod that ended by itself: what nobody uses needs no approval, and no revocation to remember.
        """
        self._office.rules.forget(init_data)

    def policy_history(self, kind: str, name: str) -> tuple[StoredPolicy, ...]:
        """Return all versions of a policy (`appraisal` and its id, or `release` and a prefix), newest first."""
        return self._policies.history(kind, name)

    # What evidence is judged by

    def add_reference_entries(self, entries: Sequence[ReferenceEntry]) -> None:
        """Register reference values, all or none; one of the same id replaces the older.

        Raises:
            FormatRefused: none given, or two of one id.
        """
        self._office.references.add_unsigned(entries)

    def list_reference_entries(self) -> tuple[ReferenceEntry, ...]:
        """Return all reference values, expired ones too."""
        return tuple(value.entry for value in self._office.references.list())

    def remove_reference_entry(self, identity: str) -> None:
        """Delete a reference value entry.

        Raises:
            Refused: there is none (`trust.reference.missing`).
        """
        self._office.references.delete(identity)

    def add_root(self, root: TrustedRoot) -> str:
        """Trust a root for its technology and level; return its id."""
        return self._office.roots.add(root)

    def list_roots(self) -> tuple[TrustedRoot, ...]:
        """Return all trusted roots."""
        return self._office.roots.list()

    def remove_root(self, identity: str) -> None:
        """Stop trusting a root.

        Raises:
            Refused: there is none (`trust.root.missing`).
        """
        self._office.roots.remove(identity)

    # What happened

    def list_audit(self, *, after: int = 0, limit: int = LISTED, init_data: str = "") -> tuple[AuditRow, ...]:
        """Return audit rows in order: those after a sequence number, of one pod's init data if it is given."""
        return self._records.list_audit(after=after, limit=limit, init_data=init_data)

    def last_audit(self) -> int:
        """Return the sequence number of the newest audit row, 0 when there is none."""
        return self._office.records.last_audit()

    def get_denial(self, identity: str) -> DenialRecord:
        """Return the whole record of a denial, with every finding.

        Raises:
            Refused: there is none (`trust.denial.missing`).
        """
        return self._office.records.denial(identity)

    def get_appraisal(self, identity: str) -> AppraisalRecord | None:
        """Return an Attestation Result by the id that audit rows and tokens carry, None when not kept any more."""
        return self._records.appraisal(identity)

    def get_evidence(self, identity: str) -> bytes | None:
        """Return the evidence behind an Attestation Result, as it was received (JSON); None when not kept any more."""
        return self._records.evidence(identity)

    # What others pin

    def survey(self, policy_id: str = "default") -> Survey:
        """Return what judges kept evidence again: by another policy, reference values, collateral or date."""
        return self._office.desk.survey(policy_id)

    def collateral(self) -> CollateralSource:
        """Return what vendors publish, as the service has it."""
        return self._office.desk.collateral

    def ca_pem(self) -> str:
        """Return the CA certificate that guests pin, PEM."""
        return self._keys.authority().certificate_pem.decode("ascii")

    def release_log_pins(self) -> ReleaseLogPins:
        """Return what guests pin of the release log: its key, and the witnesses the service was last started with."""
        keys = tuple(str(witness.key) for witness in parse_witnesses(self._announced.witnesses))
        return ReleaseLogPins(key=str(self._log.key), witnesses=keys, cosignatures=self._announced.cosignatures)

    def release_receipt(self, row: AuditRow, *, seconds: float = 5.0) -> Receipt | None:
        """Return the receipt of what an audit row records: the proof that it is in the log, cosigned as guests demand.

        None when it is not in the log, as everything that happened before there was one.

        Raises:
            Unavailable: too few witnesses cosigned within that time (`trust.releaselog.cosignatures`).
        """
        return self._log.stored_receipt(
            DEFAULT_TENANT,
            event_fields(row),
            cosignatures=self._announced.cosignatures,
            deadline=time.monotonic() + seconds,
        )

    def token_verification_keys(self) -> dict[str, Any]:  # Any: JSON Web Key Set
        """Return the public keys of the verifier as a JWK set (RFC 7517), each with its `kid`."""
        return self._keys.signing.jwks()
