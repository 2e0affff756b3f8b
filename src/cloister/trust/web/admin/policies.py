"""Routes of appraisal policies, release rules, and demands for approvals."""

from __future__ import annotations

from litestar.params import JSONBody

from cloister.protocol.admin.access import Changed, Revocation
from cloister.protocol.admin.base import Done
from cloister.protocol.admin.policies import DryRun, DryRunAnswer, PolicyChange, PolicyList, PolicyVersion, Rollback
from cloister.trust.access import Permission
from cloister.trust.approvals import ResourcePrefix, parse_resource_prefix
from cloister.trust.web.admin import wire
from cloister.trust.web.admin.entrance import Admitted, deleting, posting, putting, reading
from cloister.trust.web.admin.parameters import PathWord, PrefixSegment, Replaces

_APPRAISAL = "/appraisal-policies"
_RULE = "/release-rules/{repository:str}/{kind:str}/{tag:str}"
_DEMAND = "/approval-demands/{repository:str}/{kind:str}/{tag:str}"


@reading(_APPRAISAL, Permission.POLICY_READ, "Appraisal policies in force")
def list_appraisal_policies(office: Admitted) -> PolicyList:
    """Return what is in force, by name."""
    return PolicyList(policies=[wire.policy_version(item) for item in office.appraisal.list()])


@putting(f"{_APPRAISAL}/{{name:str}}", Permission.POLICY_WRITE, "Next version of an appraisal policy")
def put_appraisal_policy(office: Admitted, name: PathWord, data: JSONBody[PolicyChange]) -> PolicyVersion:
    """Store the next version; the id in the text must be the name."""
    return wire.policy_version(office.appraisal.put(data.text.encode(), name=name, replaces=data.replaces))


@reading(f"{_APPRAISAL}/{{name:str}}", Permission.POLICY_READ, "An appraisal policy in force")
def get_appraisal_policy(office: Admitted, name: PathWord) -> PolicyVersion:
    """Return the version in force."""
    return wire.policy_version(office.appraisal.get(name))


@reading(f"{_APPRAISAL}/{{name:str}}/history", Permission.POLICY_READ, "All versions of an appraisal policy")
def list_appraisal_history(office: Admitted, name: PathWord) -> PolicyList:
    """Return all versions, the newest first."""
    return PolicyList(policies=[wire.policy_version(item) for item in office.appraisal.history(name)])


@posting(f"{_APPRAISAL}/{{name:str}}/rollback", Permission.POLICY_WRITE, "An old text as the next version")
def roll_back_appraisal_policy(office: Admitted, name: PathWord, data: JSONBody[Rollback]) -> PolicyVersion:
    """Put an old version's text in force again."""
    return wire.policy_version(office.appraisal.roll_back(name, data.version, replaces=data.replaces))


@reading("/release-rules", Permission.POLICY_READ, "Release rules in force")
def list_release_rules(office: Admitted) -> PolicyList:
    """Return the rules in force, by prefix."""
    return PolicyList(policies=[wire.policy_version(item) for item in office.rules.list()])


@putting(_RULE, Permission.POLICY_WRITE, "Next version of a release rule, or a proposal of it")
def put_release_rule(
    office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment, data: JSONBody[PolicyChange]
) -> Changed:
    """Store the next version; where a demand covers the prefix, propose it."""
    prefix = _prefix(repository, kind, tag)
    return wire.changed(office.approvals.put_rule(prefix, data.text.encode(), replaces=data.replaces))


@reading(_RULE, Permission.POLICY_READ, "A release rule in force")
def get_release_rule(
    office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment
) -> PolicyVersion:
    """Return the version in force."""
    return wire.policy_version(office.rules.get(_prefix(repository, kind, tag)))


@reading(f"{_RULE}/history", Permission.POLICY_READ, "All versions of a release rule")
def list_release_rule_history(
    office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment
) -> PolicyList:
    """Return all versions, the newest first."""
    found = office.rules.history(_prefix(repository, kind, tag))
    return PolicyList(policies=[wire.policy_version(item) for item in found])


