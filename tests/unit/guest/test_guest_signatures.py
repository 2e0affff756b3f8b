"""Which signatures the guest takes for an image: cosign's classic form and bundles, by the pod policy's keys alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from cloister.crypto.signer import ECDSAP256PublicKey, ECDSAP256Signer
from cloister.guest.images import read_named_manifest, verify_image
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.keyless import SigstoreServices, sign_keyless
from cloister.imagetool.sign import attach_bundle, sign_bundle, sign_image
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.signing.bundle import IN_TOTO_TYPE, Bundle, encode_bundle, encode_statement
from cloister.oci.signing.trustedroot import parse_trusted_root
from cloister.oci.store import read_manifest
from cloister.podpolicy.model import ContainerPolicy
from cloister.testing.sigstore import TestSigstore, test_token
from signing_world import REPOSITORY, refused
from unit.oci.builders import RECIPIENTS, InProcessTransport, archive, build_layout, file, registry_client

SIGNER = ECDSAP256Signer.generate()
OTHER = ECDSAP256Signer.generate()


class Sealed(NamedTuple):
    """An encrypted image in a registry."""

    client: RegistryClient
    transport: InProcessTransport
    digest: Digest

    def verify(self, key: ECDSAP256PublicKey = SIGNER.public_key) -> Digest:
        policy = ContainerPolicy(
            name="app",
            kind="app",
            image_digest=str(self.digest),
            repository=REPOSITORY,
            signature_keys=(key.pem().decode(),),
        )
        return verify_image(self.client, policy, read_named_manifest(self.client, policy)).digest


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    built = build_layout(tmp_path / "plain", archive(file(b"a", b"x")))
    client, transport = registry_client(tmp_path / "registry")
    image = encrypt_image(built.layout, "v1", client, tag="v1", recipients=RECIPIENTS)
    return Sealed(client, transport, image.digest)


def bundle_naming(
    repository: str, digest: Digest, predicate_type: str = "https://sigstore.dev/cosign/sign/v1"
) -> bytes:
    """Return a bundle by the owner's key."""
    statement = encode_statement(digest, repository=repository, predicate_type=predicate_type)
    unsigned = Bundle(version="0.3", payload=statement, payload_type=IN_TOTO_TYPE, signature=b"", key_hint="k")
    signature = SIGNER.sign(unsigned.signed_bytes(b""))
    return encode_bundle(
        Bundle(version="0.3", payload=statement, payload_type=IN_TOTO_TYPE, signature=signature, key_hint="k")
    )


def test_a_bundle_by_the_policys_key_is_accepted(sealed: Sealed) -> None:
    assert refused(sealed.verify) == "oci.signing.unsigned"
    sign_bundle(sealed.client, sealed.digest, SIGNER, repository=REPOSITORY)
    assert sealed.verify() == sealed.digest
    assert refused(lambda: sealed.verify(OTHER.public_key)) == "oci.signing.no_valid_signature"


def test_a_classic_signature_needs_no_second_look(sealed: Sealed) -> None:
    sign_image(sealed.client, sealed.digest, SIGNER, repository=REPOSITORY)
    sign_bundle(sealed.client, sealed.digest, OTHER, repository=REPOSITORY)
    sealed.transport.log.clear()
    assert sealed.verify() == sealed.digest
    assert not [line for line in sealed.transport.log if "referrers" in line]
    assert sealed.verify(OTHER.public_key) == sealed.digest  # only the bundle is by the other key


def test_a_bundle_may_name_no_repository_but_no_other(sealed: Sealed) -> None:
    """cosign 3 names none; the digest is what the measured policy pins."""
    stored = read_manifest(sealed.client, sealed.digest)
    attach_bundle(sealed.client, stored, bundle_naming("images.test/other", sealed.digest))
    assert refused(sealed.verify) == "oci.signing.no_valid_signature"
    attach_bundle(sealed.client, stored, bundle_naming("", sealed.digest))
    assert sealed.verify() == sealed.digest


def test_bundles_about_something_else_do_not_count(sealed: Sealed) -> None:
    stored = read_manifest(sealed.client, sealed.digest)
    attach_bundle(sealed.client, stored, bundle_naming(REPOSITORY, Digest.of(b"other")))
    attach_bundle(sealed.client, stored, bundle_naming(REPOSITORY, sealed.digest, "https://scan.test/failed"))
    attach_bundle(sealed.client, stored, b"{}")
    assert refused(sealed.verify) == "oci.signing.no_valid_signature"


def test_a_keyless_bundle_is_no_signature_by_the_key(sealed: Sealed) -> None:
    services = TestSigstore(at=datetime.now(UTC))
    client = SigstoreServices(fulcio="https://fulcio.test", rekor="https://rekor.test", transport=services.transport())
    root = parse_trusted_root(services.trusted_root())
    token = test_token("https://me.test", "https://login.test")
    sign_keyless(sealed.client, sealed.digest, client, token=token, root=root, repository=REPOSITORY)
    assert refused(sealed.verify) == "oci.signing.no_valid_signature"
