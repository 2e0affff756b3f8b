"""Sigstore bundles (protobuf-specs `sigstore_bundle.proto`, versions 0.1 to 0.3): one file with a signature and what
vouches for it.

What is signed is either a message (here: the manifest's bytes) or an in-toto statement in a DSSE envelope that names
the manifest's digest; who signed is a key, of which the bundle has only a hint, or a certificate with entries of a
transparency log. Formats only: the hint and everything else here is from an untrusted registry until a verifier says
otherwise. Members the format does not define are refused. Loaded in the guest, so nothing of X.509 here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cloister.crypto.pae import pre_authentication_encoding
from cloister.errors import FormatRefused, ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.document import Members, encode_document, parse_document
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import (
    CERTIFICATE_BYTES,
    CERTIFICATE_CHAIN,
    MANIFEST_BYTES,
    SIGNATURE_BUNDLE_BYTES,
    SIGNATURE_BYTES,
    SIGNATURE_LOG_ENTRIES,
    SIGNATURE_SUBJECTS,
    TIMESTAMP_BYTES,
)

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
IN_TOTO_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
CONTENT_ANNOTATION: Final = "dev.sigstore.bundle.content"
PREDICATE_ANNOTATION: Final = "dev.sigstore.bundle.predicateType"
_STATEMENT_TYPES: Final = ("https://in-toto.io/Statement/v0.1", STATEMENT_TYPE)
_VERSION: Final = re.compile(r"application/vnd\.dev\.sigstore\.bundle(?:\.v(0\.[3])\+json|\+json;version=(0\.[123]))")
_HASHES: Final = {"SHA2_256": "sha256", "SHA2_512": "sha512"}
_INTEGER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_INTEGER: Final = 2**63 - 1
_PROOF_HASHES: Final = 64
_CHECKPOINT_CHARS: Final = 16 * 1024
_CODE: Final = "oci.signing.bundle"
_STATEMENT: Final = "oci.signing.statement"


class InclusionProof(msgspec.Struct, frozen=True, kw_only=True):
    """That an entry is in a log, and the log's signed statement of that tree."""

    log_index: int
    root: bytes
    tree_size: int
    hashes: tuple[bytes, ...]
    checkpoint: str


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a transparency log, with a promise (SET), a proof, or both; 0 seconds is no time."""

    log_id: bytes
    log_index: int
    integrated_seconds: int
    body: bytes
    promise: bytes = b""
    proof: InclusionProof | None = None
    kind: str = ""
    version: str = ""


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed bundle: nothing in it is true yet.

    Attributes:
        version: `0.1`, `0.2` or `0.3`.
        payload_type: of the DSSE envelope; empty for a signature over a message.
        payload: of the envelope.
        message_digest: what the bundle says the message's digest is; None for an envelope.
        signature: the one signature.
        key_hint: names a key, proves nothing.
        certificates: DER, the signer's first; empty when a key signed.
        entries: of transparency logs.
        timestamps: RFC 3161 responses.
    """

    version: str
    payload_type: str = ""
    payload: bytes = b""
    message_digest: Digest | None = None
    signature: bytes
    key_hint: str = ""
    certificates: tuple[bytes, ...] = ()
    entries: tuple[LogEntry, ...] = ()
    timestamps: tuple[bytes, ...] = ()

    def signed_bytes(self, artifact: bytes) -> bytes:
        """Return what the signature is over; `artifact` are the bytes that a message signature must be over."""
        if self.message_digest is None:
            return pre_authentication_encoding(self.payload, self.payload_type)
        return artifact


class InTotoStatement(msgspec.Struct, frozen=True, kw_only=True):
    """What an in-toto statement says: of which artifacts (name and digests by algorithm), and which kind of thing."""

    predicate_type: str
    subjects: tuple[tuple[str, Mapping[str, str]], ...]


