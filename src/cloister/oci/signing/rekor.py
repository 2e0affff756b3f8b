"""Entries of Rekor's transparency log: that a signature was logged, and when (Rekor's `openapi.yaml`, types
`hashedrekord`, `dsse`, `intoto`; versions 0.0.1, and 0.0.2 of Rekor v2).

A log vouches for an entry in two ways: a signed promise (SET), which also covers the time, and an inclusion proof up to
a signed checkpoint, which covers the entry's content and place but not its time. An entry counts only if its content
is this very signature, over this very content, by this very key or certificate. Pure; trusts the logs it is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from cloister.crypto.pem import CERTIFICATE, PUBLIC_KEY, split_pem
from cloister.errors import FormatRefused, ImageRefused, Refused
from cloister.oci.document import Members, parse_document
from cloister.oci.signing.bundle import InclusionProof, LogEntry, read_bytes
from cloister.oci.signing.trustedroot import TransparencyLog
from cloister.tlog.checkpoint import parse_checkpoint
from cloister.tlog.merkle import leaf_hash, verify_inclusion
from cloister.tlog.note import parse_note
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.canonicaljson import encode_canonical
from cloister.wire.limits import CERTIFICATE_BYTES, SIGNATURE_BUNDLE_BYTES, SIGNATURE_BYTES

_CODE: Final = "oci.signing.rekor"
_LATEST: Final = 2**40  # seconds; what datetime can hold and more than any entry says


class LoggedSignature(msgspec.Struct, frozen=True, kw_only=True):
    """What an entry must be about.

    Attributes:
        signature: its bytes.
        verifier: DER of the certificate or SubjectPublicKeyInfo it verifies with.
        artifact: the signed bytes, of which the log has the hash; empty for an envelope.
        payload: the envelope's payload; empty for a message.
        payload_type: the envelope's.
    """

    signature: bytes
    verifier: bytes
    artifact: bytes = b""
    payload: bytes = b""
    payload_type: str = ""


def parse_set_annotation(text: str) -> LogEntry:
    """Parse cosign's annotation `dev.sigstore.cosign/bundle`: a promise and what it covers.

    Raises:
        ImageRefused: `oci.signing.rekor.malformed` or `oci.signing.bundle.*`.
    """
    top = Members(parse_document(text.encode(), ceiling=SIGNATURE_BUNDLE_BYTES, code=_CODE), path="", code=_CODE)
    top.only("SignedEntryTimestamp", "Payload")
    payload = top.members("Payload")
    payload.only("body", "integratedTime", "logIndex", "logID")
    try:
        log_id = bytes.fromhex(payload.text("logID"))
    except ValueError as err:
        raise ImageRefused(f"{_CODE}.malformed", "log id is not hexadecimal", path="Payload.logID") from err
    return LogEntry(
        log_id=log_id,
        log_index=payload.unsigned("logIndex"),
        integrated_seconds=payload.unsigned("integratedTime"),
        body=read_bytes(payload, "body", SIGNATURE_BUNDLE_BYTES),
        promise=read_bytes(top, "SignedEntryTimestamp", SIGNATURE_BYTES),
    )


def promise_message(entry: LogEntry) -> bytes:
    """Return what a log signs as its promise: canonical JSON of four members."""
    return encode_canonical(
        {
            "body": encode_b64(entry.body),
            "integratedTime": entry.integrated_seconds,
            "logID": entry.log_id.hex(),
            "logIndex": entry.log_index,
        }
    )


def verify_entry(entry: LogEntry, logged: LoggedSignature, logs: Sequence[TransparencyLog]) -> datetime | None:
    """Return when a trusted log says that it took up this signature; None where it vouches for no time.

    Steps: 1 the log is trusted; 2 its promise, its proof, or both hold, and there is one; 3 the log was trusted at that
    time; 4 the entry is about this signature.

    Raises:
        ImageRefused: `oci.signing.rekor.*`, with the step that failed.
    """
    # 1
    log = next((item for item in logs if item.log_id == entry.log_id), None)
    if log is None:
        raise ImageRefused(
            f"{_CODE}.unknown_log",
            "entry is of a transparency log that is not trusted",
            expected=", ".join(item.log_id.hex()[:16] for item in logs) or "no log at all",
            actual=entry.log_id.hex()[:16],
        )
    # 2
    if not entry.promise and entry.proof is None:
        raise ImageRefused(f"{_CODE}.unproved", "entry has neither a promise nor an inclusion proof of its log")
    at = _verify_promise(entry, log) if entry.promise else None
    if entry.proof is not None:
        _verify_proof(entry, entry.proof, log)
    # 3
    if at is not None and at not in log.period:
        raise ImageRefused(
            f"{_CODE}.log_period",
            "log was not trusted when it took up the entry",
            expected=f"from {log.period.start.isoformat()} to {log.period.end or 'now'}",
            actual=at.isoformat(),
        )
    # 4
    _require_same(entry, logged)
    return at


def _verify_promise(entry: LogEntry, log: TransparencyLog) -> datetime:
    try:
        log.key.verify(promise_message(entry), entry.promise)
    except Refused as err:
        raise ImageRefused(f"{_CODE}.promise", "the log did not sign this promise") from err
    if not 0 < entry.integrated_seconds < _LATEST:
        raise ImageRefused(f"{_CODE}.promise", "promise has no time", actual=str(entry.integrated_seconds))
    return datetime.fromtimestamp(entry.integrated_seconds, UTC)


def _verify_proof(entry: LogEntry, proof: InclusionProof, log: TransparencyLog) -> None:
    try:
        note = parse_note(proof.checkpoint)
        checkpoint = parse_checkpoint(note.text)
    except FormatRefused as err:
        raise ImageRefused(f"{_CODE}.checkpoint", f"not a checkpoint: {err.message}") from err
    if not any(_signed(log, note.text, item.signature) for item in note.signatures):
        raise ImageRefused(f"{_CODE}.checkpoint", "the log did not sign this checkpoint", actual=checkpoint.origin[:80])
    if (checkpoint.size, checkpoint.root) != (proof.tree_size, proof.root):
        raise ImageRefused(
            f"{_CODE}.checkpoint",
            "checkpoint is of another tree than the proof",
            expected=f"size {proof.tree_size}",
            actual=f"size {checkpoint.size}",
        )
    try:
        verify_inclusion(leaf_hash(entry.body), proof.log_index, proof.tree_size, proof.hashes, proof.root)
    except Refused as err:
        raise ImageRefused(f"{_CODE}.inclusion", err.message) from err


def _signed(log: TransparencyLog, text: str, signature: bytes) -> bool:
    try:
        log.key.verify(text.encode(), signature)
    except Refused:
        return False
    return True


def _require_same(entry: LogEntry, logged: LoggedSignature) -> None:
    body = Members(parse_document(entry.body, ceiling=SIGNATURE_BUNDLE_BYTES, code=_CODE), path="body", code=_CODE)
    kind, version = body.text("kind"), body.text("apiVersion")
    if (entry.kind and entry.kind != kind) or (entry.version and entry.version != version):
        raise _other("kind", kind)
    read = _KINDS.get((kind, version))
    if read is None:
        raise ImageRefused(
            f"{_CODE}.entry_kind", "entry is of a kind that is not read", actual=f"{kind} {version}"[:80]
        )
    try:
        read(body.members("spec"), logged)
    except FormatRefused as err:
        raise ImageRefused(f"{_CODE}.malformed", f"entry does not parse: {err.message}", path=err.path) from err


def _hashedrekord(spec: Members, logged: LoggedSignature) -> None:
    """A message's hash, signature and verifier. cosign classic logs the payload so, and old bundles the envelope's."""
    digest = spec.members("data").members("hash")
    _require_hash(digest, logged.artifact)
    signature = spec.members("signature")
    _equal("signature", _b64(signature, "content"), logged.signature)
    _equal("verifier", _pem(_b64(signature.members("publicKey"), "content")), logged.verifier)


def _hashedrekord_v2(spec: Members, logged: LoggedSignature) -> None:
    spec = spec.members("hashedRekordV002")
    data = spec.members("data")
    _equal("hash", _b64(data, "digest"), _hash_v2(data.text("algorithm"), logged.artifact))
    signature = spec.members("signature")
    _equal("signature", _b64(signature, "content"), logged.signature)
    _equal("verifier", _verifier_v2(signature.members("verifier")), logged.verifier)


def _dsse(spec: Members, logged: LoggedSignature) -> None:
    _require_hash(spec.members("payloadHash"), logged.payload)
    item = _only_item(spec, "signatures")
    _equal("signature", _b64(item, "signature"), logged.signature)
    _equal("verifier", _pem(_b64(item, "verifier")), logged.verifier)


def _dsse_v2(spec: Members, logged: LoggedSignature) -> None:
    spec = spec.members("dsseV002")
    digest = spec.members("payloadHash")
    _equal("hash", _b64(digest, "digest"), _hash_v2(digest.text("algorithm"), logged.payload))
    item = _only_item(spec, "signatures")
    _equal("signature", _b64(item, "content"), logged.signature)
    _equal("verifier", _verifier_v2(item.members("verifier")), logged.verifier)


def _intoto(spec: Members, logged: LoggedSignature) -> None:
    content = spec.members("content")
    _require_hash(content.members("payloadHash"), logged.payload)
    envelope = content.members("envelope")
    if envelope.text("payloadType") != logged.payload_type:
        raise _other("payload type", envelope.text("payloadType"))
    item = _only_item(envelope, "signatures")
    twice = _b64(item, "sig").decode("ascii", "replace")
    _equal("signature", decode_b64(twice, path="sig", ceiling=SIGNATURE_BYTES), logged.signature)
    _equal("verifier", _pem(_b64(item, "publicKey")), logged.verifier)


_KINDS: Final = {
    ("hashedrekord", "0.0.1"): _hashedrekord,
    ("hashedrekord", "0.0.2"): _hashedrekord_v2,
    ("dsse", "0.0.1"): _dsse,
    ("dsse", "0.0.2"): _dsse_v2,
    ("intoto", "0.0.2"): _intoto,
}
_HASHES_V2: Final = {"SHA2_256": "sha256", "SHA2_384": "sha384", "SHA2_512": "sha512"}


def _require_hash(digest: Members, data: bytes) -> None:
    algorithm = digest.text("algorithm")
    if algorithm not in ("sha256", "sha384", "sha512") or not data:
        raise _other("hash algorithm", algorithm)
    if digest.text("value") != hashlib.new(algorithm, data).hexdigest():
        raise _other("hash", digest.text("value"))


def _hash_v2(name: str, data: bytes) -> bytes:
    algorithm = _HASHES_V2.get(name)
    if algorithm is None or not data:
        raise _other("hash algorithm", name)
    return hashlib.new(algorithm, data).digest()


def _only_item(members: Members, name: str) -> Members:
    items = members.array(name, ceiling=1, required=True)
    if not items:
        raise _other(name, "none")
    return Members(items[0], path=f"body.{name}[0]", code=_CODE)


def _verifier_v2(members: Members) -> bytes:
    name = "x509Certificate" if "x509Certificate" in members else "publicKey"
    return _b64(members.members(name), "rawBytes")


def _b64(members: Members, name: str) -> bytes:
    return decode_b64(members.text(name), path=members.place(name), ceiling=SIGNATURE_BUNDLE_BYTES)


def _pem(text: bytes) -> bytes:
    label = CERTIFICATE if b"BEGIN CERTIFICATE" in text else PUBLIC_KEY
    return split_pem(text, code=_CODE, ceiling=CERTIFICATE_BYTES, label=label)[0]


def _equal(what: str, actual: bytes, expected: bytes) -> None:
    if actual != expected:
        raise _other(what, actual[:16].hex())


def _other(what: str, actual: str) -> ImageRefused:
    return ImageRefused(
        f"{_CODE}.other_entry", f"log entry is about another signature: its {what} differs", actual=actual[:120]
    )
