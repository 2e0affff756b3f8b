"""Signs images without a key of one's own: an identity token is exchanged for a certificate that lives ten minutes, and
the signature goes into a public log (Fulcio's `/api/v2/signingCert`, Rekor's `/api/v1/log/entries`).

The private key exists for one signature and is forgotten. What the services answer is verified against the trusted
root, with the very evaluator that verifies images, before anything is stored: a wrong answer leaves no signature. The
log entry makes the image's digest and the identity public. Trusts the trusted root; the services are believed nothing.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.crypto.pem import split_pem
from cloister.errors import FormatRefused, ImageRefused, Unavailable
from cloister.imagetool.sign import attach_bundle
from cloister.oci.digest import Digest
from cloister.oci.document import Members, parse_document
from cloister.oci.signing.bundle import (
    IN_TOTO_TYPE,
    Bundle,
    InclusionProof,
    LogEntry,
    encode_bundle,
    encode_statement,
)
from cloister.oci.signing.fulcio import CertificateIdentity, load_leaf, read_identity
from cloister.oci.signing.keyless import KeylessTrust, keyless_of_bundle, verify_keyless
from cloister.oci.signing.trustedroot import TrustedRoot
from cloister.oci.store import ImageStore, read_manifest
from cloister.wire.base64 import decode_b64, decode_b64url, encode_b64
from cloister.wire.limits import CERTIFICATE_BYTES, REGISTRY_SECONDS, SIGNATURE_BUNDLE_BYTES, SIGNATURE_BYTES

_CODE: Final = "imagetool.keyless"
_TOKEN_BYTES: Final = 64 * 1024
_HASHES: Final = 64


class SigstoreServices:
    """Clients of one Fulcio and one Rekor.

    Args:
        fulcio: its address, `https://fulcio.sigstore.dev`.
        rekor: the log's.
        transport: carries the requests; None is the network.
    """

    def __init__(self, *, fulcio: str, rekor: str, transport: httpx.BaseTransport | None = None) -> None:
        self._fulcio = fulcio.rstrip("/")
        self._rekor = rekor.rstrip("/")
        self._http = httpx.Client(transport=transport, timeout=REGISTRY_SECONDS, follow_redirects=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def certify(self, key: ec.EllipticCurvePrivateKey, token: str) -> tuple[bytes, ...]:
        """Return the DER certificates, the signer's first, for the identity of `token`.

        Raises:
            ImageRefused: the answer is none (`imagetool.keyless.answer`), or the token is none (`.token`).
            Unavailable: `imagetool.keyless.service`.
        """
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        proof = key.sign(token_subject(token).encode(), ec.ECDSA(SHA256()))
        answer = self._post(
            f"{self._fulcio}/api/v2/signingCert",
            {
                "credentials": {"oidcIdentityToken": token},
                "publicKeyRequest": {
                    "publicKey": {"algorithm": "ECDSA", "content": public.decode()},
                    "proofOfPossession": encode_b64(proof),
                },
            },
        )
        chain = answer.members("signedCertificateEmbeddedSct").members("chain").texts("certificates", ceiling=8)
        try:
            found = [split_pem(text.encode(), code=_CODE, ceiling=CERTIFICATE_BYTES)[0] for text in chain]
        except FormatRefused as err:
            raise ImageRefused(f"{_CODE}.answer", f"not a certificate: {err.message}") from err
        if not found:
            raise ImageRefused(f"{_CODE}.answer", "certificate authority answered no certificate")
        return tuple(found)

    def log_envelope(self, envelope: bytes, certificate_pem: bytes) -> LogEntry:
        """Have a DSSE envelope logged and return the entry; errors as `certify`."""
        proposed = {"envelope": envelope.decode(), "verifiers": [encode_b64(certificate_pem)]}
        document = {"apiVersion": "0.0.1", "kind": "dsse", "spec": {"proposedContent": proposed}}
        answer = self._post(f"{self._rekor}/api/v1/log/entries", document)
        entry = answer.members(next(iter(answer.names()), "entry"))
        verification = entry.members("verification")
        proof = verification.members("inclusionProof")
        try:
            return LogEntry(
                log_id=bytes.fromhex(entry.text("logID")),
                log_index=entry.unsigned("logIndex"),
                integrated_seconds=entry.unsigned("integratedTime"),
                body=decode_b64(entry.text("body"), path="body", ceiling=SIGNATURE_BUNDLE_BYTES),
                promise=decode_b64(
                    verification.text("signedEntryTimestamp"), path="signedEntryTimestamp", ceiling=SIGNATURE_BYTES
                ),
                proof=InclusionProof(
                    log_index=proof.unsigned("logIndex"),
                    root=bytes.fromhex(proof.text("rootHash")),
                    tree_size=proof.unsigned("treeSize"),
                    hashes=tuple(bytes.fromhex(text) for text in proof.texts("hashes", ceiling=_HASHES)),
                    checkpoint=proof.text("checkpoint"),
                ),
                kind="dsse",
                version="0.0.1",
            )
        except (ValueError, FormatRefused) as err:
            raise ImageRefused(f"{_CODE}.answer", "log answered an entry that does not parse") from err

    def _post(self, url: str, document: dict[str, Any]) -> Members:  # Any: JSON
        try:
            with self._http.stream("POST", url, json=document) as response:
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > SIGNATURE_BUNDLE_BYTES:
                        raise ImageRefused(f"{_CODE}.answer", "service answers too much", path=url)
        except httpx.HTTPError as err:
            raise Unavailable(f"{_CODE}.service", f"service cannot be reached: {type(err).__name__}", path=url) from err
        if response.status_code not in (200, 201):
            raise Unavailable(
                f"{_CODE}.service",
                "service refuses",
                path=url,
                expected="201",
                actual=f"{response.status_code} {body[:200].decode('utf-8', 'replace')}",
            )
        code = f"{_CODE}.answer"
        return Members(parse_document(body, ceiling=SIGNATURE_BUNDLE_BYTES, code=code), path="", code=code)


def sign_keyless(
    store: ImageStore,
    selector: str | Digest,
    services: SigstoreServices,
    *,
    token: str,
    root: TrustedRoot,
    repository: str,
) -> tuple[Digest, CertificateIdentity]:
    """Sign the manifest or index under `selector` for the identity of `token`, and attach the bundle.

    Args:
        store: where the image is and the signature goes.
        selector: the image, by tag or digest.
        services: certificate authority and log.
        token: OIDC identity token; who it is for becomes public.
        root: what the services' answers must verify against.
        repository: the name the signature is for.

    Returns:
        The digest that was signed, and the identity the certificate says.

    Raises:
        ImageRefused: `imagetool.keyless.*`, `oci.signing.*` for answers that do not verify, `oci.referrers.*`.
        Unavailable: a service or the store cannot be used now.
    """
    stored = read_manifest(store, selector)
    digest = Digest.of(stored.raw)
    key = ec.generate_private_key(ec.SECP256R1())
    certificates = services.certify(key, token)
    statement = encode_statement(digest, repository=repository)
    bundle = Bundle(
        version="0.3", payload=statement, payload_type=IN_TOTO_TYPE, signature=b"", certificates=certificates[:1]
    )
    signature = key.sign(bundle.signed_bytes(stored.raw), ec.ECDSA(SHA256()))
    bundle = msgspec.structs.replace(bundle, signature=signature)
    envelope = json.dumps(json.loads(encode_bundle(bundle))["dsseEnvelope"], separators=(",", ":")).encode()
    entry = services.log_envelope(envelope, _pem(certificates[0]))
    bundle = msgspec.structs.replace(bundle, entries=(entry,))
    subjects, issuer = read_identity(load_leaf(certificates[0]))
    identity = CertificateIdentity(subject=next(iter(subjects), ""), issuer=issuer)
    verify_keyless(keyless_of_bundle(bundle, stored.raw), KeylessTrust(root=root, identities=(identity,)))
    attach_bundle(store, stored, encode_bundle(bundle))
    return digest, identity


def token_subject(token: str) -> str:
    """Return what proves possession of the key: `email` if the token has one, else `sub`.

    Raises:
        ImageRefused: `imagetool.keyless.token`.
    """
    claims = _claims(token)
    return claims.text("email", "") or claims.text("sub")


def _claims(token: str) -> Members:
    """The token is the certificate authority's to verify; here only its own words are read."""
    parts = token.split(".")
    code = f"{_CODE}.token"
    if len(parts) != 3:
        raise ImageRefused(code, "not an identity token", expected="three parts between dots")
    try:
        body = decode_b64url(parts[1], path="token", ceiling=_TOKEN_BYTES)
    except FormatRefused as err:
        raise ImageRefused(code, "not an identity token") from err
    return Members(parse_document(body, ceiling=_TOKEN_BYTES, code=code), path="token", code=code)


def _pem(der: bytes) -> bytes:
    body = base64.encodebytes(der).replace(b"\n", b"")
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))
