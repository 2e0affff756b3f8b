"""What key release is decided by, read from the store once per change of configuration."""

from __future__ import annotations

import threading

from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.tee.builtinpolicy import BUILTIN_DIGEST, BUILTIN_ID
from cloister.trust.keybroker.policy import ReleaseRules
from cloister.trust.keybroker.rulebook import RuleBook
from cloister.trust.store.database import Store
from cloister.trust.store.policies import APPRAISAL, PolicyStore


class ReleaseInputs:
    """The release rules in force and the digests of the appraisal policies in force, of one tenant.

    Args:
        store: the database.
        tenant: whose.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._book = RuleBook(store, tenant=tenant)
        self._policies = PolicyStore(store, tenant=tenant)
        self._lock = threading.Lock()
        self._configuration = -1
        self._rules = ReleaseRules()
        self._digests: dict[str, str] = {}

    def current(self, appraisal_policy: str) -> tuple[ReleaseRules, str]:
        """Return the release rules and the digest of the appraisal policy of that id, empty when there is none.

        Raises:
            Unavailable: the store failed.
        """
        configuration = self._store.configuration()
        with self._lock:
            if configuration == self._configuration and appraisal_policy in self._digests:
                return self._rules, self._digests[appraisal_policy]
        rules = self._book.rules()
        appraisal = self._policies.current(APPRAISAL, appraisal_policy)
        digest = appraisal.digest if appraisal is not None else ""
        if appraisal is None and appraisal_policy == BUILTIN_ID:
            digest = BUILTIN_DIGEST
        with self._lock:
            if configuration != self._configuration:
                self._digests = {}
            self._configuration, self._rules = configuration, rules
            self._digests[appraisal_policy] = digest
        return rules, digest
