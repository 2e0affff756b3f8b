"""Items of the cache as a verifier takes them: certificates, revocation lists, documents. Fetches nothing.

Whatever is had is handed over, however old: a verifier that sees a stale list says so, and the policy's grace decides.
What is not had is named, so that a caller can say which command gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cloister.rats.endorsement import Document
from cloister.tee.collateral.content import Entry
from cloister.tee.collateral.files import split_bundle
from cloister.tee.collateral.intel import assemble
from cloister.tee.collateral.item import Item, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was had of some items; the first three fields are those of `Endorsements`.

    Attributes:
        certificates: DER.
        revocation_lists: DER.
        documents: DCAP collateral, manifests under their ids, OCSP responses.
        entries: where each came from, and how old it is.
        missing: items that are not had.
    """

    certificates: tuple[bytes, ...]
    revocation_lists: tuple[bytes, ...]
    documents: tuple[Document, ...]
    entries: tuple[Entry, ...]
    missing: tuple[Item, ...]

    def stale(self, at: datetime) -> tuple[Entry, ...]:
        """Return the entries that may not be used at that time without grace."""
        return tuple(entry for entry in self.entries if not entry.fresh(at))


def load(items: Sequence[Item], get: Callable[[Item], Entry | None]) -> Loaded:
    """Return what is had of `items`.

    Args:
        items: identities, as of `needs_of`.
        get: `CollateralCache.get`, or the like.

    Raises:
        Refused: an entry does not parse any more; it was checked before it was kept.
    """
    found = {item: get(item) for item in dict.fromkeys(items)}
    entries = [entry for entry in found.values() if entry is not None]
    certificates: list[bytes] = []
    lists: list[bytes] = []
    documents: list[Document] = []
    whole, rest = _dcap(entries)
    documents.extend(whole)
    for entry in rest:
        content, kind = entry.content, entry.item.kind
        if kind is Kind.VCEK:
            certificates.append(content.data)
        elif kind is Kind.AMD_CHAIN:
            certificates.extend(split_bundle(content.data).certificates)
        elif kind in (Kind.AMD_CRL, Kind.PCK_CRL, Kind.INTEL_ROOT_CRL):
            lists.append(content.data)
        else:
            documents.append(Document(name=_document_name(entry.item), data=content.data))
        if content.chain:
            certificates.extend(split_bundle(content.chain.encode()).certificates)
    return Loaded(
        certificates=tuple(dict.fromkeys(certificates)),
        revocation_lists=tuple(dict.fromkeys(lists)),
        documents=tuple(documents),
        entries=tuple(entries),
        missing=tuple(item for item, entry in found.items() if entry is None),
    )


def _dcap(entries: Sequence[Entry]) -> tuple[list[Document], list[Entry]]:
    """Return whole sets of DCAP collateral as one document each, and the entries that are in none."""
    of = {
        kind: [entry for entry in entries if entry.item.kind is kind]
        for kind in (Kind.TCB_INFO, Kind.QE_IDENTITY, Kind.PCK_CRL, Kind.INTEL_ROOT_CRL)
    }
    documents: list[Document] = []
    used: set[Item] = set()
    for tcb_info in of[Kind.TCB_INFO]:
        for identity in of[Kind.QE_IDENTITY]:
            if (identity.item["tee"], identity.item["update"]) != (tcb_info.item["tee"], tcb_info.item["update"]):
                continue
            for pck_crl in of[Kind.PCK_CRL]:
                for root_crl in of[Kind.INTEL_ROOT_CRL]:
                    parts = (tcb_info, identity, pck_crl, root_crl)
                    data = assemble(*(part.content for part in parts))
                    documents.append(Document(name=f"dcap-{tcb_info.item['tee']}-{tcb_info.item['fmspc']}", data=data))
                    used.update(part.item for part in parts)
    return documents, [entry for entry in entries if entry.item not in used]


def _document_name(item: Item) -> str:
    return item["id"] if item.kind is Kind.RIM else f"{item.kind.value}-{item.key[:16]}"