def parse_bundle(data: bytes) -> Bundle:
    """Parse a bundle.

    Raises:
        ImageRefused: `oci.signing.bundle.*`.
    """
    top = Members(parse_document(data, ceiling=SIGNATURE_BUNDLE_BYTES, code=_CODE), path="", code=_CODE)
    top.only("mediaType", "verificationMaterial", "messageSignature", "dsseEnvelope")
    match = _VERSION.fullmatch(top.text("mediaType"))
    if match is None:
        raise ImageRefused(
            f"{_CODE}.version",
            "bundle is of a version that is not read",
            path="mediaType",
            expected=BUNDLE_TYPE,
            actual=top.text("mediaType")[:80],
        )
    if ("messageSignature" in top) == ("dsseEnvelope" in top):
        raise ImageRefused(f"{_CODE}.content", "bundle has not exactly one of messageSignature and dsseEnvelope")
    content = _envelope(top.members("dsseEnvelope")) if "dsseEnvelope" in top else _message(top)
    material = _material(top.members("verificationMaterial"))
    return Bundle(version=match[1] or match[2], **content, **material)


def encode_bundle(bundle: Bundle) -> bytes:
    """Return the bundle as version 0.3, as Sigstore's tools write it."""
    material: dict[str, Any] = {}  # Any: JSON
    if bundle.certificates:
        material["certificate"] = {"rawBytes": encode_b64(bundle.certificates[0])}
    else:
        material["publicKey"] = {"hint": bundle.key_hint}
    if bundle.entries:
        material["tlogEntries"] = [_encode_entry(entry) for entry in bundle.entries]
    if bundle.timestamps:
        stamps = [{"signedTimestamp": encode_b64(item)} for item in bundle.timestamps]
        material["timestampVerificationData"] = {"rfc3161Timestamps": stamps}
    document: dict[str, Any] = {"mediaType": BUNDLE_TYPE, "verificationMaterial": material}  # Any: JSON
    if bundle.message_digest is None:
        document["dsseEnvelope"] = {
            "payload": encode_b64(bundle.payload),
            "payloadType": bundle.payload_type,
            "signatures": [{"sig": encode_b64(bundle.signature)}],
        }
    else:
        name = next(name for name, algorithm in _HASHES.items() if algorithm == bundle.message_digest.algorithm)
        document["messageSignature"] = {
            "messageDigest": {"algorithm": name, "digest": encode_b64(bytes.fromhex(bundle.message_digest.hex))},
            "signature": encode_b64(bundle.signature),
        }
    return encode_document(document)


def encode_statement(digest: Digest, *, repository: str, predicate_type: str = SIGN_PREDICATE) -> bytes:
    """Return the in-toto statement that an image is signed; cosign 3 leaves the subject's name out, we say it."""
    subject: dict[str, Any] = {"digest": {digest.algorithm: digest.hex}}  # Any: JSON
    if repository:
        subject = {"name": repository, **subject}
    return encode_document(
        {"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": predicate_type, "predicate": {}}
    )


def parse_statement(payload: bytes) -> InTotoStatement:
    """Parse an in-toto statement (in-toto attestation framework, version 0.1 or 1).

    Raises:
        ImageRefused: `oci.signing.statement.*`. What the predicate says is the signer's own and is not looked at.
    """
    top = Members(parse_document(payload, ceiling=MANIFEST_BYTES, code=_STATEMENT), path="", code=_STATEMENT)
    top.only("_type", "subject", "predicateType", "predicate")
    if top.text("_type") not in _STATEMENT_TYPES:
        raise ImageRefused(
            f"{_STATEMENT}.unknown_type",
            "not an in-toto statement",
            path="_type",
            expected=STATEMENT_TYPE,
            actual=top.text("_type")[:80],
        )
    subjects = []
    for number, item in enumerate(top.array("subject", ceiling=SIGNATURE_SUBJECTS, required=True)):
        subject = Members(item, path=f"subject[{number}]", code=_STATEMENT)
        digests = subject.text_map("digest", ceiling=16, value_ceiling=256)
        subjects.append((subject.text("name", ""), digests))
    return InTotoStatement(predicate_type=top.text("predicateType"), subjects=tuple(subjects))


