"""Signatures that refer to an image (OCI referrers): Sigstore bundles, and the envelopes of Notation.

Every manifest that refers to the image is looked at, whatever type the store lists it under: cosign 2.5 lists bundles
as `application/vnd.oci.empty.v1+json` where a registry has no referrers API. What cannot be read becomes a candidate
that says so, and hides no other. Untrusted until verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.manifest import Descriptor
from cloister.oci.referrers import read_referrers
from cloister.oci.signing.verify import BundleCandidate
from cloister.oci.store import ImageSource, read_blob
from cloister.wire.limits import SIGNATURE_BUNDLE_BYTES, SIGNATURE_REFERRERS

NOTATION_JWS: Final = "application/jose+json"
NOTATION_COSE: Final = "application/cose"
NOTATION_ARTIFACT: Final = "application/vnd.cncf.notary.signature"
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle"


class EnvelopeCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A Notation envelope that refers to the image, as fetched; `refusal` says why it could not be."""

    media_type: str
    raw: bytes
    place: str = ""
    refusal: ImageRefused | None = None


def read_referred(source: ImageSource, digest: Digest) -> Iterator[BundleCandidate | EnvelopeCandidate]:
    """Yield bundles and envelopes that refer to `digest`, from at most `SIGNATURE_REFERRERS` manifests.

    Raises:
        ImageRefused: the store's list is none (`oci.referrers.*`).
        Unavailable: the store cannot be read now.
    """
    for manifest in islice(read_referrers(source, digest), SIGNATURE_REFERRERS):
        if len(manifest.layers) != 1:
            continue
        layer, place = manifest.layers[0], f"referrer {manifest.digest}"
        if layer.media_type.startswith(_BUNDLE):
            raw, refusal = _read(source, layer)
            yield BundleCandidate(raw=raw, place=place, refusal=refusal)
        elif layer.media_type in (NOTATION_JWS, NOTATION_COSE) and manifest.config.media_type == NOTATION_ARTIFACT:
            raw, refusal = _read(source, layer)
            yield EnvelopeCandidate(media_type=layer.media_type, raw=raw, place=place, refusal=refusal)


def read_bundles(source: ImageSource, digest: Digest) -> tuple[BundleCandidate, ...]:
    """Return the bundles that refer to `digest`; errors as `read_referred`."""
    return tuple(item for item in read_referred(source, digest) if isinstance(item, BundleCandidate))


def _read(source: ImageSource, layer: Descriptor) -> tuple[bytes, ImageRefused | None]:
    try:
        return read_blob(source, layer, ceiling=SIGNATURE_BUNDLE_BYTES), None
    except ImageRefused as err:
        return b"", err
