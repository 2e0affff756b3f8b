"""What key release is decided by, read from the store once per change of configuration."""

from __future__ import annotations

import threading
from typing import Final

from cloister.trust.keybroker.policy import ReleasePolicy, parse_release_policy
from cloister.trust.store.database import Store
from cloister.trust.store.policies import APPRAISAL, RELEASE, PolicyStore

RELEASE_POLICY: Final = "release"  # name of the one key-release policy of a service


class ReleaseInputs:
    """The key-release policy in force and the digests of the appraisal policies in force."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._policies = PolicyStore(store)
        self._lock = threading.Lock()
        self._configuration = -1
        self._policy: ReleasePolicy | None = None
        self._digests: dict[str, str] = {}

    def current(self, appraisal_policy: str) -> tuple[ReleasePolicy | None, str]:
        """Return the release policy and the digest of the appraisal policy of that id, empty when there is none.

        Raises:
            Unavailable: the store failed.
        """
        configuration = self._store.configuration()
        with self._lock:
            if configuration == self._configuration and appraisal_policy in self._digests:
                return self._policy, self._digests[appraisal_policy]
        stored = self._policies.current(RELEASE, RELEASE_POLICY)
        policy = parse_release_policy(stored.text) if stored is not None else None
        appraisal = self._policies.current(APPRAISAL, appraisal_policy)
        digest = appraisal.digest if appraisal is not None else ""
        with self._lock:
            if configuration != self._configuration:
                self._digests = {}
            self._configuration, self._policy = configuration, policy
            self._digests[appraisal_policy] = digest
        return policy, digest