def require_sign_predicate(statement: InTotoStatement, accepted: str = SIGN_PREDICATE) -> None:
    """Refuse an attestation that does not say "this image is signed": a signed scan report approves nothing.

    Raises:
        ImageRefused: `oci.signing.statement.predicate`.
    """
    if statement.predicate_type != accepted:
        raise ImageRefused(
            f"{_STATEMENT}.predicate",
            "signed statement is an attestation of another kind, not a signature",
            path="predicateType",
            expected=accepted,
            actual=statement.predicate_type[:120],
        )


def names_of(statement: InTotoStatement, digest: Digest) -> tuple[str, ...]:
    """Return the names under which the statement lists `digest`, empty texts included.

    Raises:
        ImageRefused: it lists other artifacts only (`oci.signing.other_image`).
    """
    found = tuple(name for name, digests in statement.subjects if digests.get(digest.algorithm) == digest.hex)
    if not found:
        listed = ", ".join(f"{key}:{value}" for _, digests in statement.subjects for key, value in digests.items())
        raise ImageRefused(
            "oci.signing.other_image",
            "signature is for another image",
            expected=str(digest),
            actual=listed[:200] or "nothing",
        )
    return found


def _envelope(members: Members) -> dict[str, Any]:  # Any: fields of Bundle
    members.only("payload", "payloadType", "signatures")
    signatures = members.array("signatures", ceiling=1, required=True)
    if len(signatures) != 1:
        raise ImageRefused(f"{_CODE}.content", "envelope has not exactly one signature", path="dsseEnvelope.signatures")
    signature = Members(signatures[0], path="dsseEnvelope.signatures[0]", code=_CODE)
    signature.only("sig", "keyid")
    return {
        "payload": read_bytes(members, "payload", SIGNATURE_BUNDLE_BYTES),
        "payload_type": members.text("payloadType"),
        "signature": read_bytes(signature, "sig", SIGNATURE_BYTES),
    }


def _message(top: Members) -> dict[str, Any]:  # Any: fields of Bundle
    members = top.members("messageSignature")
    members.only("messageDigest", "signature")
    digest = members.members("messageDigest")
    digest.only("algorithm", "digest")
    algorithm = _HASHES.get(digest.text("algorithm"))
    if algorithm is None:
        raise ImageRefused(
            f"{_CODE}.hash",
            "hash algorithm is not accepted",
            expected=", ".join(_HASHES),
            actual=digest.text("algorithm")[:40],
        )
    return {
        "message_digest": Digest(algorithm, read_bytes(digest, "digest", 64).hex()),
        "signature": read_bytes(members, "signature", SIGNATURE_BYTES),
    }


def _material(members: Members) -> dict[str, Any]:  # Any: fields of Bundle
    members.only("publicKey", "certificate", "x509CertificateChain", "tlogEntries", "timestampVerificationData")
    kinds = [name for name in ("publicKey", "certificate", "x509CertificateChain") if name in members]
    if len(kinds) != 1:
        raise ImageRefused(
            f"{_CODE}.material",
            "bundle says not exactly one way who signed",
            path="verificationMaterial",
            expected="publicKey, certificate or x509CertificateChain",
            actual=", ".join(kinds) or "none",
        )
    found: dict[str, Any] = {}
    if "publicKey" in members:
        key = members.members("publicKey")
        key.only("hint")
        found["key_hint"] = key.text("hint", "")
    elif "certificate" in members:
        found["certificates"] = (read_bytes(members.members("certificate"), "rawBytes", CERTIFICATE_BYTES),)
    else:
        chain = members.members("x509CertificateChain")
        items = chain.array("certificates", ceiling=CERTIFICATE_CHAIN, required=True)
        found["certificates"] = tuple(
            read_bytes(Members(item, path=f"certificates[{number}]", code=_CODE), "rawBytes", CERTIFICATE_BYTES)
            for number, item in enumerate(items)
        )
        if not found["certificates"]:
            raise ImageRefused(f"{_CODE}.material", "bundle has an empty chain of certificates")
    found["entries"] = tuple(
        _entry(Members(item, path=f"tlogEntries[{number}]", code=_CODE))
        for number, item in enumerate(members.array("tlogEntries", ceiling=SIGNATURE_LOG_ENTRIES))
    )
    if "timestampVerificationData" in members:
        stamps = members.members("timestampVerificationData").array("rfc3161Timestamps", ceiling=SIGNATURE_LOG_ENTRIES)
        found["timestamps"] = tuple(
            read_bytes(Members(item, path=f"rfc3161Timestamps[{n}]", code=_CODE), "signedTimestamp", TIMESTAMP_BYTES)
            for n, item in enumerate(stamps)
        )
    return found


