"""A trust domain over a furnished trust service, and guests that ask it for names by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.crypto.signer import ECDSAP256Signer
from cloister.protocol.initdata import InitData, build_initdata
from cloister.trust.identity import IdentityService
from cloister.trust.keybroker.token import VerifiedToken, verify_token
from trust_world import Factory, Guest, World

DOMAIN = "prod.example.org"
ISSUER = "https://trust.example.org"
AUDIENCE = "https://sts.example.org"
CONTRACT = "sha256:" + "c0" * 32
POD_POLICY = json.dumps(
    {
        "version": 1,
        "pod": "classifier",
        "containers": [
            {
                "name": "app",
                "kind": "app",
                "image_digest": "sha256:" + "ab" * 32,
                "repository": "registry.example/app",
                "signature_keys": [ECDSAP256Signer.generate().public_key.pem().decode()],
            }
        ],
        "streams": {"mode": "none"},
    }
)


def grant(data: InitData, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "template": "{level}/shop/{init_data}",
        "init_data": [data.digest_text],
        "appraisal_policy": "default",
        "audiences": [AUDIENCE, "spiffe://prod.example.org/default/measured/ledger"],
        "insecure_allow_levels": ["measured"],
    }
    return {**values, **changes}


def policy(*grants: Mapping[str, Any]) -> bytes:
    return json.dumps({"version": 1, "id": "shop", "grants": list(grants)}).encode()


def pod_data(**entries: str) -> InitData:
    """Init data of a pod with a name, under a contract."""
    return build_initdata({"pod-policy.json": POD_POLICY, "contract-id": CONTRACT, **entries})


@dataclass
class Domain:
    """A world with identities, and shorthand for asking."""

    world: World
    service: IdentityService

    def token(self, guest: Guest) -> VerifiedToken:
        keys = self.world.service.keys.signing.token_keys()
        return verify_token(guest.token, keys, at=self.world.clock.now)

    def x509(self, guest: Guest, csr: bytes, *, name: str = "", data: InitData | None = None) -> dict[str, Any]:
        body = {"csr": base64.b64encode(csr).decode(), **({"init_data": data.text.decode()} if data else {})}
        query = urlencode({"id": name}) if name else ""
        answer = self.service.handle("x509-svid", query, json.dumps(body).encode(), self.token(guest))
        return dict(json.loads(answer))

    def jwt(self, guest: Guest, *audiences: str, data: InitData | None = None) -> dict[str, Any]:
        query = "&".join(f"audience={quote(audience, safe='')}" for audience in audiences)
        body = json.dumps({"init_data": data.text.decode()}).encode() if data else b""
        return dict(json.loads(self.service.handle("jwt-svid", query, body, self.token(guest))))

    def authorities(self) -> list[x509.Certificate]:
        """The CA certificates of the bundle, read as a relying party does."""
        keys = json.loads(self.service.bundle())["keys"]
        return [
            x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0])) for key in keys if key["use"] == "x509-svid"
        ]


def make_domain(new_world: Factory, *grants: Mapping[str, Any], domain: str = DOMAIN) -> Domain:
    world = new_world(trust_domain=domain, identity_issuer=ISSUER)
    world.admin.put_identity_policy(policy(*(grants or (grant(world.data),))))
    assert world.service.identity is not None
    return Domain(world=world, service=world.service.identity)


def request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    *extensions: x509.ExtensionType,
    hash_: hashes.SHA224 | hashes.SHA256 | None = None,
) -> bytes:
    """Return a certificate request, DER."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever it likes")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hash_ or hashes.SHA256()).public_bytes(Encoding.DER)


def uris(*names: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names])


def leaf(answer: Mapping[str, Any]) -> x509.Certificate:
    return x509.load_der_x509_certificate(base64.b64decode(answer["x509_svid"]))


def names_of(certificate: x509.Certificate) -> Sequence[object]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [(type(item).__name__, item.value) for item in found]
