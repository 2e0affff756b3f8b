"""Nothing of one tenant is read, changed, counted or deleted for another: all classes of the store, both databases."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.protocol.kbs import RuntimeData
from cloister.protocol.resourceuri import parse_resource_path
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.reference import ReferenceEntry
from cloister.testing.tpm import NOW
from cloister.trust.rowseal import DataKey
from cloister.trust.store import records, schema
from cloister.trust.store.access import TokenStore
from cloister.trust.store.calls import CallRow, CallStore
from cloister.trust.store.database import Store
from cloister.trust.store.endorsers import RootStore, root_id
from cloister.trust.store.evidence import BindingRecord, EvidenceStore, seal_binding
from cloister.trust.store.identitykeys import IdentityKeyStore
from cloister.trust.store.leases import Lease, LeaseStore, find_lease, keep_lease
from cloister.trust.store.policies import APPRAISAL, PolicyStore
from cloister.trust.store.proposals import APPLIED, ProposalStore, StoredProposal
from cloister.trust.store.publishers import PublisherStore, ReferenceChange, StoredPublisher
from cloister.trust.store.queries import RecordFilter, RecordQueries
from cloister.trust.store.records import (
    DENIED,
    RELEASED,
    AppraisalRecord,
    AuditRow,
    DenialRecord,
    RecordStore,
    appraisal_row,
    store_appraisal,
    store_audit,
)
from cloister.trust.store.references import ReferenceStore
from cloister.trust.store.resources import ResourceStore
from cloister.trust.store.revocations import RevocationStore, add_revocation
from cloister.trust.store.sessions import Session, SessionStore
from cloister.trust.store.tenancy import sealed_name
from cloister.trust.store.tenants import TenantStore
from statements import statements
from store_places import Place

KEY = DataKey("11" * 8, bytes(32))
PATH = parse_resource_path("default/model/one")
ROOT = TrustedRoot(tee="tpm", level=Level.MEASURED, name="root", der=b"der")
LIFE = timedelta(minutes=5)
POD = "sha256:" + "1" * 64
TENANTS = (DEFAULT_TENANT, "acme", "other-2")


@dataclass
class Space:
    """All that the store keeps of one tenant."""

    store: Store
    tenant: str

    def __post_init__(self) -> None:
        own = {"tenant": self.tenant}
        self.resources = ResourceStore(self.store, KEY, **own)
        self.policies = PolicyStore(self.store, **own)
        self.references = ReferenceStore(self.store, **own)
        self.roots = RootStore(self.store, **own)
        self.records = RecordStore(self.store, **own)
        self.kept = EvidenceStore(self.store, KEY, **own)
        self.sessions = SessionStore(self.store, KEY, **own)
        self.revocations = RevocationStore(self.store, **own)
        self.leases = LeaseStore(self.store, **own)
        self.calls = CallStore(self.store, **own)
        self.publishers = PublisherStore(self.store, **own)
        self.proposals = ProposalStore(self.store, **own)
        self.queries = RecordQueries(self.store, **own)
        self.cookie = ""

    def fill(self) -> None:
        """Write one row everywhere, with the same keys as every other tenant and words of its own."""
        mark = self.tenant
        self.resources.put(PATH, mark.encode(), at=NOW)
        self.policies.put(APPRAISAL, "default", mark.encode(), at=NOW)
        self.references.put([reference(mark)], at=NOW)
        self.roots.put(ROOT, at=NOW)
        self.store.write(lambda connection: store_audit(connection, mark, audit(mark)))
        self.records.record_denial(denial(mark), audit(mark, denial=DENIAL))
        bound = seal_binding(KEY, ATTESTATION, binding(mark), **self.own)
        row = appraisal_row(appraisal(mark), mark.encode(), binding=bound, **self.own)
        self.store.write(lambda connection: store_appraisal(connection, row))
        session = self.begin()
        self.cookie = self.sessions.cookie(session, activated=True)
        self.store.write(lambda connection: self.sessions.keep(connection, session, mark, at=NOW))
        self.store.write(lambda connection: add_revocation(connection, mark, POD, NOW))
        self.store.write(lambda connection: keep_lease(connection, mark, lease(mark)))
        self.calls.add(CallRow(at=NOW, principal="t", name=mark, role="owner", action="a", subject="s", code="ok"))
        self.publishers.put(StoredPublisher(key_id="key", name=mark, pem=b"pem", created_at=NOW))
        self.publishers.remember("set", 1, mark)
        self.publishers.note([ReferenceChange(id="podvm", at=NOW, change="added", name=mark)])
        self.proposals.add(proposal(mark), at=NOW)
        self.proposals.approve("p-one", name=mark, principal="t", at=NOW)
        self.proposals.allow(str(PATH), POD, until=NOW + LIFE, proposal="p-one")
        self.proposals.settle("p-one", APPLIED)

    def begin(self) -> Session:
        return self.sessions.begin(tee="tpm", at=NOW, lifetime=LIFE)

    @property
    def own(self) -> dict[str, str]:
        return {"tenant": self.tenant}

    def seen(self) -> dict[str, Any]:
        """What it finds of everything, by name of what was asked."""
        return {
            "resource": attempt(lambda: self.resources.get(PATH).content.decode()),
            "resource exists": attempt(lambda: self.resources.require(PATH) or self.tenant),
            "resources": [str(entry.path) for entry in self.resources.list()],
            "policy": getattr(self.policies.current(APPRAISAL, "default"), "text", b"").decode(),
            "policies": [policy.text.decode() for policy in self.policies.history(APPRAISAL, "default")],
            "references": [entry.origin for entry in self.references.list()],
            "roots": [root.name for root in self.roots.list()],
            "audit": [row.tee for row in self.records.list_audit()],
            "audit of a pod": [row.tee for row in self.records.list_audit(init_data="sha256:11")],
            "last audit": self.records.last_audit(),
            "denial": attempt(lambda: self.records.denial(DENIAL).tee),
            "appraisal": getattr(self.records.appraisal(ATTESTATION), "tee", ""),
            "evidence": (self.records.evidence(ATTESTATION) or b"").decode(),
            "bindings": [item.binding.init_data for item in self.kept.list() if item.binding],
            "evidence kept": self.kept.count(),
            "releases": [row.resource for row in self.records.list_released(["a-released"], by_guest=False)],
            "token": attempt(lambda: self.sessions.token(self.cookie, at=NOW)),
            "policies in force": [policy.text.decode() for policy in self.policies.current_all(APPRAISAL)],
            "calls": [row.name for row in self.calls.list(after=0, limit=9)],
            "publishers": [item.name for item in self.publishers.list()],
            "sets": [digest for _, digest in self.publishers.seen().values()],
            "reference history": [item.name for item in self.publishers.history(limit=9)],
            "sources": [item.name for item in self.publishers.newest().values()],
            "proposal": attempt(lambda: self.proposals.get("p-one").created_by),
            "proposals": [item.approved_by for item in self.proposals.list(limit=9)],
            "approved by": sorted(self.proposals.approved_by([str(PATH)], POD, at=NOW)),
            "audit by query": [row.tee for row in self.queries.audit(RecordFilter(), after=0, limit=9)],
            "denials by query": len(self.queries.denials(RecordFilter(), after=0, limit=9)),
            "policy names": list(self.queries.policy_names(APPRAISAL)),
            "revoked": sorted(self.revocations.list()),
            "lease ends": list(self.leases.ends(["key"])),
            "leases": [item.tee for item in self.leases.running(at=NOW)],
            "lease": getattr(self.store.read(lambda c: find_lease(c, self.tenant, str(PATH), "key")), "tee", ""),
        }


NOTHING: dict[str, Any] = {
    "resource": "trust.resource.missing",
    "resource exists": "trust.resource.missing",
    "resources": [],
    "policy": "",
    "policies": [],
    "references": [],
    "roots": [],
    "audit": [],
    "audit of a pod": [],
    "last audit": 0,
    "denial": "trust.denial.missing",
    "appraisal": "",
    "evidence": "",
    "bindings": [],
    "evidence kept": 0,
    "releases": [],
    "token": "trust.session.unknown",
    "policies in force": [],
    "calls": [],
    "publishers": [],
    "sets": [],
    "reference history": [],
    "sources": [],
    "proposal": "trust.approval.missing",
    "proposals": [],
    "approved by": [],
    "audit by query": [],
    "denials by query": 0,
    "policy names": [],
    "revoked": [],
    "leases": [],
    "lease ends": [],
    "lease": "",
}
DENIAL, ATTESTATION = "d-aaaaaaaaaa", "a-aaaaaaaaaa"


def everything(mark: str) -> dict[str, Any]:
    return {
        **dict.fromkeys(("resource", "resource exists", "policy", "denial", "appraisal", "evidence", "token"), mark),
        "policies in force": [mark],
        **{name: [mark] for name in ("calls", "publishers", "sets", "reference history", "sources", "approved by")},
        "proposal": mark,
        "proposals": [(mark,)],
        "audit by query": [mark, mark],
        "denials by query": 1,
        "policy names": ["default"],
        "revoked": [POD],
        "leases": [mark],
        "lease ends": ["key"],
        "lease": mark,
        "resources": [str(PATH)],
        "roots": ["root"],
        "policies": [mark],
        "references": [mark],
        "audit": [mark, mark],
        "audit of a pod": [mark, mark],
        "last audit": 2,
        "bindings": [mark],
        "evidence kept": 1,
        "releases": [mark],
    }


def proposal(mark: str) -> StoredProposal:
    return StoredProposal(
        id="p-one", kind="rule", prefix=str(PATH), document=b"{}", digest="", created_at=NOW, expires_at=NOW + LIFE,
        created_by=mark,
    )  # fmt: skip


def lease(mark: str) -> Lease:
    return Lease(
        resource=str(PATH), guest_key="key", init_data=POD, instance="", tee=mark, level="measured", attestation="",
        granted_at=NOW, expires_at=NOW + LIFE, renewals=0,
    )  # fmt: skip


def attempt(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except CloisterError as err:
        return err.code


def reference(mark: str) -> ReferenceEntry:
    return ReferenceEntry(
        id="podvm", tee="tpm", registers={"pcr00": b"\x01" * 32}, not_after=NOW + timedelta(days=1), origin=mark
    )


def audit(mark: str, **values: str) -> AuditRow:
    decision = DENIED if values else RELEASED
    result = "" if values else "a-released"
    named = {"tee": mark, "resource": mark, "init_data": "sha256:11", "attestation": result, **values}
    return AuditRow(at=NOW, decision=decision, code="code", **named)


def denial(mark: str, identity: str = DENIAL) -> DenialRecord:
    return DenialRecord(id=identity, at=NOW, stage="resource", code="code", message="no", tee=mark)


def appraisal(mark: str) -> AppraisalRecord:
    return AppraisalRecord(
        id=ATTESTATION, at=NOW, tee=mark, level="measured", instance="", init_data="", policy_id="", policy_digest="",
        tier="affirming", registers={}, findings=(), unchecked=(),
    )  # fmt: skip


def binding(mark: str) -> BindingRecord:
    runtime = RuntimeData(nonce="", tee_pubkey={})
    return BindingRecord(runtime_data=runtime, additional_evidence="", init_data=mark, session_secret=b"")


@pytest.fixture
def spaces(place: Place) -> dict[str, Space]:
    store = place.open()
    return {tenant: Space(store, tenant) for tenant in TENANTS}


@pytest.mark.parametrize("writer", TENANTS)
def test_nobody_else_sees_what_one_wrote(spaces: dict[str, Space], writer: str) -> None:
    spaces[writer].fill()
    for tenant, space in spaces.items():
        space.cookie = spaces[writer].cookie  # as if it were stolen
        assert space.seen() == (everything(writer) if tenant == writer else NOTHING), tenant


def test_the_same_names_live_side_by_side(spaces: dict[str, Space]) -> None:
    for space in spaces.values():
        space.fill()
    for tenant, space in spaces.items():
        assert space.seen() == everything(tenant)


DELETIONS: dict[str, Callable[[Space], None]] = {
    "resource": lambda space: space.resources.delete(PATH),
    "reference": lambda space: space.references.delete("podvm"),
    "root": lambda space: space.roots.delete(root_id(ROOT)),
}


@pytest.mark.parametrize("what", DELETIONS)
def test_nobody_deletes_what_is_anothers(spaces: dict[str, Space], what: str) -> None:
    mine, theirs = spaces["acme"], spaces["other-2"]
    theirs.fill()
    with pytest.raises(Refused):
        DELETIONS[what](mine)
    assert theirs.seen() == everything("other-2")
    mine.fill()
    DELETIONS[what](mine)
    assert theirs.seen() == everything("other-2")
    assert mine.seen() != everything("acme")


def test_a_session_of_one_is_not_attested_at_another(spaces: dict[str, Space]) -> None:
    session = spaces["acme"].begin()
    cookie = spaces["acme"].sessions.cookie(session, activated=True)
    for tenant in ("other-2", DEFAULT_TENANT):
        with pytest.raises(Refused) as caught:
            spaces[tenant].sessions.resume(cookie, session.nonce, at=NOW)
        assert caught.value.code == "trust.session.unknown"
    assert spaces["acme"].sessions.resume(cookie, session.nonce, at=NOW) == session


def test_no_tenant_forgets_the_nonces_of_another(spaces: dict[str, Space]) -> None:
    def spend(tenant: str, session: Session, at: datetime) -> bool:
        sessions = spaces[tenant].sessions
        return spaces[tenant].store.write(lambda connection: sessions.spend(connection, session, at=at))

    mine = spaces["acme"].begin()
    assert spend("acme", mine, NOW)
    ahead = NOW + timedelta(days=400)
    late = spaces["other-2"].sessions.begin(tee="tpm", at=ahead, lifetime=LIFE)
    assert spend("other-2", late, ahead)
    assert not spend("acme", mine, NOW)
    again = spaces["acme"].begin()
    assert spend("acme", again, NOW), "another's forgetting keeps nobody out"


def test_one_tenants_denials_push_out_no_others(spaces: dict[str, Space], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "DENIALS_KEPT", 3)  # the number, not what is done with it
    monkeypatch.setattr(records, "EVIDENCE_KEPT", 3)
    spaces["acme"].fill()
    for number in range(6):
        record = denial("other-2", f"d-{number:010}")
        spaces["other-2"].records.record_denial(record, audit("other-2", denial=record.id))
        result = appraisal("other-2")
        result = AppraisalRecord(**{**as_dict(result), "id": f"a-{number:010}"})
        row = appraisal_row(result, b"x", binding=b"", tenant="other-2")
        spaces["other-2"].store.write(lambda connection, row=row: store_appraisal(connection, row))  # type: ignore[misc]  # bound by default
    assert spaces["acme"].seen() == everything("acme")
    kept = [
        attempt(lambda number=number: spaces["other-2"].records.denial(f"d-{number:010}").tee) for number in range(6)
    ]
    assert kept == ["trust.denial.missing"] * 3 + ["other-2"] * 3
    assert [row.sequence for row in spaces["other-2"].records.list_audit()] == [4, 5, 6]
    bodies = [spaces["other-2"].records.evidence(f"a-{number:010}") for number in range(6)]
    assert bodies == [None] * 3 + [b"x"] * 3


def as_dict(record: AppraisalRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


@pytest.mark.parametrize(
    ("source", "target"), [("acme", "other-2"), ("acme", DEFAULT_TENANT), (DEFAULT_TENANT, "acme")]
)
def test_a_row_given_to_another_tenant_does_not_open(spaces: dict[str, Space], source: str, target: str) -> None:
    """Somebody who writes the database cannot move a secret to a tenant whose policy releases it."""
    spaces[source].fill()
    store = spaces[source].store
    store.write(lambda connection: connection.execute(update(schema.resources).values(tenant=target)) and None)
    with pytest.raises(Unavailable) as caught:
        spaces[target].resources.get(PATH)
    assert caught.value.code == "trust.store.sealed_row"


def test_a_session_given_to_another_tenant_is_not_reached(spaces: dict[str, Space]) -> None:
    spaces["acme"].fill()
    store = spaces["acme"].store

    def move(connection: Any) -> None:
        rows = connection.execute(select(schema.nonces)).mappings().all()
        connection.execute(schema.nonces.insert(), [{**row, "tenant": "other-2"} for row in rows])
        connection.execute(update(schema.sessions).values(tenant="other-2"))

    store.write(move)
    with pytest.raises(Refused) as caught:
        spaces["other-2"].sessions.token(spaces["acme"].cookie, at=NOW)
    assert caught.value.code == "trust.session.unknown"


def test_a_binding_given_to_another_tenant_does_not_open(spaces: dict[str, Space]) -> None:
    spaces["acme"].fill()
    store = spaces["acme"].store
    store.write(lambda connection: connection.execute(update(schema.evidence).values(tenant="other-2")) and None)
    with pytest.raises(Unavailable) as caught:
        spaces["other-2"].kept.list()
    assert caught.value.code == "trust.store.sealed_row"


def test_sealed_names_are_never_the_same() -> None:
    names = [sealed_name(tenant, row) for tenant in TENANTS for row in (f"{PATH}#1", f"{PATH}#2")]
    assert len(set(names)) == len(names)
    assert sealed_name(DEFAULT_TENANT, "row") == "row", "what was sealed before there were tenants still opens"


def test_no_statement_forgets_the_tenant(spaces: dict[str, Space]) -> None:
    """Each statement on a table of tenants names the column in its condition, or sets it."""
    theirs = [table.name for table in schema.metadata.sorted_tables if "tenant" in table.c]
    with statements() as seen:
        spaces["acme"].fill()
        spaces["acme"].seen()
        for delete in DELETIONS.values():
            delete(spaces["acme"])
    touched = {name for name in theirs for statement in seen if re.search(rf"\b{name}\b", statement)}
    assert touched >= {"sessions", "nonces", "nonce_marks", "resources", "policies", "reference_entries", "roots"}
    assert touched >= {"audit", "denials", "evidence"}
    for statement in seen:
        for name in theirs:
            if re.search(rf"\b(FROM|UPDATE|INTO) {name}\b", statement):
                bound = re.search(rf"\b(WHERE|AND)\s+{name}\.tenant = |INSERT INTO {name} \(tenant, ", statement)
                assert bound, statement


def test_every_class_that_keeps_rows_is_in_the_matrix() -> None:
    """A class that takes a store and a tenant belongs into `Space`."""
    import importlib
    import inspect
    import pkgutil

    import cloister.trust.store as package

    found = set()
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name.endswith((".postgresql", ".migrations")):
            continue
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind in (IdentityKeyStore, TokenStore, TenantStore):
                continue  # keys of the service's own trust domain; who may administer which tenant; which there are
            if kind.__module__ == module.name and "store" in inspect.signature(kind).parameters:
                assert "tenant" in inspect.signature(kind).parameters, name
                found.add(name)
    assert found == {
        *("ResourceStore", "PolicyStore", "ReferenceStore", "RootStore", "RecordStore", "SessionStore"),
        *("RevocationStore", "LeaseStore", "EvidenceStore"),
        *("CallStore", "PublisherStore", "ProposalStore", "RecordQueries"),
    }
