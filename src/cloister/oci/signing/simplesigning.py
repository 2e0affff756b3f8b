"""Cosign's classic signature: a simple-signing payload in a manifest tagged `sha256-<hex>.sig` (sigstore
SIGNATURE_SPEC.md).

The payload says "the manifest with this digest, in this repository, was signed"; the signature over its exact bytes
stands in an annotation of the layer that holds it, in keyless mode beside a certificate and a promise of the
transparency log. Formats only: `cloister.oci.signing.verify` judges. Everything
parsed here is from an untrusted registry until its signature verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused, ImageRefused
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.document import Members, encode_document, parse_document
from cloister.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor, parse_manifest
from cloister.oci.store import ImageSource, read_blob
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import IMAGE_SIGNATURES, SIGNATURE_BYTES, SIGNATURE_PAYLOAD_BYTES

PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
CERTIFICATE_ANNOTATION: Final = "dev.sigstore.cosign/certificate"
CHAIN_ANNOTATION: Final = "dev.sigstore.cosign/chain"
LOG_ANNOTATION: Final = "dev.sigstore.cosign/bundle"
_STATEMENT_TYPE: Final = "cosign container image signature"
COSIGN_TYPES: Final = (_STATEMENT_TYPE, "https://sigstore.dev/cosign/sign/v1")  # the second since cosign 3
ATOMIC_TYPE: Final = "atomic container signature"  # containers/image, docs/containers-signature.5.md
_CODE: Final = "oci.signing.payload"
_LATEST_SECONDS: Final = 253_402_300_800  # the year 10000, behind what a date can say


class Statement(msgspec.Struct, frozen=True):
    """What a payload states: repository (for `ATOMIC_TYPE` with its tag) and manifest digest."""

    repository: str
    digest: Digest


class SignatureCandidate(msgspec.Struct, frozen=True):
    """A payload and a signature that may be over it.

    Attributes:
        payload: the signed bytes.
        signature: as decoded from its annotation.
        annotations: of the layer, which hold a keyless signature's certificate and log entry.
        place: where it was found, for the report.
    """

    payload: bytes
    signature: bytes
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    place: str = ""


def signature_tag(digest: Digest) -> str:
    """Return the tag under which the signatures of `digest` are found."""
    return f"{digest.algorithm}-{digest.hex}.sig"


def encode_payload(statement: Statement, *, kind: str = _STATEMENT_TYPE, seconds: int | None = None) -> bytes:
    """Return the payload as cosign (or, for `ATOMIC_TYPE`, containers/image) writes it, to be signed as it is.

    With `seconds` since 1970 it says when it was signed, as containers-signature(5) writes that.
    """
    critical = {
        "identity": {"docker-reference": statement.repository},
        "image": {"docker-manifest-digest": str(statement.digest)},
        "type": kind,
    }
    optional: dict[str, object] = {"creator": "cloister"} if kind == ATOMIC_TYPE or seconds is not None else {}
    if seconds is not None:
        optional["timestamp"] = seconds
    return encode_document({"critical": critical, "optional": optional or None})


def parse_payload(payload: bytes, types: Sequence[str] = COSIGN_TYPES) -> Statement:
    """Parse a payload.

    Args:
        payload: the signed bytes.
        types: which kinds of statement are accepted: those of cosign, or `ATOMIC_TYPE` inside OpenPGP messages. One
            kind is never taken for another.

    Raises:
        ImageRefused: `oci.signing.payload.*`. Members of `optional` are the signer's own and are not looked at.
    """
    top = Members(parse_document(payload, ceiling=SIGNATURE_PAYLOAD_BYTES, code=_CODE), path="", code=_CODE)
    top.only("critical", "optional")
    critical = top.members("critical")
    critical.only("identity", "image", "type")
    kind = critical.text("type")
    if kind not in types:
        raise ImageRefused(
            f"{_CODE}.unknown_type",
            "payload is not a container image signature",
            path="critical.type",
            expected=types[0],
            actual=kind[:80],
        )
    return Statement(
        repository=critical.members("identity").text("docker-reference"),
        digest=parse_digest(critical.members("image").text("docker-manifest-digest")),
    )


def signed_seconds(payload: bytes) -> int | None:
    """Return when a payload says that it was signed, seconds since 1970; None where it says nothing or no time.

    To be believed as far as whoever signed the payload is.
    """
    document = parse_document(payload, ceiling=SIGNATURE_PAYLOAD_BYTES, code=_CODE)
    optional = document.get("optional")
    seconds = optional.get("timestamp") if isinstance(optional, dict) else None
    return seconds if type(seconds) is int and 0 <= seconds < _LATEST_SECONDS else None


def read_candidates(source: ImageSource, digest: Digest) -> tuple[SignatureCandidate, ...]:
    """Read the signatures a store holds for `digest`; none is an empty tuple.

    One that cannot be read as a signature is left out: anybody may add such a layer, and it must not hide a good one.

    Raises:
        ImageRefused: the signature manifest itself is malformed (`oci.manifest.*`), has too many layers
            (`oci.signing.too_many`), or a payload has not its digest.
    """
    stored = source.get_manifest(signature_tag(digest))
    if stored is None:
        return ()
    manifest = parse_manifest(stored.raw, media_type=stored.media_type)
    layers = [layer for layer in manifest.layers if layer.media_type == PAYLOAD_TYPE]
    if len(layers) > IMAGE_SIGNATURES:
        raise ImageRefused(
            "oci.signing.too_many", "image has too many signatures", expected=f"at most {IMAGE_SIGNATURES}"
        )
    candidates = []
    for number, layer in enumerate(layers):
        signature = _read_signature(layer, number)
        if signature is not None:
            payload = read_blob(source, layer, ceiling=SIGNATURE_PAYLOAD_BYTES)
            place = f"{signature_tag(digest)} layers[{number}]"
            candidates.append(SignatureCandidate(payload, signature, layer.annotations, place))
    return tuple(candidates)


def encode_signatures(candidates: Sequence[SignatureCandidate]) -> tuple[bytes, bytes]:
    """Return manifest and configuration that hold `candidates`, as cosign writes them.

    The payloads are blobs of their own, and are stored by whoever stores the manifest.
    """
    diff_ids = [str(Digest.of(candidate.payload)) for candidate in candidates]
    config = encode_document(
        {
            "architecture": "",
            "created": "0001-01-01T00:00:00Z",
            "history": [{"created": "0001-01-01T00:00:00Z"} for _ in candidates],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {},
        }
    )
    layers: list[dict[str, Any]] = [  # Any: JSON
        {
            "mediaType": PAYLOAD_TYPE,
            "size": len(candidate.payload),
            "digest": digest,
            "annotations": {**candidate.annotations, SIGNATURE_ANNOTATION: encode_b64(candidate.signature)},
        }
        for candidate, digest in zip(candidates, diff_ids, strict=True)
    ]
    manifest = encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "size": len(config), "digest": str(Digest.of(config))},
            "layers": layers,
        }
    )
    return manifest, config


def _read_signature(layer: Descriptor, number: int) -> bytes | None:
    try:
        return decode_b64(
            layer.annotations.get(SIGNATURE_ANNOTATION, ""),
            path=f"layers[{number}].annotations.{SIGNATURE_ANNOTATION}",
            ceiling=SIGNATURE_BYTES,
        )
    except FormatRefused:
        return None
