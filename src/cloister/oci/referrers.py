"""What refers to an image: signatures, bundles and attestations stored beside it (OCI distribution specification 1.1,
"Listing Referrers" and "Referrers Tag Schema"; image specification 1.1, `subject`).

Registries with the referrers API list them by themselves; where there is none, an index under the tag `sha256-<hex>`
does. In a layout they are entries of the index, as oras writes them, or such a tag. Whoever may write to a store adds
to the list, and the list may say anything about what it names: nothing is chosen by it. `read_referrers` fetches each
candidate and believes the candidate's own bytes, because some tools list signatures under no type of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from cloister.errors import ImageRefused, Unavailable
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.manifest import (
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    artifact_type_of,
    describe_referrer,
    parse_either,
    parse_index,
    parse_manifest,
)
from cloister.oci.store import ImageSource, ImageStore, read_manifest, referrers_tag, too_many_referrers
from cloister.wire.limits import MANIFEST_BYTES, REFERRERS, REGISTRY_ATTEMPTS

_CODE: Final = "oci.referrers"


def list_referrers(source: ImageSource, digest: Digest) -> tuple[Descriptor, ...]:
    """Return descriptors of everything that a store says refers to `digest`, each once, in the store's order.

    Untrusted: also type and annotations are whatever the store says.

    Raises:
        ImageRefused: `oci.referrers.too_many`, `oci.manifest.*` for a list that is none.
        Unavailable: the store cannot be read now.
    """
    found: dict[Digest, Descriptor] = {}
    listed = source.referrers(digest)
    for descriptor in _tagged(source, digest) if listed is None else listed:
        found.setdefault(descriptor.digest, descriptor)
        if len(found) > REFERRERS:
            raise too_many_referrers(digest)
    return tuple(found.values())


def read_referrers(
    source: ImageSource, digest: Digest, *, artifact_types: Collection[str] = ()
) -> Iterator[ImageManifest]:
    """Yield the manifests that refer to `digest` by their own word, fetched one after the other as they are asked for.

    What has not its digest, does not parse or has another subject is left out: anybody may add such an entry, and it
    must not hide a good one. Whoever takes all of them fetches up to a thousand; stop at a ceiling of your own.

    Args:
        source: where the image is.
        digest: of the manifest or index referred to.
        artifact_types: leave out those of another type; what counts is `artifactType` of the manifest, or else the
            media type of its configuration. Empty takes all.

    Raises:
        ImageRefused: as `list_referrers`.
        Unavailable: the store cannot be read now.
    """
    for descriptor in list_referrers(source, digest):
        if descriptor.media_type not in MANIFEST_TYPES:
            continue
        try:
            stored = read_manifest(source, descriptor.digest)
            manifest = parse_manifest(stored.raw, media_type=stored.media_type)
        except ImageRefused:
            continue
        kind = artifact_type_of(manifest)
        if manifest.subject is not None and manifest.subject.digest == digest and kind in (artifact_types or (kind,)):
            yield manifest


def attach_referrer(store: ImageStore, raw: bytes, *, media_type: str = OCI_MANIFEST) -> Digest:
    """Store a manifest whose blobs are stored so that it is found from its subject, and return its digest.

    A registry that does not confirm the subject (`OCI-Subject`) gets the list under the fallback tag updated, which no
    registry does atomically: it is read again afterwards, and written again where another writer was in between.

    Raises:
        ImageRefused: `oci.referrers.no_subject`, `oci.referrers.too_many`, `oci.manifest.*`.
        Unavailable: `oci.referrers.overwritten`, or the store cannot be used now.
    """
    document = parse_either(raw, media_type=media_type)
    if document.subject is None:
        raise ImageRefused(f"{_CODE}.no_subject", "manifest refers to nothing", path="subject")
    if not store.write_referrer(raw, media_type):
        _list_under_tag(store, document.subject.digest, describe_referrer(document))
    return document.digest


def _tagged(source: ImageSource, digest: Digest) -> tuple[Descriptor, ...]:
    stored = source.get_manifest(referrers_tag(digest))
    return () if stored is None else parse_index(stored.raw, media_type=stored.media_type).manifests


def _list_under_tag(store: ImageStore, subject: Digest, entry: dict[str, Any]) -> None:  # Any: JSON
    tag = referrers_tag(subject)
    for _ in range(REGISTRY_ATTEMPTS):
        stored = store.get_manifest(tag)
        entries: list[dict[str, Any]] = []  # Any: JSON
        if stored is not None:
            parse_index(stored.raw, media_type=stored.media_type)  # refuses what is no list
            entries = parse_document(stored.raw, ceiling=MANIFEST_BYTES, code=_CODE)["manifests"]
        if entry["digest"] in [item["digest"] for item in entries]:
            return
        if len(entries) >= REFERRERS:
            raise too_many_referrers(subject)
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, entry]}
        store.write_manifest(encode_document(index), OCI_INDEX, tag)
    raise Unavailable(
        f"{_CODE}.overwritten", "another writer overwrites the list of what refers to the image", path=tag
    )
