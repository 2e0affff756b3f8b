"""Changes and releases by agreement: what a demand covers becomes a proposal, and is applied when enough approved.

Whoever may change rules may propose; who may approve is decided by the demand's names alone. A name counts once,
whatever tokens bear it, and names that a demand lists are not free for new tokens of the tenant's own making
(`Tokens`). An approval repeats the digest of the proposal, so that nobody approves what they did not read. The demands
are those in force when the last approval arrives, not those at the time of the proposal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import msgspec

from cloister.errors import Refused
from cloister.trust.access import Permission
from cloister.trust.administration.demands import DEMAND, live_demands, release_demand, stored_demands
from cloister.trust.administration.desk import OK, Desk, TenantStores
from cloister.trust.administration.policies import missing_policy
from cloister.trust.administration.rules import ReleaseRules, check_rule, put_rule
from cloister.trust.approvals import (
    ApprovalDemand,
    ResourcePrefix,
    demands_on_change,
    parse_demand,
    parse_resource_prefix,
)
from cloister.trust.store.policies import StoredPolicy
from cloister.trust.store.proposals import APPLIED, OPEN, REJECTED, StoredProposal
from cloister.trust.store.records import random_id

RULE: Final = "rule"
RELEASE: Final = "release"
EXPIRED: Final = "expired"
PROPOSED: Final = "proposed"
_OPEN_FOR: Final = timedelta(days=7)


class ProposalDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is proposed: a text for a rule or demand (empty: to remove it), or a subject for a release."""

    text: str = ""
    replaces: int | None = None
    init_data: str = ""
    days: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalView:
    """A proposal as it stands: its state now and the demands it has to meet."""

    proposal: StoredProposal
    document: ProposalDocument
    demands: tuple[ApprovalDemand, ...]
    state: str


Outcome = StoredPolicy | ProposalView


