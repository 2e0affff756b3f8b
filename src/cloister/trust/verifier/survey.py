"""Which pods would fail tomorrow: all kept evidence judged again, beside what was released under it.

Reads the store and writes nothing. Kept evidence is read in pages, so that a survey of all of it takes as much memory
as one page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.advisory import Advisory
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.reference import ReferenceEntry
from cloister.trust.rowseal import RowSealer
from cloister.trust.store.database import Store
from cloister.trust.store.evidence import EvidenceStore, StoredEvidence
from cloister.trust.store.records import RecordStore, ReleasedResource
from cloister.trust.verifier.collateral import CollateralSource
from cloister.trust.verifier.inputs import AppraisalInputSource, AskRego
from cloister.trust.verifier.reappraisal import Candidate, Reappraisal, newest_of_each, reappraise
from cloister.wire.canonicaljson import encode_canonical

_PAGE: Final = 50  # pieces of evidence in memory at once; one with eight GPUs has about 200 KiB

Leases = Callable[[Sequence[str]], Mapping[str, datetime]]  # thumbprints of guest keys to the end of their leases


def no_leases(_guest_keys: Sequence[str]) -> Mapping[str, datetime]:
    """Know of no lease."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One boot of one pod, judged again.

    Attributes:
        sequence: of the kept result.
        result: the newest kept result about it, and what comes of it now.
        releases: what was released to that boot of the pod; with `every`, under that result.
        lease_until: when its lease ends; None when none is known.
    """

    sequence: int
    result: Reappraisal
    releases: tuple[ReleasedResource, ...]
    lease_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to judge by; what is None is as it is now.

    Attributes:
        policy: appraisal policy.
        references: all reference values, instead of the stored ones.
        advisories: instead of those that ship with this build.
        source: what vendors publish.
        at: aware UTC, may be in the future.
    """

    source: CollateralSource
    at: datetime
    policy: AppraisalPolicy | None = None
    references: tuple[ReferenceEntry, ...] | None = None
    advisories: tuple[Advisory, ...] | None = None


class Survey:
    """Judges the kept evidence of one tenant again.

    Args:
        store: the database.
        sealer: opens what evidence was bound to.
        policy_id: the appraisal policy in force.
        leases: tells what still runs.
        tenant: whose.
        ask_rego: asks appraisal policies in Rego; None where there are none.
    """

    def __init__(
        self,
        store: Store,
        sealer: RowSealer,
        *,
        policy_id: str,
        leases: Leases = no_leases,
        tenant: str = DEFAULT_TENANT,
        ask_rego: AskRego | None = None,
    ) -> None:
        self._inputs = AppraisalInputSource(store, policy_id, tenant=tenant, ask_rego=ask_rego)
        self._leases = leases
        self._evidence = EvidenceStore(store, sealer, tenant=tenant)
        self._records = RecordStore(store, tenant=tenant)

    def count(self) -> int:
        """Return how much evidence is kept: the most that `run` yields."""
        return self._evidence.count()

    def run(self, wanted: Wanted, *, every: bool = False, after: int = 0) -> Iterator[Surveyed]:
        """Judge again, oldest first, lazily.

        Args:
            wanted: what to judge by.
            every: all kept results, not only the newest of each boot of each pod.
            after: sequence number of the last result that is not wanted any more.

        Raises:
            AppraisalRefused: no policy is given and none is stored (`trust.verifier.no_policy`).
            Unavailable: the store failed.
        """
        candidate = self._candidate(wanted)
        chosen = None if every else self._newest()
        for page in self._pages(after):
            items = [item for item in page if chosen is None or item.sequence in chosen]
            yield from self._judged(items, candidate, by_guest=not every)

    def _candidate(self, wanted: Wanted) -> Candidate:
        inputs = self._inputs.current()
        if wanted.policy is not None:
            inputs = replace(inputs, policy=wanted.policy)
        if wanted.references is not None:
            inputs = replace(inputs, references=wanted.references)
        if wanted.advisories is not None:
            inputs = replace(inputs, advisories=wanted.advisories)
        return Candidate(inputs=inputs, source=wanted.source, at=wanted.at)

    def _newest(self) -> frozenset[int]:
        newest: list[StoredEvidence] = []
        for page in self._pages():
            # Only what tells boots apart is carried from page to page.
            newest = newest_of_each([*newest, *(replace(item, body=b"") for item in page)])
        return frozenset(item.sequence for item in newest)

    def _pages(self, after: int = 0) -> Iterator[tuple[StoredEvidence, ...]]:
        while page := self._evidence.list(after=after, limit=_PAGE):
            yield page
            after = page[-1].sequence

    def _judged(self, items: Sequence[StoredEvidence], candidate: Candidate, *, by_guest: bool) -> Iterator[Surveyed]:
        guests = [_guest_key(item) for item in items]
        holders = guests if by_guest else [item.record.id for item in items]
        released: dict[str, list[ReleasedResource]] = {}
        for found in self._records.list_released([name for name in holders if name], by_guest=by_guest):
            released.setdefault(found.holder, []).append(found)
        leases = self._leases([name for name in guests if name])
        for item, guest, holder in zip(items, guests, holders, strict=True):
            yield Surveyed(
                sequence=item.sequence,
                result=reappraise(item, candidate),
                releases=tuple(released.get(holder, ())),
                lease_until=leases.get(guest),
            )


def _guest_key(item: StoredEvidence) -> str:
    """Return the thumbprint of the guest's key as audit rows and leases have it, empty when it is not kept."""
    if item.binding is None:
        return ""
    return hashlib.sha256(encode_canonical(item.binding.runtime_data.tee_pubkey)).hexdigest()
