"""A small certification authority for tests of collateral."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

NOW: Final = datetime(2026, 6, 1, tzinfo=UTC)
YEAR: Final = timedelta(days=365)


def name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class SmallPKI:
    """Root, intermediate and leaf on P-256; lists and OCSP answers by them."""

    def __init__(self) -> None:
        self.root_key, self.inter_key, self.leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root = self._issue("Root", self.root_key, "Root", self.root_key)
        self.inter = self._issue("Inter", self.inter_key, "Root", self.root_key)
        self.leaf = self._issue("Leaf", self.leaf_key, "Inter", self.inter_key)

    @staticmethod
    def _issue(
        subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(name_of(subject))
            .issuer_name(name_of(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - YEAR)
            .not_valid_after(NOW + YEAR)
            .add_extension(x509.BasicConstraints(ca=subject != "Leaf", path_length=None), critical=True)
            .sign(issuer_key, SHA256())
        )

    def revocation_list(self) -> x509.CertificateRevocationList:
        return (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name_of("Root"))
            .last_update(NOW - timedelta(days=1))
            .next_update(NOW + timedelta(days=29))
            .sign(self.root_key, SHA256())
        )

    def ocsp_response(self) -> bytes:
        return (
            ocsp.OCSPResponseBuilder()
            .add_response(
                cert=self.leaf,
                issuer=self.inter,
                algorithm=SHA256(),
                cert_status=ocsp.OCSPCertStatus.GOOD,
                this_update=NOW,
                next_update=NOW + timedelta(days=1),
                revocation_time=None,
                revocation_reason=None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.NAME, self.inter)
            .sign(self.inter_key, SHA256())
            .public_bytes(Encoding.DER)
        )


@pytest.fixture(scope="session")
def pki() -> SmallPKI:
    return SmallPKI()
