"""What OpenSSL says of an X509-SVID: strict verification for both purposes, and our extension readable as text."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.protocol.spiffe import ATTESTATION_OID
from conformance.tools import require_tool
from identity_world import Domain, leaf, make_domain, request
from trust_world import World, make_world, quick_directory


@pytest.fixture
def quick() -> Iterator[Path]:
    with quick_directory() as directory:
        yield directory


@pytest.fixture
def domain(quick: Path) -> Iterator[Domain]:
    made: list[World] = []

    def new_world(**settings: object) -> World:
        made.append(make_world(quick / "world", **settings))
        return made[-1]

    yield make_domain(new_world)
    for world in made:
        world.close()


def test_openssl_verifies_the_certificate_and_shows_the_statement(domain: Domain, quick: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    program = require_tool("openssl")
    guest = domain.world.guest().handshake()
    certificate = leaf(domain.x509(guest, request(key)))
    (quick / "leaf.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (quick / "ca.pem").write_bytes(domain.authorities()[0].public_bytes(Encoding.PEM))
    at = str(int(domain.world.clock.now.timestamp()))

    def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], cwd=quick, capture_output=True, text=True, timeout=20)

    for purpose in ("sslclient", "sslserver"):
        strict = ("verify", "-x509_strict", "-attime", at, "-purpose", purpose, "-CAfile", "ca.pem", "leaf.pem")
        done = openssl(*strict)
        assert (done.returncode, done.stdout) == (0, "leaf.pem: OK\n"), done.stderr
    assert openssl("verify", "-attime", at, "leaf.pem").returncode != 0
    text = openssl("x509", "-in", "leaf.pem", "-noout", "-text").stdout
    assert f"URI:{domain.x509(guest, request(key))['spiffe_id']}" in text and ATTESTATION_OID in text
    value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(ATTESTATION_OID)).value
    assert isinstance(value, x509.UnrecognizedExtension)
    (quick / "statement.der").write_bytes(value.value)
    shown = openssl("asn1parse", "-inform", "DER", "-in", "statement.der").stdout
    assert ":measured" in shown and f":{domain.world.data.digest_text}" in shown