def _entry(members: Members) -> LogEntry:
    members.only(
        "logIndex",
        "logId",
        "kindVersion",
        "integratedTime",
        "inclusionPromise",
        "inclusionProof",
        "canonicalizedBody",
    )
    promise = members.members("inclusionPromise") if "inclusionPromise" in members else None
    kind = members.members("kindVersion") if "kindVersion" in members else None
    return LogEntry(
        log_id=read_bytes(members.members("logId"), "keyId", 64),
        log_index=_integer(members, "logIndex"),
        integrated_seconds=_integer(members, "integratedTime"),
        body=read_bytes(members, "canonicalizedBody", SIGNATURE_BUNDLE_BYTES),
        promise=read_bytes(promise, "signedEntryTimestamp", SIGNATURE_BYTES) if promise else b"",
        proof=_proof(members.members("inclusionProof")) if "inclusionProof" in members else None,
        kind=kind.text("kind", "") if kind else "",
        version=kind.text("version", "") if kind else "",
    )


def _proof(members: Members) -> InclusionProof:
    members.only("logIndex", "rootHash", "treeSize", "hashes", "checkpoint")
    checkpoint = members.members("checkpoint").text("envelope") if "checkpoint" in members else ""
    if len(checkpoint) > _CHECKPOINT_CHARS:
        raise ImageRefused(f"{_CODE}.too_long", "checkpoint is too long", path=members.place("checkpoint"))
    return InclusionProof(
        log_index=_integer(members, "logIndex"),
        root=read_bytes(members, "rootHash", 64),
        tree_size=_integer(members, "treeSize"),
        hashes=tuple(_decode(text, "hashes", 64) for text in members.texts("hashes", ceiling=_PROOF_HASHES)),
        checkpoint=checkpoint,
    )


def _encode_entry(entry: LogEntry) -> dict[str, Any]:  # Any: JSON
    document: dict[str, Any] = {
        "logIndex": str(entry.log_index),
        "logId": {"keyId": encode_b64(entry.log_id)},
        "kindVersion": {"kind": entry.kind, "version": entry.version},
        "integratedTime": str(entry.integrated_seconds),
    }
    if entry.promise:
        document["inclusionPromise"] = {"signedEntryTimestamp": encode_b64(entry.promise)}
    if entry.proof is not None:
        document["inclusionProof"] = {
            "logIndex": str(entry.proof.log_index),
            "rootHash": encode_b64(entry.proof.root),
            "treeSize": str(entry.proof.tree_size),
            "hashes": [encode_b64(item) for item in entry.proof.hashes],
            "checkpoint": {"envelope": entry.proof.checkpoint},
        }
    return {**document, "canonicalizedBody": encode_b64(entry.body)}


def read_bytes(members: Members, name: str, ceiling: int) -> bytes:
    """Return a member that is base64 of at least one byte.

    Raises:
        ImageRefused: `oci.signing.bundle.base64`, or as `Members.text`.
    """
    return _decode(members.text(name), members.place(name), ceiling)


def _decode(text: str, path: str, ceiling: int) -> bytes:
    try:
        data = decode_b64(text, path=path, ceiling=ceiling)
    except FormatRefused as err:
        raise ImageRefused(f"{_CODE}.base64", err.message, path=path, expected=err.expected) from err
    if not data:
        raise ImageRefused(f"{_CODE}.base64", "member is empty", path=path)
    return data


def _integer(members: Members, name: str) -> int:
    """Return an int64, which protobuf writes as text, and leaves out when it is 0."""
    text = members.text(name, "0")
    if not _INTEGER.fullmatch(text) or int(text) > _MAX_INTEGER:
        raise ImageRefused(f"{_CODE}.integer", "not a number", path=members.place(name), actual=text[:40])
    return int(text)
