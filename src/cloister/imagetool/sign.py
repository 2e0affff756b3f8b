"""Signs image manifests as cosign does in key mode, so that both cosign and the guest verify them
(SIGNATURE_SPEC.md).

What is signed is the manifest that holds the encrypted layers, so sealing comes first. The signature is stored
beside the image under the tag `sha256-<hex>.sig`, together with those that were there before. No transparency log,
no certificates.
"""

from __future__ import annotations

from cloister.crypto.signer import ECDSAP256PublicKey, Signer
from cloister.errors import ImageRefused, Refused
from cloister.oci.digest import Digest
from cloister.oci.manifest import OCI_MANIFEST, is_index
from cloister.oci.signing.simplesigning import (
    SignatureCandidate,
    Statement,
    encode_payload,
    encode_signatures,
    read_candidates,
    signature_tag,
)
from cloister.oci.store import ImageStore, read_manifest
from cloister.wire.limits import IMAGE_SIGNATURES


def sign_image(store: ImageStore, selector: str | Digest, signer: Signer, *, repository: str) -> Digest:
    """Sign the manifest or index under `selector` and store the signature beside it.

    Args:
        store: where the image is and the signature goes.
        selector: the image, by tag or digest. Give the digest: a tag is what the store says it is at this moment.
        signer: holds the private key.
        repository: the name the signature is for, registry and repository without tag; the guest's policy names the
        same.

    Returns:
        The digest that was signed. Signing again with the same key changes nothing.

    Raises:
        ImageRefused: `oci.signing.too_many`, `<store>.manifest_missing`, `<store>.digest_mismatch`, `oci.manifest.*`.
        Unavailable: the store cannot be used now.
    """
    stored = read_manifest(store, selector)
    is_index(stored.raw, media_type=stored.media_type)  # refuses what is neither manifest nor index
    digest = Digest.of(stored.raw)
    payload = encode_payload(Statement(repository, digest))
    existing = read_candidates(store, digest)
    if any(_is_same(candidate, payload, signer.public_key) for candidate in existing):
        return digest
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


def _is_same(candidate: SignatureCandidate, payload: bytes, key: ECDSAP256PublicKey) -> bool:
    if candidate.payload != payload:
        return False
    try:
        key.verify(payload, candidate.signature)
    except Refused:
        return False
    return True
