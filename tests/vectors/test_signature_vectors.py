"""Signatures made by cosign 2.5 and containers' tools, and policy files of CoCo's image-rs: each with its verdict."""

from __future__ import annotations

import base64
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.crypto.openpgpverify import parse_keyring, verify_message
from cloister.oci.digest import Digest
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cloister.oci.reference import parse_reference
from cloister.oci.signing.bundle import parse_bundle, parse_statement
from cloister.oci.signing.keys import PublicKey, load_public_key
from cloister.oci.signing.lookaside import LookasideConfig, parse_lookaside
from cloister.oci.signing.policyjson import Accept, SignedBy, SigstoreSigned, docker_scopes, parse_policy
from cloister.oci.signing.referred import read_bundles
from cloister.oci.signing.simplesigning import ATOMIC_TYPE, parse_payload
from cloister.oci.signing.verify import BundleCandidate, ExactRepository, verify_by_key
from signing_world import refused

REPOSITORY = ExactRepository("127.0.0.1:5577/vec/hello")
ATTESTATION = "https://cosign.sigstore.dev/attestation/v1"
CONFIDENTIAL = "quay.io/kata-containers/confidential-containers"
KEPT = "kata-containers/confidential-containers@sha256="


@pytest.fixture
def cosign(guest_vectors: Path) -> Path:
    return guest_vectors / "signature" / "cosign-2.5"


@pytest.fixture
def key(cosign: Path) -> PublicKey:
    return load_public_key((cosign / "cosign.pub").read_bytes())


# -- bundles of cosign 2.5 ------------------------------------------------------------------------------------------


def test_the_attestation_is_found_and_verifies(cosign: Path, key: PublicKey, tmp_path: Path) -> None:
    """The list under the fallback tag gives another artifact type and no annotations; it is found all the same."""
    image = (cosign / "image-manifest.json").read_bytes()
    layout = OCILayout(tmp_path / "layout", create=True)
    layout.write_blob([(cosign / "attest-bundle.v0.3.json").read_bytes()])
    layout.write_blob([b"{}"])
    layout.write_manifest((cosign / "bundle-manifest.json").read_bytes(), OCI_MANIFEST)
    listed = (cosign / "referrers-fallback-index.json").read_bytes()
    assert b"vnd.oci.empty" in listed and b"annotations" not in listed
    digest = Digest.of(image)
    layout.write_manifest(listed, OCI_INDEX, f"sha256-{digest.hex}")
    (found,) = read_bundles(layout, digest)
    assert verify_by_key(found, image, [key], REPOSITORY, ATTESTATION) is key
    assert refused(lambda: verify_by_key(found, image, [key], REPOSITORY)) == "oci.signing.statement.predicate"
    other = ExactRepository("127.0.0.1:5577/vec/other")
    assert refused(lambda: verify_by_key(found, image, [key], other, ATTESTATION)) == "oci.signing.other_repository"
    changed = image.replace(b"{", b"{ ", 1)
    assert refused(lambda: verify_by_key(found, changed, [key], REPOSITORY, ATTESTATION)) == "oci.signing.other_image"


def test_the_hint_is_the_hash_of_the_key(cosign: Path, key: PublicKey) -> None:
    bundle = parse_bundle((cosign / "attest-bundle.v0.3.json").read_bytes())
    assert bundle.version == "0.3" and bundle.certificates == () and bundle.entries == ()
    assert bundle.key_hint == base64.b64encode(bytes.fromhex(key.fingerprint)).decode()
    assert parse_statement(bundle.payload).predicate_type == ATTESTATION


def test_the_message_signature_verifies(cosign: Path, key: PublicKey) -> None:
    raw = (cosign / "blob-messagesignature.v0.3.json").read_bytes()
    blob = (cosign / "blob.txt").read_bytes()
    unnamed = ExactRepository("a.test/b", allow_unnamed=True)
    assert verify_by_key(BundleCandidate(raw=raw), blob, [key], unnamed) is key
    assert refused(lambda: verify_by_key(BundleCandidate(raw=raw), blob + b"x", [key], unnamed)) == (
        "oci.signing.bad_signature"
    )


@pytest.mark.parametrize("name", ["cosign1.pub", "cosign2.pub", "cosign3.pub", "nv.pub"])
def test_other_keys_parse_and_are_wrong(cosign: Path, guest_vectors: Path, name: str) -> None:
    wrong = load_public_key((guest_vectors / "signature" / "cosign-upstream" / name).read_bytes())
    candidate = BundleCandidate(raw=(cosign / "attest-bundle.v0.3.json").read_bytes())
    image = (cosign / "image-manifest.json").read_bytes()
    assert refused(lambda: verify_by_key(candidate, image, [wrong], REPOSITORY, ATTESTATION)) == (
        "oci.signing.bad_signature"
    )


