"""Signs images as Notation does, with a key and its certificate chain; the envelope refers to the image.

The signature is for the manifest's digest, whatever its repository: Notation has no name in what it signs. No
timestamp countersignature, no plug-ins. The key is in this process' memory.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cloister.crypto.pem import split_pem
from cloister.errors import FormatRefused, ImageRefused
from cloister.imagetool.sign import attach_artifact
from cloister.oci.digest import Digest
from cloister.oci.manifest import parse_either
from cloister.oci.signing.notation import (
    THUMBPRINTS,
    SigningKey,
    TargetArtifact,
    load_chain,
    sign_envelope,
    thumbprints,
)
from cloister.oci.signing.referred import NOTATION_ARTIFACT
from cloister.oci.store import ImageStore, read_manifest
from cloister.wire.limits import CERTIFICATE_BYTES

_CODE: Final = "oci.signing.notation"


class NotationKey(msgspec.Struct, frozen=True, kw_only=True):
    """A private key with its certificates, the key's own first."""

    key: SigningKey
    chain: tuple[x509.Certificate, ...]

    def __repr__(self) -> str:
        """Show whose key it is, never the key."""
        return f"NotationKey({self.chain[0].subject.rfc4514_string()})"


def load_signing_key(key_pem: bytes, chain_pem: bytes) -> NotationKey:
    """Parse a PEM private key and PEM certificates.

    Raises:
        ImageRefused: `oci.signing.notation.key`, `oci.signing.notation.certificate.malformed`.
    """
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise ImageRefused(f"{_CODE}.key", "not a readable PEM private key") from err
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise ImageRefused(f"{_CODE}.key", "key is of a kind that is not accepted", expected="RSA or ECDSA")
    try:
        blocks = split_pem(chain_pem, code=f"{_CODE}.certificate", ceiling=CERTIFICATE_BYTES)
    except FormatRefused as err:
        raise ImageRefused(f"{_CODE}.certificate.malformed", err.message) from err
    return NotationKey(key=key, chain=load_chain(blocks))


def sign_notation(
    store: ImageStore,
    selector: str | Digest,
    signer: NotationKey,
    *,
    media_type: str,
    expires: datetime | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Digest:
    """Sign the manifest or index under `selector` and return its digest.

    Args:
        store: where the image is and the signature goes.
        selector: the image, by tag or digest.
        signer: key and chain.
        media_type: `NOTATION_JWS` or `NOTATION_COSE`.
        expires: aware time after which the signature does not count.
        clock: says when it is made.

    Raises:
        ImageRefused: `oci.signing.notation.*`, `oci.referrers.*`, `oci.manifest.*`.
        Unavailable: the store cannot be used now.
    """
    stored = read_manifest(store, selector)
    document = parse_either(stored.raw, media_type=stored.media_type)
    target = TargetArtifact(media_type=document.media_type, digest=document.digest, size=len(stored.raw))
    envelope = sign_envelope(target, signer.key, signer.chain, media_type=media_type, at=clock(), expires=expires)
    annotations = {THUMBPRINTS: thumbprints(signer.chain)}
    attach_artifact(store, stored, envelope, media_type, config_type=NOTATION_ARTIFACT, annotations=annotations)
    return document.digest
