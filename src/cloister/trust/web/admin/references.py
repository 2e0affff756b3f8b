"""Routes of reference values, their publishers, and trusted roots."""

from __future__ import annotations

from typing import Annotated

from litestar.params import JSONBody, QueryParameter

from cloister.protocol.admin.base import PAGE, Done
from cloister.protocol.admin.references import (
    Publisher,
    PublisherKey,
    PublisherList,
    ReferenceHistory,
    ReferenceList,
    ReferenceProposal,
    ReferenceProposalRequest,
    ReferenceSubmission,
    ReferenceValue,
    Root,
    RootChange,
    RootList,
)
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.trust.access import Permission
from cloister.trust.administration import Office
from cloister.trust.web.admin import wire
from cloister.trust.web.admin.entrance import Admitted, deleting, posting, putting, reading
from cloister.trust.web.admin.parameters import Limit, PathWord, Words
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import CERTIFICATE_BYTES

_WARNING = "observed, not vouched for: compare these registers with values computed from the image before signing them"
EntryName = Annotated[Words, QueryParameter(name="id", description="Id of the entry.")]


@reading("/reference-values", Permission.REFERENCE_READ, "Reference values, expired ones too")
def list_reference_values(office: Admitted) -> ReferenceList:
    """Return all entries by id."""
    return _values(office)


@posting("/reference-values", Permission.REFERENCE_ADD, "Register a signed set, or unsigned values")
def add_reference_values(office: Admitted, data: JSONBody[ReferenceSubmission]) -> ReferenceList:
    """Register what a file holds. Unsigned values take `reference:add-unsigned` as well."""
    added = {entry.id for entry in office.references.submit(data.document.encode())}
    return ReferenceList(values=[value for value in _values(office).values if value.entry.id in added])


@reading("/reference-values/entry", Permission.REFERENCE_READ, "One entry")
def get_reference_value(office: Admitted, identity: EntryName) -> ReferenceValue:
    """Return one entry with where it came from."""
    value = office.references.get(identity)
    return wire.reference_value(value, _names(office), at=office.desk.now())


@deleting("/reference-values/entry", Permission.REFERENCE_DELETE, "Delete an entry")
def delete_reference_value(office: Admitted, identity: EntryName) -> Done:
    """Delete an entry."""
    office.references.delete(identity)
    return Done(subject=identity)


@reading("/reference-values/history", Permission.REFERENCE_READ, "Changes of reference values")
def list_reference_history(
    office: Admitted,
    limit: Limit = PAGE,
    identity: Annotated[Words, QueryParameter(name="id", description="Of one entry.")] = "",
) -> ReferenceHistory:
    """Return changes, the newest first."""
    found = office.references.history(identity=identity, limit=limit)
    return ReferenceHistory(events=[wire.reference_event(change) for change in found])


@posting("/reference-values/proposal", Permission.REFERENCE_READ, "A file of observed values, to be signed")
def propose_reference_values(office: Admitted, data: JSONBody[ReferenceProposalRequest]) -> ReferenceProposal:
    """Return an unsigned set made from kept evidence. Nothing is registered."""
    document = office.references.propose(data.attestation, days=data.days)
    return ReferenceProposal(document=document.decode(), warning=_WARNING)


@reading("/publishers", Permission.REFERENCE_READ, "Whose signatures on reference values are accepted")
def list_publishers(office: Admitted) -> PublisherList:
    """Return publishers by key id."""
    return PublisherList(publishers=[wire.publisher(item) for item in office.references.publishers()])


@putting("/publishers", Permission.PUBLISHER_WRITE, "Accept a publisher's signatures")
def put_publisher(office: Admitted, data: JSONBody[PublisherKey]) -> Publisher:
    """Register a publisher's key."""
    return wire.publisher(office.references.put_publisher(data.name, data.pem.encode()))


@deleting("/publishers/{key:str}", Permission.PUBLISHER_WRITE, "Accept nothing more of a publisher")
def delete_publisher(office: Admitted, key: PathWord) -> Done:
    """Remove a publisher; what it signed before stays until it is deleted."""
    office.references.remove_publisher(key)
    return Done(subject=key)


@reading("/roots", Permission.ROOT_READ, "Trusted roots")
def list_roots(office: Admitted) -> RootList:
    """Return trusted roots."""
    return RootList(roots=[wire.root(item) for item in office.roots.list()])


@posting("/roots", Permission.ROOT_WRITE, "Trust a root")
def add_root(office: Admitted, data: JSONBody[RootChange]) -> Root:
    """Trust a root for its technology and level."""
    root = TrustedRoot(
        tee=data.tee,
        level=Level(data.level),
        name=data.name,
        der=decode_b64(data.der, path="der", ceiling=CERTIFICATE_BYTES),
        instance=data.instance,
    )
    office.roots.add(root)
    return wire.root(root)


@deleting("/roots/{root:str}", Permission.ROOT_WRITE, "Stop trusting a root")
def delete_root(office: Admitted, root: PathWord) -> Done:
    """Stop trusting a root."""
    office.roots.remove(root)
    return Done(subject=root)


def _values(office: Office) -> ReferenceList:
    names, at = _names(office), office.desk.now()
    return ReferenceList(values=[wire.reference_value(value, names, at=at) for value in office.references.list()])


def _names(office: Office) -> dict[str, str]:
    return {item.key_id: item.name for item in office.references.publishers()}


ROUTES = (
    list_reference_values,
    add_reference_values,
    get_reference_value,
    delete_reference_value,
    list_reference_history,
    propose_reference_values,
    list_publishers,
    put_publisher,
    delete_publisher,
    list_roots,
    add_root,
    delete_root,
)
