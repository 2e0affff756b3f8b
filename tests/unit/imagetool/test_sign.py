"""Signing images."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError
from cloister.imagetool.sign import sign_image
from cloister.oci.document import encode_document
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from cloister.oci.signing.simplesigning import (
    SIGNATURE_ANNOTATION,
    SignatureCandidate,
    Statement,
    encode_payload,
    encode_signatures,
    parse_payload,
    read_candidates,
    signature_tag,
    signed_seconds,
)
from cloister.oci.store import StoredManifest, checked_blob, copy_blob, read_manifest
from unit.oci.builders import REFERENCE, Built, archive, build_layout, file, registry_client, verify


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build_layout(tmp_path / "plain", archive(file(b"a", b"x")))


def test_the_signature_is_stored_as_cosign_stores_it(built: Built) -> None:
    signer = ECDSAP256Signer.generate()
    assert sign_image(built.layout, "v1", signer, repository=REFERENCE.name) == built.digest
    tag = signature_tag(built.digest)
    assert tag == f"sha256-{built.digest.hex}.sig"
    manifest = parse_manifest(read_manifest(built.layout, tag).raw)
    (layer,) = manifest.layers
    assert layer.media_type == "application/vnd.dev.cosign.simplesigning.v1+json"
    assert set(layer.annotations) == {SIGNATURE_ANNOTATION}
    payload = b"".join(checked_blob(built.layout, layer))
    assert payload == (
        b'{"critical":{"identity":{"docker-reference":"images.test/team/app"},"image":{"docker-manifest-digest":"%s"},'
        b'"type":"cosign container image signature"},"optional":null}' % str(built.digest).encode()
    )
    assert parse_payload(payload).digest == built.digest
    assert list(checked_blob(built.layout, manifest.config))


def test_what_is_signed_verifies(built: Built) -> None:
    signer = ECDSAP256Signer.generate()
    sign_image(built.layout, built.digest, signer, repository=REFERENCE.name)
    assert verify(built.layout, built.digest, signer).digest == built.digest


def test_signing_again_with_the_same_key_changes_nothing(built: Built) -> None:
    signer = ECDSAP256Signer.generate()
    sign_image(built.layout, built.digest, signer, repository=REFERENCE.name)
    before = read_manifest(built.layout, signature_tag(built.digest)).raw
    sign_image(built.layout, built.digest, signer, repository=REFERENCE.name)
    assert read_manifest(built.layout, signature_tag(built.digest)).raw == before


def test_signing_again_with_a_time_changes_only_the_time(built: Built) -> None:
    signer, other = ECDSAP256Signer.generate(), ECDSAP256Signer.generate()
    first = datetime(2026, 11, 20, tzinfo=UTC)
    sign_image(built.layout, built.digest, signer, repository=REFERENCE.name)
    sign_image(built.layout, built.digest, other, repository=REFERENCE.name, at=first)
    for at in (first, first + timedelta(days=1)):
        sign_image(built.layout, built.digest, signer, repository=REFERENCE.name, at=at)
        found = read_candidates(built.layout, built.digest)
        assert [signed_seconds(item.payload) for item in found] == [int(first.timestamp()), int(at.timestamp())]
    before = read_manifest(built.layout, signature_tag(built.digest)).raw
    sign_image(built.layout, built.digest, signer, repository=REFERENCE.name)
    assert read_manifest(built.layout, signature_tag(built.digest)).raw == before
    for key in (signer, other):
        assert verify(built.layout, built.digest, key).digest == built.digest


@pytest.mark.parametrize(
    "optional",
    [
        "null",
        "{}",
        '"x"',
        '{"timestamp":null}',
        '{"timestamp":"1"}',
        '{"timestamp":1.5}',
        '{"timestamp":-1}',
        '{"timestamp":true}',
        '{"timestamp":253402300800}',
        '{"creator":"cosign"}',
    ],
)
def test_what_is_no_time_is_none(built: Built, optional: str) -> None:
    payload = encode_payload(Statement(REFERENCE.name, built.digest)).replace(b"null", optional.encode())
    assert signed_seconds(payload) is None
    assert parse_payload(payload).digest == built.digest
    timed = encode_payload(Statement(REFERENCE.name, built.digest), seconds=5)
    assert signed_seconds(timed) == 5 and b'"optional":{"creator":"cloister","timestamp":5}' in timed


def test_other_keys_and_repositories_are_added(built: Built, tmp_path: Path) -> None:
    client, _ = registry_client(tmp_path / "registry")
    manifest = parse_manifest(read_manifest(built.layout, "v1").raw)
    for descriptor in (manifest.config, *manifest.layers):
        copy_blob(built.layout, client, descriptor)
    client.write_manifest(manifest.raw, OCI_MANIFEST, "v1")
    first, second = ECDSAP256Signer.generate(), ECDSAP256Signer.generate()
    sign_image(client, "v1", first, repository=REFERENCE.name)
    sign_image(client, "v1", second, repository=REFERENCE.name)
    sign_image(client, "v1", first, repository="elsewhere.test/app")
    assert len(read_candidates(client, built.digest)) == 3
    for signer in (first, second):
        assert verify(client, built.digest, signer).verified_manifest.signer == signer.public_key.fingerprint


def test_an_index_can_be_signed(built: Built) -> None:
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
    digest = built.layout.write_manifest(index, OCI_INDEX, "multi")
    assert sign_image(built.layout, "multi", ECDSAP256Signer.generate(), repository=REFERENCE.name) == digest


def refused(built: Built, selector: str) -> str:
    with pytest.raises(CloisterError) as caught:
        sign_image(built.layout, selector, ECDSAP256Signer.generate(), repository=REFERENCE.name)
    return caught.value.code


def test_what_is_not_there_is_not_signed(built: Built) -> None:
    assert refused(built, "v9") == "oci.layout.manifest_missing"


def test_what_is_no_image_is_not_signed(built: Built) -> None:
    class Odd(OCILayout):
        def get_manifest(self, selector: str) -> StoredManifest | None:
            return StoredManifest(b'{"schemaVersion":2}', OCI_INDEX)

    assert refused(built._replace(layout=Odd(built.path)), "odd") == "oci.manifest.ambiguous"


def test_the_number_of_signatures_is_bounded(built: Built) -> None:
    candidates = [SignatureCandidate(b"%d" % number, b"s") for number in range(32)]
    manifest, config = encode_signatures(candidates)
    for blob in (config, *(candidate.payload for candidate in candidates)):
        built.layout.write_blob([blob])
    built.layout.write_manifest(manifest, OCI_MANIFEST, signature_tag(built.digest))
    assert refused(built, "v1") == "oci.signing.too_many"