@dataclass(frozen=True, slots=True)
class Approvals:
    """Changes of rules and demands, and proposals, of one tenant, as one principal may make them."""

    desk: Desk

    # Changes that may have to wait

    def put_rule(self, prefix: ResourcePrefix, text: bytes, *, replaces: int | None = None) -> Outcome:
        """Store the next version of a release rule, or propose it where a demand covers the prefix.

        Raises:
            FormatRefused: not a rule for the prefix.
            Refused: another version is in force by now (`trust.policy.conflict`), or too many proposals wait.
        """
        check_rule(prefix, text)
        return self._change(RULE, prefix, text, replaces)

    def roll_back_rule(self, prefix: ResourcePrefix, version: int, *, replaces: int | None = None) -> Outcome:
        """Put an old version's rule in force again, as the next version, or propose it.

        Raises:
            Refused: there is no such version (`trust.policy.missing`), or as `put_rule`.
        """
        versions = ReleaseRules(self.desk).history(prefix)
        old = next((item for item in versions if item.version == version), None)
        if old is None:
            raise missing_policy(f"release {prefix}", f"version {version}")
        return self._change(RULE, prefix, old.text, replaces)

    def remove_rule(self, prefix: ResourcePrefix, *, replaces: int | None = None) -> Outcome:
        """Remove a release rule, or propose it where a demand covers the prefix.

        Raises:
            Refused: there is none (`trust.policy.missing`), or as `put_rule`.
        """
        return self._change(RULE, prefix, b"", replaces)

    def put_demand(self, prefix: ResourcePrefix, text: bytes, *, replaces: int | None = None) -> Outcome:
        """Demand approvals under a prefix, or propose to where a demand covers it already.

        Raises:
            FormatRefused: not a demand (`trust.approval.malformed`).
            Refused: as `put_rule`.
        """
        parse_demand(prefix, text)
        return self._change(DEMAND, prefix, text, replaces)

    def remove_demand(self, prefix: ResourcePrefix, *, replaces: int | None = None) -> Outcome:
        """Demand no approvals under a prefix any more: that needs the approvals, too.

        Raises:
            Refused: there is none (`trust.policy.missing`), or as `put_rule`.
        """
        return self._change(DEMAND, prefix, b"", replaces)

    def demand(self, prefix: ResourcePrefix) -> StoredPolicy:
        """Return the demand of exactly this prefix.

        Raises:
            Refused: there is none (`trust.policy.missing`).
        """
        found = self.desk.look(
            Permission.POLICY_READ, f"approvals {prefix}", lambda stores: stores.policies.current(DEMAND, str(prefix))
        )
        if found is None or not found.text:
            raise missing_policy(f"approvals {prefix}", "none")
        return found

    def demands(self) -> tuple[StoredPolicy, ...]:
        """Return every demand in force, by prefix."""
        return self.desk.look(Permission.POLICY_READ, "approvals", stored_demands)

    # Proposals

    def propose_release(self, prefix: ResourcePrefix, init_data: str, *, days: int) -> ProposalView:
        """Ask the approvers of a prefix to let one pod have what lies under it.

        Raises:
            Refused: no rule asks for approvals of releases there (`trust.approval.not_needed`), or too many
                proposals wait (`trust.approval.too_many`).
        """

        def work(stores: TenantStores) -> ProposalView:
            if release_demand(stores, prefix) is None:
                raise Refused(
                    "trust.approval.not_needed",
                    "no rule asks for approvals of releases under this prefix",
                    path=str(prefix),
                    hint="the release rule alone decides",
                )
            return self._propose(stores, RELEASE, prefix, ProposalDocument(init_data=init_data, days=days))

        return self.desk.change(
            Permission.PROPOSAL_APPROVE, f"release {prefix} {init_data}", work, code=lambda _: PROPOSED
        )

    def approve(self, identity: str, digest: str) -> ProposalView:
        """Approve a proposal; apply it when that was the last approval it needed.

        Raises:
            Refused: there is none (`trust.approval.missing`); it is not open any more (`trust.approval.closed`); its
                digest is another (`trust.approval.digest`); this principal is none of its approvers
                (`trust.approval.not_an_approver`); it does not fit any more (`trust.policy.conflict`).
        """
        name = self.desk.principal.name

        def work(stores: TenantStores) -> ProposalView:
            view = self._open(stores, identity)
            if digest != view.proposal.digest:
                raise Refused(
                    "trust.approval.digest",
                    "the approval is of something else than the proposal",
                    expected=view.proposal.digest,
                    actual=digest[:80],
                    hint="read the proposal, then approve that digest",
                )
            approvers = {person for demand in view.demands for person in demand.of}
            if name not in approvers:
                raise Refused(
                    "trust.approval.not_an_approver",
                    "this principal is none of the approvers",
                    expected=", ".join(sorted(approvers))[:200],
                    actual=name,
                )
            stores.proposals.approve(identity, name=name, principal=self.desk.principal.id, at=self.desk.now())
            view = self._view(stores, stores.proposals.get(identity))
            if all(demand.met_by(view.proposal.approved_by) for demand in view.demands):
                self._apply(stores, view)
                stores.proposals.settle(identity, APPLIED)
            return self._view(stores, stores.proposals.get(identity))

        return self.desk.change(Permission.PROPOSAL_APPROVE, f"approve {identity}", work, detail={"digest": digest})

    def reject(self, identity: str) -> ProposalView:
        """End a proposal without applying it: an approver, or whoever made it, says no.

        Raises:
            Refused: there is none, it is not open, or this principal has no say in it
                (`trust.approval.not_an_approver`).
        """
        name = self.desk.principal.name

        def work(stores: TenantStores) -> ProposalView:
            view = self._open(stores, identity)
            voices = {view.proposal.created_by, *(person for demand in view.demands for person in demand.of)}
            if name not in voices:
                raise Refused(
                    "trust.approval.not_an_approver",
                    "this principal has no say in this proposal",
                    expected=", ".join(sorted(voices))[:200],
                    actual=name,
                )
            stores.proposals.settle(identity, REJECTED)
            return self._view(stores, stores.proposals.get(identity))

        return self.desk.change(Permission.PROPOSAL_APPROVE, f"reject {identity}", work)

    def get(self, identity: str) -> ProposalView:
        """Return a proposal.

        Raises:
            Refused: there is none (`trust.approval.missing`).
        """
        return self.desk.look(
            Permission.PROPOSAL_READ, identity, lambda stores: self._view(stores, stores.proposals.get(identity))
        )

    def list(self, *, limit: int) -> tuple[ProposalView, ...]:
        """Return proposals, the newest first."""
        return self.desk.look(
            Permission.PROPOSAL_READ,
            "",
            lambda stores: tuple(self._view(stores, item) for item in stores.proposals.list(limit=limit)),
        )

    def _change(self, kind: str, prefix: ResourcePrefix, text: bytes, replaces: int | None) -> Outcome:
        def work(stores: TenantStores) -> Outcome:
            demands = demands_on_change(live_demands(stores), prefix)
            if demands:
                document = ProposalDocument(text=text.decode("utf-8", "replace"), replaces=replaces)
                return self._propose(stores, kind, prefix, document)
            return self._put(stores, kind, prefix, text, replaces)

        code: Callable[[Outcome], str] = lambda found: PROPOSED if isinstance(found, ProposalView) else OK  # noqa: E731
        digest = "sha256:" + hashlib.sha256(text).hexdigest()
        return self.desk.change(Permission.POLICY_WRITE, f"{kind} {prefix}", work, code=code, detail={"digest": digest})

    def _put(
        self, stores: TenantStores, kind: str, prefix: ResourcePrefix, text: bytes, replaces: int | None
    ) -> StoredPolicy:
        if kind == RULE:
            return put_rule(stores, prefix, text, self.desk, replaces)
        current = stores.policies.current(DEMAND, str(prefix))
        if not text and (current is None or not current.text):
            raise missing_policy(f"approvals {prefix}", "none")
        return stores.policies.put(DEMAND, str(prefix), text, at=self.desk.now(), replaces=replaces)

    def _propose(
        self, stores: TenantStores, kind: str, prefix: ResourcePrefix, document: ProposalDocument
    ) -> ProposalView:
        at = self.desk.now()
        body = msgspec.json.encode(document)
        digest = hashlib.sha256(b"\0".join((self.desk.tenant.encode(), kind.encode(), str(prefix).encode(), body)))
        proposal = StoredProposal(
            id=random_id("p"),
            kind=kind,
            prefix=str(prefix),
            document=body,
            digest="sha256:" + digest.hexdigest(),
            created_at=at,
            expires_at=at + _OPEN_FOR,
            created_by=self.desk.principal.name,
        )
        stores.proposals.add(proposal, at=at)
        return self._view(stores, proposal)

    def _apply(self, stores: TenantStores, view: ProposalView) -> None:
        prefix, document = parse_resource_prefix(view.proposal.prefix), view.document
        if view.proposal.kind == RELEASE:
            until = self.desk.now() + timedelta(days=document.days)
            stores.proposals.allow(str(prefix), document.init_data, until=until, proposal=view.proposal.id)
            return
        self._put(stores, view.proposal.kind, prefix, document.text.encode(), document.replaces)

    def _open(self, stores: TenantStores, identity: str) -> ProposalView:
        view = self._view(stores, stores.proposals.get(identity))
        if view.state != OPEN:
            raise Refused(
                "trust.approval.closed", "the proposal is not open any more", path=identity, actual=view.state
            )
        return view

    def _view(self, stores: TenantStores, proposal: StoredProposal) -> ProposalView:
        prefix = parse_resource_prefix(proposal.prefix)
        if proposal.kind == RELEASE:
            demand = release_demand(stores, prefix)
            demands: tuple[ApprovalDemand, ...] = (demand,) if demand is not None else ()
        else:
            demands = demands_on_change(live_demands(stores), prefix)
        expired = proposal.state == OPEN and proposal.expires_at <= self.desk.now()
        return ProposalView(
            proposal=proposal,
            document=msgspec.json.decode(proposal.document, type=ProposalDocument),
            demands=demands,
            state=EXPIRED if expired else proposal.state,
        )