# -- simple signing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["signature-1", "signature-2"])
def test_signatures_of_image_rs(guest_vectors: Path, name: str) -> None:
    """Good, by the key named; but over SHA-1, which counts only for whoever says so."""
    files = guest_vectors / "signature" / "simple-signing"
    keyring = parse_keyring((files / "pubring.gpg").read_bytes())
    raw, now = (files / name).read_bytes(), datetime.now(UTC)
    assert refused(lambda: verify_message(raw, keyring, now=now)) == "crypto.openpgp.algorithm"
    found = verify_message(raw, keyring, now=now, allow_sha1=True)
    assert found.key.key_id == "7EFD4C926F9311E2"
    digest = parse_payload(found.content, (ATOMIC_TYPE,)).digest
    assert str(digest).startswith("sha256:69704ef3") and digest.hex.endswith("af8a")
    for place in (-1, -40, -300):
        changed = bytearray(raw)
        changed[place] ^= 1
        assert refused(lambda changed=changed: verify_message(bytes(changed), keyring, now=now, allow_sha1=True))


def kept(files: Path, start: str) -> bytes:
    with tarfile.open(files / "signatures.tar") as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(f"{KEPT}{start}"):
                stream = archive.extractfile(member)
                assert stream is not None
                return stream.read()
    raise AssertionError(start)


def test_signatures_of_the_store(guest_vectors: Path) -> None:
    """Good while the key lived, and refused since it expired; by an unknown key, refused at any time."""
    files = guest_vectors / "signature" / "simple-signing"
    keyring = parse_keyring((files / "pubkey.gpg").read_bytes())
    good, then, now = kept(files, "febcf61c"), datetime(2022, 9, 1, tzinfo=UTC), datetime.now(UTC)
    found = verify_message(good, keyring, now=then)
    assert found.key.key_id == "58F6ED07EEA6B429"
    assert parse_payload(found.content, (ATOMIC_TYPE,)).digest.hex.startswith("febcf61c")
    assert refused(lambda: verify_message(good, keyring, now=now)) == "crypto.openpgp.key_expired"
    for at in (then, now):
        code = refused(lambda at=at: verify_message(kept(files, "7250923b"), keyring, now=at))
        assert code == "crypto.openpgp.unknown_key"


# -- policies -------------------------------------------------------------------------------------------------------


def test_a_policy_of_all_types(guest_vectors: Path) -> None:
    policy = parse_policy((guest_vectors / "signature" / "policy" / "policy_all_types.json").read_bytes())
    scope, found = policy.requirements("docker", docker_scopes(parse_reference("x.access.redhat.com/y:1")))
    assert scope == "transports.docker.*.access.redhat.com" and len(found) == 2
    assert policy.requirements("dir", ("/a",)) == ("transports.dir.(any)", (Accept(),))
    assert policy.requirements("oci", ("/a",))[0] == "default"


@pytest.mark.parametrize("name", ["sample_kbc_policy.json", "simple_signing_security_policy.json"])
def test_policies_of_image_rs(guest_vectors: Path, name: str) -> None:
    policy = parse_policy((guest_vectors / "signature" / "policy" / name).read_bytes())
    for tag, kind in (("signed", SignedBy), ("cosign-signed", SigstoreSigned)):
        _, found = policy.requirements("docker", docker_scopes(parse_reference(f"{CONFIDENTIAL}:{tag}")))
        assert isinstance(found[0], kind)
    assert policy.requirements("docker", docker_scopes(parse_reference("a.test/b")))[1] == (Accept(),)


def merged(folder: Path, *names: str) -> LookasideConfig:
    return parse_lookaside([(folder / f"sigstore_config_{name}.yaml").read_bytes() for name in names])


@pytest.mark.parametrize("case", [1, 2, 3])
def test_configurations_of_stores_merge(guest_vectors: Path, case: int) -> None:
    folder = guest_vectors / "signature" / "policy"
    expected = merged(folder, f"merged_result_res{case}")
    assert merged(folder, f"test_case_{case}_1", f"test_case_{case}_2") == expected
    assert merged(folder, f"test_case_{case}_2", f"test_case_{case}_1") == expected


def test_the_store_of_an_image(guest_vectors: Path) -> None:
    config = merged(guest_vectors / "signature" / "policy", "get_base_url_res")
    for name, store in (("example1.com/a/b", "/var/lib/containers/sigstore"), ("other.com/a", "/default/sigstore")):
        found = config.find(parse_reference(name))
        assert found is not None and found.read == f"file://{store}"
    raw = (guest_vectors / "signature" / "policy" / "simple_signing_sigstore_config.yaml").read_bytes()
    found = parse_lookaside([raw]).find(parse_reference(f"{CONFIDENTIAL}:signed"))
    assert found is not None and found.read == found.write == "file:///etc/containers/quay_verification/signatures"
