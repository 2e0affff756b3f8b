"""A Sigstore of one's own: certificate authority, certificate-transparency log, Rekor and timestamp authority that sign
real structures under a test root.

What it issues verifies with cosign and with sigstore-python against `trusted_root()`, so a refusal by us of something
it altered means something. `transport()` serves it under Fulcio's and Rekor's own HTTP interfaces, without a socket.
Nothing trusts it outside tests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.oci.document import encode_document
from cloister.oci.signing.bundle import InclusionProof, LogEntry
from cloister.oci.signing.rekor import promise_message
from cloister.tlog.merkle import leaf_hash, node_hash
from cloister.wire.base64 import encode_b64
from cloister.wire.canonicaljson import encode_canonical

_SCT_LIST: Final = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ISSUER_V1: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_LIFE: Final = timedelta(minutes=10)
_LOG_NAME: Final = "rekor.test"
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)


class TestSigstore:
    """All services of one Sigstore.

    Args:
        at: the time at which it issues, logs and stamps; change `now` to move it.
    """

    __test__ = False  # for pytest

    def __init__(self, *, at: datetime) -> None:
        self.now = at
        self.root_key = ec.generate_private_key(ec.SECP384R1())
        self.ca_key = ec.generate_private_key(ec.SECP256R1())
        self.root = _authority("sigstore test root", self.root_key, "sigstore test root", self.root_key)
        self.ca = _authority("sigstore test ca", self.ca_key, "sigstore test root", self.root_key)
        self.ct_key = ec.generate_private_key(ec.SECP256R1())
        self.log_key = ec.generate_private_key(ec.SECP256R1())
        self.stamp_key = ec.generate_private_key(ec.SECP256R1())
        self.stamp_certificate = _stamp_certificate(self.stamp_key, self.root_key)
        self.identity = ("dev@example.test", "https://login.example.test")
        self._leaves = [leaf_hash(b"first")]  # some readers take an entry with index 0 for none

    # -- trusted root ---------------------------------------------------------------------------------------------

    def trusted_root(self) -> bytes:
        """Return `trusted_root.json`."""
        period = {"start": BEGIN.isoformat().replace("+00:00", "Z")}
        document = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log_instance("https://rekor.test", self.log_key, period)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "test", "commonName": "test"},
                    "uri": "https://fulcio.test",
                    "certChain": {"certificates": [_raw(self.ca), _raw(self.root)]},
                    "validFor": period,
                }
            ],
            "ctlogs": [self._log_instance("https://ct.test", self.ct_key, period)],
            "timestampAuthorities": [
                {
                    "subject": {"organization": "test", "commonName": "test"},
                    "uri": "https://stamp.test",
                    "certChain": {"certificates": [_raw(self.stamp_certificate), _raw(self.root)]},
                    "validFor": period,
                }
            ],
        }
        return encode_document(document)

    @staticmethod
    def _log_instance(url: str, key: ec.EllipticCurvePrivateKey, period: Mapping[str, str]) -> dict[str, Any]:
        spki = spki_of(key)
        return {
            "baseUrl": url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": encode_b64(spki),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": dict(period),
            },
            "logId": {"keyId": encode_b64(hashlib.sha256(spki).digest())},
        }

    # -- Fulcio ---------------------------------------------------------------------------------------------------

    def certificate(self, key: ec.EllipticCurvePublicKey, *, sct: bool = True) -> x509.Certificate:
        """Issue a certificate for `identity`, ten minutes from `now`, with its timestamp of the CT log."""
        subject, issuer = self.identity
        name: x509.GeneralName = x509.RFC822Name(subject)
        if "://" in subject:
            name = x509.UniformResourceIdentifier(subject)
        builder = (
            x509.CertificateBuilder(subject_name=x509.Name([]), issuer_name=self.ca.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now)
            .not_valid_after(self.now + _LIFE)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca_key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_V1, issuer.encode()), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER, _tlv(0x0C, issuer.encode())), critical=False)
        )
        if sct:
            unlogged = builder.sign(self.ca_key, SHA256()).tbs_certificate_bytes
            stamps = _tlv(0x04, self._sct_list(unlogged))
            builder = builder.add_extension(x509.UnrecognizedExtension(_SCT_LIST, stamps), critical=False)
        return builder.sign(self.ca_key, SHA256())

    def _sct_list(self, body: bytes) -> bytes:
        milliseconds = int(self.now.timestamp() * 1000)
        issuer = hashlib.sha256(spki_of(self.ca_key)).digest()
        message = struct.pack(">BBQH", 0, 0, milliseconds, 1) + issuer + len(body).to_bytes(3, "big") + body + b"\0\0"
        signature = self.ct_key.sign(message, ec.ECDSA(SHA256()))
        log_id = hashlib.sha256(spki_of(self.ct_key)).digest()
        sct = b"\0" + log_id + struct.pack(">QHBBH", milliseconds, 0, 4, 3, len(signature)) + signature
        return struct.pack(">HH", len(sct) + 2, len(sct)) + sct

    # -- Rekor ----------------------------------------------------------------------------------------------------

    def log(self, body: bytes, *, promise: bool = True, proof: bool = True) -> LogEntry:
        """Take up an entry (`encode_canonical` of its JSON) and vouch for it."""
        self._leaves.append(leaf_hash(body))
        kind = json.loads(body)
        entry = LogEntry(
            log_id=hashlib.sha256(spki_of(self.log_key)).digest(),
            log_index=len(self._leaves) - 1,
            integrated_seconds=int(self.now.timestamp()),
            body=body,
            proof=self._proof(len(self._leaves) - 1) if proof else None,
            kind=kind["kind"],
            version=kind["apiVersion"],
        )
        return _with_promise(entry, self._sign_log(promise_message(entry))) if promise else entry

    def _sign_log(self, message: bytes) -> bytes:
        return self.log_key.sign(message, ec.ECDSA(SHA256()))

    def _proof(self, index: int) -> InclusionProof:
        root = _root(self._leaves)
        text = f"{_LOG_NAME} - 1\n{len(self._leaves)}\n{encode_b64(root)}\n"
        hint = hashlib.sha256(spki_of(self.log_key)).digest()[:4]
        line = f"\N{EM DASH} {_LOG_NAME} {encode_b64(hint + self._sign_log(text.encode()))}\n"
        return InclusionProof(
            log_index=index,
            root=root,
            tree_size=len(self._leaves),
            hashes=tuple(_path(index, self._leaves)),
            checkpoint=f"{text}\n{line}",
        )

    # -- timestamp authority --------------------------------------------------------------------------------------

    def stamp(self, message: bytes) -> bytes:
        """Return an RFC 3161 response over `message` at `now`."""
        return _stamp(message, self.now, self.stamp_certificate, self.stamp_key)

    # -- HTTP -----------------------------------------------------------------------------------------------------

    def transport(self) -> httpx.BaseTransport:
        """Return what carries requests to `fulcio.test`, `rekor.test` and `stamp.test`."""
        return _ServiceTransport(self)


class _ServiceTransport(httpx.BaseTransport):
    """Serves Fulcio's `/api/v2/signingCert` and Rekor's `/api/v1/log/entries`."""

    def __init__(self, services: TestSigstore) -> None:
        self._services = services

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        routes: Mapping[tuple[str, str], Callable[[Any], httpx.Response]] = {  # Any: JSON
            ("fulcio.test", "/api/v2/signingCert"): self._certificate,
            ("rekor.test", "/api/v1/log/entries"): self._log,
        }
        route = routes.get((request.url.host, request.url.path))
        if route is None or request.method != "POST":
            return httpx.Response(404)
        return route(json.loads(request.read()))

    def _certificate(self, asked: Any) -> httpx.Response:  # Any: JSON
        """Check the proof of possession over the token's subject, as Fulcio does, and issue."""
        services = self._services
        token = asked["credentials"]["oidcIdentityToken"]
        claims = json.loads(_b64url(token.split(".")[1]))
        asked_key = asked["publicKeyRequest"]
        key = load_pem_public_key(asked_key["publicKey"]["content"].encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return httpx.Response(400, json={"message": "key"})
        subject = claims.get("email") or claims["sub"]
        key.verify(base64.b64decode(asked_key["proofOfPossession"]), subject.encode(), ec.ECDSA(SHA256()))
        services.identity = (subject, claims["iss"])
        chain = [services.certificate(key), services.ca, services.root]
        texts = [item.public_bytes(Encoding.PEM).decode() for item in chain]
        return httpx.Response(201, json={"signedCertificateEmbeddedSct": {"chain": {"certificates": texts}}})

    def _log(self, proposed: Any) -> httpx.Response:  # Any: JSON
        """Turn a proposed `dsse` or `hashedrekord` entry into the logged one, as Rekor does."""
        if proposed["kind"] == "dsse":
            proposed = _canonical_dsse(proposed)
        entry = self._services.log(encode_canonical(proposed))
        proof = entry.proof
        if proof is None:
            raise RuntimeError("the log gave no proof")
        answer = {
            "body": encode_b64(entry.body),
            "integratedTime": entry.integrated_seconds,
            "logID": entry.log_id.hex(),
            "logIndex": entry.log_index,
            "verification": {
                "signedEntryTimestamp": encode_b64(entry.promise),
                "inclusionProof": {
                    "checkpoint": proof.checkpoint,
                    "hashes": [item.hex() for item in proof.hashes],
                    "logIndex": proof.log_index,
                    "rootHash": proof.root.hex(),
                    "treeSize": proof.tree_size,
                },
            },
        }
        return httpx.Response(201, json={"0" * 16 + leaf_hash(entry.body).hex(): answer})


def hashedrekord_body(artifact: bytes, signature: bytes, verifier_pem: bytes) -> bytes:
    """Return the body of a `hashedrekord` entry."""
    return encode_canonical(
        {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(artifact).hexdigest()}},
                "signature": {
                    "content": encode_b64(signature),
                    "publicKey": {"content": encode_b64(verifier_pem)},
                },
            },
        }
    )


