"""The own CA: certificates that OpenSSL's strict mode accepts for the right name, and refuses for any other."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cloister.crypto.signer import ECDSAP256Signer
from cloister.crypto.tlsca import CertificateAuthority, IssuedServer
from cloister.errors import FormatRefused

NOW = datetime.now(UTC)
NAMES = ("localhost", "127.0.0.1", "10.0.2.2", "::1", "trust.example")


def handshake(issued: IssuedServer, ca_pem: bytes, name: str, directory: Path) -> str:
    """Do a TLS handshake in memory; return the protocol version."""
    chain = directory / "chain.pem"
    chain.write_bytes(issued.certificate_pem + issued.key_pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(cadata=ca_pem.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0].version() or ""


@pytest.mark.parametrize("name", NAMES)
def test_the_server_is_accepted_under_each_of_its_names(name: str, tmp_path: Path) -> None:
    authority = CertificateAuthority.create("test", at=NOW)
    issued = authority.issue_server(NAMES, at=NOW)
    assert handshake(issued, authority.certificate_pem, name, tmp_path) == "TLSv1.3"


@pytest.mark.parametrize("name", ["127.0.0.2", "example", "evil.trust.example"])
def test_another_name_is_refused(name: str, tmp_path: Path) -> None:
    authority = CertificateAuthority.create("test", at=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.issue_server(NAMES, at=NOW), authority.certificate_pem, name, tmp_path)


def test_another_ca_of_the_same_name_is_refused(tmp_path: Path) -> None:
    ours, theirs = (CertificateAuthority.create("test", at=NOW) for _ in range(2))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(theirs.issue_server(NAMES, at=NOW), ours.certificate_pem, "localhost", tmp_path)


@pytest.mark.parametrize("days", [-2, 400])
def test_outside_its_validity_a_certificate_is_refused(days: int, tmp_path: Path) -> None:
    authority = CertificateAuthority.create("test", at=NOW - timedelta(days=500))
    issued = authority.issue_server(NAMES, at=NOW - timedelta(days=days))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(issued, authority.certificate_pem, "localhost", tmp_path)


def test_a_leaf_cannot_issue() -> None:
    leaf = x509.load_pem_x509_certificate(
        CertificateAuthority.create("t", at=NOW).issue_server(NAMES, at=NOW).certificate_pem
    )
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose.dotted_string for purpose in purposes] == ["1.3.6.1.5.5.7.3.1"]


def test_a_signer_certificate_is_for_no_server(tmp_path: Path) -> None:
    authority = CertificateAuthority.create("test", at=NOW)
    signer = ECDSAP256Signer.generate()
    certificate = x509.load_der_x509_certificate(authority.certify_signer("verifier", signer.public_key.spki, at=NOW))
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(authority.certificate_der))
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_a_root_comes_back_from_its_files() -> None:
    authority = CertificateAuthority.create("test", at=NOW)
    again = CertificateAuthority.from_pem(authority.certificate_pem, authority.key_pem())
    assert again.certificate_der == authority.certificate_der


def test_a_root_with_another_key_is_refused() -> None:
    first, second = (CertificateAuthority.create("test", at=NOW) for _ in range(2))
    for certificate, key in [
        (first.certificate_pem, second.key_pem()),
        (first.certificate_pem, b"no key"),
        (b"no certificate", first.key_pem()),
    ]:
        with pytest.raises(FormatRefused) as caught:
            CertificateAuthority.from_pem(certificate, key)
        assert caught.value.code == "crypto.tlsca.malformed"


@pytest.mark.parametrize("names", [(), ("",), ("https://x",), ("ä.example",), ("x" * 254,)])
def test_what_is_no_name_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(FormatRefused) as caught:
        CertificateAuthority.create("test", at=NOW).issue_server(names, at=NOW)
    assert caught.value.code == "crypto.tlsca.name"


def test_a_key_does_not_show_itself() -> None:
    issued = CertificateAuthority.create("test", at=NOW).issue_server(NAMES, at=NOW)
    assert "PRIVATE" not in repr(issued)
    load_pem_private_key(issued.key_pem, None)
