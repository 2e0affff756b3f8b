"""Signs image manifests as cosign does in key mode, so that both cosign and the guest verify them
(SIGNATURE_SPEC.md, BUNDLE_SPEC.md).

What is signed is the manifest that holds the encrypted layers, so sealing comes first. The classic signature is stored
beside the image under the tag `sha256-<hex>.sig`, together with those that were there before; the bundle of cosign 3
refers to the image. No transparency log, no certificates: those are `cloister.imagetool.keyless`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from cloister.crypto.signer import ECDSAP256PublicKey, Signer
from cloister.errors import ImageRefused, Refused
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, is_index
from cloister.oci.referrers import attach_referrer
from cloister.oci.signing.bundle import (
    BUNDLE_TYPE,
    CONTENT_ANNOTATION,
    IN_TOTO_TYPE,
    PREDICATE_ANNOTATION,
    SIGN_PREDICATE,
    Bundle,
    encode_bundle,
    encode_statement,
)
from cloister.oci.signing.referred import read_bundles
from cloister.oci.signing.simplesigning import (
    SignatureCandidate,
    Statement,
    encode_payload,
    encode_signatures,
    parse_payload,
    read_candidates,
    signature_tag,
)
from cloister.oci.signing.verify import ExactRepository, verify_by_key
from cloister.oci.store import ImageStore, StoredManifest, read_manifest
from cloister.wire.limits import IMAGE_SIGNATURES

_EMPTY: Final = b"{}"
_EMPTY_CONFIG: Final = "application/vnd.oci.empty.v1+json"


def sign_image(
    store: ImageStore, selector: str | Digest, signer: Signer, *, repository: str, at: datetime | None = None
) -> Digest:
    """Sign the manifest or index under `selector` and store the signature beside it.

    Args:
        store: where the image is and the signature goes.
        selector: the image, by tag or digest. Give the digest: a tag is what the store says it is at this moment.
        signer: holds the private key.
        repository: the name the signature is for, registry and repository without tag; the guest's policy names the
        same.
        at: aware time that the signature says it was made at; None for a signature that says none.

    Returns:
        The digest that was signed. Signing again with the same key changes nothing, or with `at` only the time.

    Raises:
        ImageRefused: `oci.signing.too_many`, `<store>.manifest_missing`, `<store>.digest_mismatch`, `oci.manifest.*`.
        Unavailable: the store cannot be used now.
    """
    stored = read_manifest(store, selector)
    is_index(stored.raw, media_type=stored.media_type)  # refuses what is neither manifest nor index
    digest = Digest.of(stored.raw)
    statement = Statement(repository, digest)
    payload = encode_payload(statement, seconds=None if at is None else int(at.timestamp()))
    existing = list(read_candidates(store, digest))
    older = [candidate for candidate in existing if _is_same(candidate, statement, signer.public_key)]
    if any(at is None or candidate.payload == payload for candidate in older):
        return digest
    existing = [candidate for candidate in existing if candidate not in older]
    if len(existing) >= IMAGE_SIGNATURES:
        raise ImageRefused(
            "oci.signing.too_many", "image has too many signatures", expected=f"at most {IMAGE_SIGNATURES}"
        )
    candidates = (*existing, SignatureCandidate(payload, signer.sign(payload)))
    manifest, config = encode_signatures(candidates)
    for blob in (config, *(candidate.payload for candidate in candidates)):
        if not store.has_blob(Digest.of(blob)):
            store.write_blob([blob])
    store.write_manifest(manifest, OCI_MANIFEST, signature_tag(digest))
    return digest


def sign_bundle(store: ImageStore, selector: str | Digest, signer: Signer, *, repository: str) -> Digest:
    """Sign the manifest or index under `selector` with a Sigstore bundle that refers to it; otherwise as `sign_image`.

    Raises:
        ImageRefused: `oci.referrers.*`, or as `sign_image`.
        Unavailable: the store cannot be used now.
    """
    stored = read_manifest(store, selector)
    digest = Digest.of(stored.raw)
    for candidate in read_bundles(store, digest):
        try:
            verify_by_key(candidate, stored.raw, [signer.public_key], ExactRepository(repository))
        except Refused:
            continue
        return digest
    statement = encode_statement(digest, repository=repository)
    unsigned = Bundle(
        version="0.3",
        payload=statement,
        payload_type=IN_TOTO_TYPE,
        signature=b"",
        key_hint=base64.b64encode(bytes.fromhex(signer.public_key.fingerprint)).decode(),
    )
    signature = signer.sign(unsigned.signed_bytes(stored.raw))
    attach_bundle(store, stored, encode_bundle(msgspec.structs.replace(unsigned, signature=signature)))
    return digest


def attach_bundle(store: ImageStore, stored: StoredManifest, bundle: bytes) -> Digest:
    """Store a Sigstore bundle so that it refers to the manifest or index `stored`, and return its manifest's digest.

    Raises:
        ImageRefused: `oci.referrers.*`, `oci.manifest.*`.
        Unavailable: the store cannot be used now.
    """
    annotations = {CONTENT_ANNOTATION: "dsse-envelope", PREDICATE_ANNOTATION: SIGN_PREDICATE}
    return attach_artifact(store, stored, bundle, BUNDLE_TYPE, config_type=_EMPTY_CONFIG, annotations=annotations)


def attach_artifact(
    store: ImageStore,
    stored: StoredManifest,
    content: bytes,
    media_type: str,
    *,
    config_type: str,
    annotations: Mapping[str, str],
) -> Digest:
    """Store `content` as the one layer of a manifest that refers to `stored`; errors as `attach_bundle`.

    Its type is `media_type` where the configuration is the empty one, else the configuration's (Notation).
    """
    subject_type = stored.media_type or (OCI_INDEX if stored.is_index else OCI_MANIFEST)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        **({"artifactType": media_type} if config_type == _EMPTY_CONFIG else {}),
        "config": {"mediaType": config_type, "digest": str(Digest.of(_EMPTY)), "size": len(_EMPTY)},
        "layers": [{"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}],
        "subject": {"mediaType": subject_type, "digest": str(Digest.of(stored.raw)), "size": len(stored.raw)},
        "annotations": dict(annotations),
    }
    for blob in (_EMPTY, content):
        if not store.has_blob(Digest.of(blob)):
            store.write_blob([blob])
    return attach_referrer(store, encode_document(document))


def _is_same(candidate: SignatureCandidate, statement: Statement, key: ECDSAP256PublicKey) -> bool:
    """Whether a signature says the same by the same key, at whatever time."""
    try:
        key.verify(candidate.payload, candidate.signature)
        return parse_payload(candidate.payload) == statement
    except Refused:
        return False