def dsse_body(envelope: bytes, payload: bytes, signature: bytes, verifier_pem: bytes) -> bytes:
    """Return the body of a `dsse` entry."""
    return encode_canonical(
        {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(envelope).hexdigest()},
                "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
                "signatures": [{"signature": encode_b64(signature), "verifier": encode_b64(verifier_pem)}],
            },
        }
    )


def test_token(subject: str, issuer: str) -> str:
    """Return an identity token that nobody signed: the fake certificate authority does not ask."""
    parts = [{"alg": "none"}, {"iss": issuer, "sub": subject, "aud": "sigstore"}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


test_token.__test__ = False  # type: ignore[attr-defined]  # pytest's mark


def spki_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the DER SubjectPublicKeyInfo of a key's public half."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _canonical_dsse(proposed: Any) -> Any:  # Any: JSON
    content = proposed["spec"]["proposedContent"]
    envelope = json.loads(content["envelope"])
    body = dsse_body(
        content["envelope"].encode(),
        base64.b64decode(envelope["payload"]),
        base64.b64decode(envelope["signatures"][0]["sig"]),
        base64.b64decode(content["verifiers"][0]),
    )
    return json.loads(body)


def _with_promise(entry: LogEntry, promise: bytes) -> LogEntry:
    import msgspec

    return msgspec.structs.replace(entry, promise=promise)


def _b64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _raw(certificate: x509.Certificate) -> dict[str, str]:
    return {"rawBytes": encode_b64(certificate.public_bytes(Encoding.DER))}


def _name(text: str) -> x509.Name:
    attributes = ((NameOID.ORGANIZATION_NAME, "test"), (NameOID.COMMON_NAME, text))
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not sign,
        crl_sign=not sign,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder(subject_name=_name(name), issuer_name=_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(BEGIN + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1 if name == issuer else 0), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if name != issuer:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return builder.sign(issuer_key, SHA384())


def _stamp_certificate(key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return (
        x509.CertificateBuilder(subject_name=_name("test stamp"), issuer_name=_name("sigstore test root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(BEGIN + timedelta(days=3650))
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, SHA384())
    )


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(_root(leaves[:split]), _root(leaves[split:]))


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*_path(index, leaves[:split]), _root(leaves[split:])]
    return [*_path(index - split, leaves[split:]), _root(leaves[:split])]


# -- ASN.1 of a timestamp response (RFC 3161, section 2.4.2; RFC 5652, section 5) -----------------------------------

_SHA256: Final = bytes.fromhex("300b0609608648016503040201")
_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
_TST_INFO: Final = bytes.fromhex("060b2a864886f70d0109100104")
_SIGNED_DATA: Final = bytes.fromhex("06092a864886f70d010702")
_CONTENT_TYPE: Final = bytes.fromhex("06092a864886f70d010903")
_MESSAGE_DIGEST: Final = bytes.fromhex("06092a864886f70d010904")
_SIGNING_CERTIFICATE: Final = bytes.fromhex("060b2a864886f70d010910022f")
_POLICY: Final = bytes.fromhex("06042a030401")


def _tlv(tag: int, *parts: bytes) -> bytes:
    """Return one DER element."""
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _stamp(message: bytes, at: datetime, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    digest = _tlv(0x04, hashlib.sha256(message).digest())
    when = _tlv(0x18, at.astimezone(UTC).strftime("%Y%m%d%H%M%SZ").encode())
    info = _tlv(0x30, _integer(1), _POLICY, _tlv(0x30, _SHA256, digest), _integer(7), when)
    der = certificate.public_bytes(Encoding.DER)
    certificate_hash = _tlv(0x30, _tlv(0x30, _tlv(0x30, _tlv(0x04, hashlib.sha256(der).digest()))))
    attributes = [
        _tlv(0x30, _CONTENT_TYPE, _tlv(0x31, _TST_INFO)),
        _tlv(0x30, _MESSAGE_DIGEST, _tlv(0x31, _tlv(0x04, hashlib.sha256(info).digest()))),
        _tlv(0x30, _SIGNING_CERTIFICATE, _tlv(0x31, certificate_hash)),
    ]
    signed = b"".join(sorted(attributes))
    signature = key.sign(_tlv(0x31, signed), ec.ECDSA(SHA256()))
    signer = _tlv(
        0x30,
        _integer(1),
        _tlv(0x30, certificate.issuer.public_bytes(), _integer(certificate.serial_number)),
        _SHA256,
        _tlv(0xA0, signed),
        _ECDSA_SHA256,
        _tlv(0x04, signature),
    )
    content = _tlv(0x30, _TST_INFO, _tlv(0xA0, _tlv(0x04, info)))
    data = _tlv(0x30, _integer(3), _tlv(0x31, _SHA256), content, _tlv(0xA0, der), _tlv(0x31, signer))
    return _tlv(0x30, _tlv(0x30, _integer(0)), _tlv(0x30, _SIGNED_DATA, _tlv(0xA0, data)))