@posting(f"{_RULE}/rollback", Permission.POLICY_WRITE, "An old rule as the next version, or a proposal of it")
def roll_back_release_rule(
    office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment, data: JSONBody[Rollback]
) -> Changed:
    """Put an old version's text in force again; where a demand covers the prefix, propose it."""
    prefix = _prefix(repository, kind, tag)
    return wire.changed(office.approvals.roll_back_rule(prefix, data.version, replaces=data.replaces))


@posting(f"{_RULE}/dry-run", Permission.POLICY_READ, "What a release rule would change about past decisions")
def try_release_rule(
    office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment, data: JSONBody[DryRun]
) -> DryRunAnswer:
    """Try a rule on the newest decisions under its prefix; nothing is changed."""
    prefix = _prefix(repository, kind, tag)
    return wire.dry_run(office.rehearsals.rule(prefix, data.text.encode(), last=data.limit))


@deleting(_RULE, Permission.POLICY_WRITE, "Remove a release rule, or propose to")
def delete_release_rule(
    office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment, replaces: Replaces = None
) -> Changed:
    """Remove a rule; where a demand covers the prefix, propose it."""
    return wire.changed(office.approvals.remove_rule(_prefix(repository, kind, tag), replaces=replaces))


@reading("/identity-policy", Permission.POLICY_READ, "The identity policy in force")
def get_identity_policy(office: Admitted) -> PolicyVersion:
    """Return which pod gets which SPIFFE ID."""
    return wire.policy_version(office.identities.policy())


@putting("/identity-policy", Permission.POLICY_WRITE, "Next version of the identity policy")
def put_identity_policy(office: Admitted, data: JSONBody[PolicyChange]) -> PolicyVersion:
    """Store the next version."""
    return wire.policy_version(office.identities.put_policy(data.text.encode(), replaces=data.replaces))


@posting("/revocations", Permission.POLICY_WRITE, "Withdraw whatever a pod was approved for")
def revoke(office: Admitted, data: JSONBody[Revocation]) -> Done:
    """Revoke a pod by its init data, at once and whatever rule let it have something; no demand makes this wait."""
    office.rules.revoke(data.init_data)
    return Done(subject=data.init_data)


@reading("/approval-demands", Permission.POLICY_READ, "Demands for approvals in force")
def list_demands(office: Admitted) -> PolicyList:
    """Return the demands in force, by prefix."""
    return PolicyList(policies=[wire.policy_version(item) for item in office.approvals.demands()])


@putting(_DEMAND, Permission.POLICY_WRITE, "Demand approvals for changes under a prefix, or propose to")
def put_demand(
    office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment, data: JSONBody[PolicyChange]
) -> Changed:
    """Demand approvals; where another demand covers the prefix, propose it."""
    prefix = _prefix(repository, kind, tag)
    return wire.changed(office.approvals.put_demand(prefix, data.text.encode(), replaces=data.replaces))


@reading(_DEMAND, Permission.POLICY_READ, "The demand of a prefix")
def get_demand(office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment) -> PolicyVersion:
    """Return the demand in force of exactly this prefix."""
    return wire.policy_version(office.approvals.demand(_prefix(repository, kind, tag)))


@deleting(_DEMAND, Permission.POLICY_WRITE, "Propose to demand no approvals under a prefix")
def delete_demand(
    office: Admitted, repository: PrefixSegment, kind: PrefixSegment, tag: PrefixSegment, replaces: Replaces = None
) -> Changed:
    """Remove a demand, which needs the approvals it demands."""
    return wire.changed(office.approvals.remove_demand(_prefix(repository, kind, tag), replaces=replaces))


def _prefix(repository: str, kind: str, tag: str) -> ResourcePrefix:
    return parse_resource_prefix(f"{repository}/{kind}/{tag}")


ROUTES = (
    get_identity_policy,
    put_identity_policy,
    list_appraisal_policies,
    put_appraisal_policy,
    get_appraisal_policy,
    list_appraisal_history,
    roll_back_appraisal_policy,
    list_release_rules,
    put_release_rule,
    get_release_rule,
    list_release_rule_history,
    roll_back_release_rule,
    try_release_rule,
    delete_release_rule,
    revoke,
    list_demands,
    put_demand,
    get_demand,
    delete_demand,
)
