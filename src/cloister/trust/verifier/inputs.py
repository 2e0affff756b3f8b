"""What appraisal judges by, read from the store once per change of configuration.

A running service sees a change that another process of the owner made with the next request: the store counts
changes, and reading that count is one indexed row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cloister.errors import AppraisalRefused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.advisory import Advisory
from cloister.rats.endorsement import Endorsements
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.reference import ReferenceEntry
from cloister.tee.advisories import shipped_advisories
from cloister.tee.builtinpolicy import BUILTIN_ID, builtin_policy
from cloister.tee.regopolicy import RegoVector, parse_named_policy
from cloister.trust.coconames import NAMED, live_named, values_by_name
from cloister.trust.store.database import Store
from cloister.trust.store.endorsers import RootStore
from cloister.trust.store.policies import APPRAISAL, PolicyStore
from cloister.trust.store.references import ReferenceStore

# Asks a Rego policy: source, reference values by name, what it sees. Any: JSON
AskRego = Callable[[str, Mapping[str, Any], Mapping[str, Any]], RegoVector]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalInputs:
    """Policy, roots and reference values of one moment.

    Attributes:
        policy: the appraisal policy.
        endorsements: trusted roots.
        references: register values.
        advisories: known weaknesses.
        named: texts of the values that CoCo's tools registered, by name, for Rego policies.
        ask_rego: asks a Rego policy; None where there are none.
    """

    policy: AppraisalPolicy
    endorsements: Endorsements
    references: tuple[ReferenceEntry, ...]
    advisories: tuple[Advisory, ...]
    named: Mapping[str, bytes] = field(default_factory=dict)
    ask_rego: AskRego | None = None

    def values(self, init_data: str, at: datetime) -> dict[str, Any]:  # Any: JSON
        """Return the reference values by CoCo's names that a policy may compare a guest with this init data with."""
        return values_by_name(self.references, live_named(self.named.items(), at=at), at=at, init_data=init_data)


class AppraisalInputSource:
    """Reads the inputs; keeps them until the configuration changes."""

    def __init__(
        self, store: Store, policy_id: str, *, tenant: str = DEFAULT_TENANT, ask_rego: AskRego | None = None
    ) -> None:
        self._store = store
        self._ask_rego = ask_rego
        self._policy_id = policy_id
        self._policies = PolicyStore(store, tenant=tenant)
        self._roots = RootStore(store, tenant=tenant)
        self._references = ReferenceStore(store, tenant=tenant)
        self._lock = threading.Lock()
        self._kept: tuple[int, AppraisalInputs] | None = None

    def current(self) -> AppraisalInputs:
        """Return the inputs in force.

        Raises:
            AppraisalRefused: no appraisal policy of that id is stored, and it is not the built-in one's
                (`trust.verifier.no_policy`).
            Unavailable: the store failed.
        """
        configuration = self._store.configuration()
        with self._lock:
            if self._kept is not None and self._kept[0] == configuration:
                return self._kept[1]
        inputs = self._read()
        with self._lock:
            # Read after the count: what is kept under it is at least as new.
            self._kept = (configuration, inputs)
        return inputs

    def _read(self) -> AppraisalInputs:
        stored = self._policies.current(APPRAISAL, self._policy_id)
        if stored is None and self._policy_id != BUILTIN_ID:
            raise AppraisalRefused(
                "trust.verifier.no_policy",
                "no appraisal policy is stored, so nothing is acceptable",
                expected=f"a policy with id {self._policy_id}",
                actual="none",
                hint="store one with the trust service; `cloister run` does on first use",
            )
        return AppraisalInputs(
            policy=parse_named_policy(self._policy_id, stored.text) if stored is not None else builtin_policy(),
            endorsements=Endorsements(roots=self._roots.list()),
            references=self._references.list(),
            advisories=shipped_advisories(),
            named={item.name: item.text for item in self._policies.current_all(NAMED) if item.text},
            ask_rego=self._ask_rego,
        )
