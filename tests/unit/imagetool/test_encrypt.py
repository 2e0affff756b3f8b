"""Sealing images: what comes out, what stays, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, ImageRefused
from cloister.imagetool.encrypt import SealedImage, encrypt_image, is_sealed
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.annotations import parse_layer_encryption
from cloister.oci.encryption.packet import unwrap_private_options
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    ImageManifest,
    parse_index,
    parse_manifest,
)
from cloister.oci.store import read_manifest
from tampering import flipped
from unit.oci.builders import KEK, RECIPIENTS, Built, archive, build_layout, file, registry_client

CANARY = b"canary-3f9a77"
LAYERS = (archive(file(b"secret", CANARY * 1000)), archive(file(b"other", CANARY)))


def seal(built: Built, sink: Any, **options: Any) -> SealedImage:
    options = {"tag": "v1", "recipients": RECIPIENTS, **options}
    return encrypt_image(built.layout, built.digest, sink, **options)


def sealed_manifest(store: Any) -> ImageManifest:
    return parse_manifest(read_manifest(store, "v1").raw)


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build_layout(tmp_path / "plain", *LAYERS, compression="")


@pytest.fixture
def sink(tmp_path: Path) -> OCILayout:
    return OCILayout(tmp_path / "sealed", create=True)


def test_every_layer_is_encrypted_and_the_configuration_stays(built: Built, sink: OCILayout) -> None:
    result = seal(built, sink)
    before, after = parse_manifest(read_manifest(built.layout, "v1").raw), sealed_manifest(sink)
    assert is_sealed(after)
    assert not is_sealed(before)
    assert after.digest == result.digest
    assert result.source_digest == before.digest
    assert result.layers == tuple(layer.digest for layer in after.layers)
    assert after.config.digest == before.config.digest
    for old, new in zip(before.layers, after.layers, strict=True):
        assert new.media_type == f"{old.media_type}+encrypted"
        assert new.size == old.size
        assert new.digest != old.digest


def test_no_plaintext_reaches_the_destination(built: Built, tmp_path: Path, sink: OCILayout) -> None:
    seal(built, sink)
    registry, _ = registry_client(tmp_path / "registry")
    seal(built, registry)

    def holds_canary(place: Path) -> bool:
        return any(CANARY in path.read_bytes() for path in place.rglob("*") if path.is_file())

    assert holds_canary(tmp_path / "plain")  # the scan does find it where it is
    assert not holds_canary(tmp_path / "sealed")
    assert not holds_canary(tmp_path / "registry")


def test_every_layer_of_every_run_has_its_own_key_and_nonce(built: Built, tmp_path: Path) -> None:
    seen: list[tuple[bytes, bytes | None]] = []
    for number in range(2):
        sink = OCILayout(tmp_path / f"run{number}", create=True)
        seal(built, sink)
        for layer in sealed_manifest(sink).layers:
            options = unwrap_private_options(parse_layer_encryption(layer).packets()[0], KEK)
            seen.append((bytes(options.key), options.nonce))
    assert len({key for key, _ in seen}) == len({nonce for _, nonce in seen}) == 4


def test_sealing_into_a_registry(built: Built, tmp_path: Path) -> None:
    registry, _ = registry_client(tmp_path / "registry")
    result = seal(built, registry)
    assert Digest.of(read_manifest(registry, "v1").raw) == result.digest


def rewrite(built: Built, change: dict[str, Any], layer: dict[str, Any], tag: str = "v1") -> Built:
    document = parse_document(read_manifest(built.layout, built.digest).raw, ceiling=1 << 20, code="test")
    document.update(change)
    document["layers"][0].update(layer)
    digest = built.layout.write_manifest(encode_document(document), document["mediaType"], tag)
    return built._replace(digest=digest)


def test_docker_types_become_oci_types(tmp_path: Path, sink: OCILayout) -> None:
    built = build_layout(tmp_path / "d", LAYERS[0])
    docker = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    document = parse_document(read_manifest(built.layout, "v1").raw, ceiling=1 << 20, code="test")
    config = {**document["config"], "mediaType": DOCKER_CONFIG}
    seal(rewrite(built, {"mediaType": DOCKER_MANIFEST, "config": config}, {"mediaType": docker}), sink)
    after = sealed_manifest(sink)
    assert (after.media_type, after.config.media_type) == (OCI_MANIFEST, OCI_CONFIG)
    assert after.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"


def test_other_members_and_annotations_stay(built: Built, sink: OCILayout) -> None:
    stale = {"org.opencontainers.image.enc.pubopts": "stale", "org.test/kept": "yes"}
    seal(rewrite(built, {"annotations": {"a": "b"}, "org.test.future": [1, {"x": None}]}, {"annotations": stale}), sink)
    document = parse_document(read_manifest(sink, "v1").raw, ceiling=1 << 20, code="test")
    assert document["annotations"] == {"a": "b"}
    assert document["org.test.future"] == [1, {"x": None}]
    assert document["layers"][0]["annotations"]["org.test/kept"] == "yes"
    assert parse_layer_encryption(sealed_manifest(sink).layers[0])


def index_of(built: Built, *entries: dict[str, Any]) -> Built:
    index = encode_document({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": list(entries), "x.kept": 1})
    return built._replace(digest=built.layout.write_manifest(index, DOCKER_INDEX, "multi"))


def entry_of(digest: Digest, architecture: str, **members: Any) -> dict[str, Any]:
    platform = {"os": "linux", "architecture": architecture}
    return {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1, "platform": platform, **members}


@pytest.fixture
def multi(built: Built, tmp_path: Path) -> Built:
    """An index of two platforms and an attestation."""
    other = build_layout(tmp_path / "plain", archive(file(b"arm", CANARY)), tag="arm")
    note = build_layout(tmp_path / "plain", archive(file(b"sbom", CANARY)), tag="sbom")
    note_entry = entry_of(note.digest, "unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    note_entry["platform"] = {"os": "unknown", "architecture": "unknown"}
    return index_of(built, entry_of(built.digest, "amd64"), entry_of(other.digest, "arm64"), note_entry)


def test_all_platforms_are_encrypted_and_indexed(multi: Built, built: Built, sink: OCILayout, tmp_path: Path) -> None:
    result = seal(multi, sink)
    stored = read_manifest(sink, "v1")
    index = parse_index(stored.raw, media_type=stored.media_type)
    assert (index.media_type, index.digest) == (OCI_INDEX, result.digest)
    assert [entry.platform for entry in index.manifests] == ["linux/amd64", "linux/arm64"]
    assert parse_document(stored.raw, ceiling=1 << 20, code="test")["x.kept"] == 1
    for entry in index.manifests:
        found = read_manifest(sink, entry.digest)
        assert len(found.raw) == entry.size
        assert is_sealed(parse_manifest(found.raw))
    assert len(result.image.left_out) == 1
    assert result.image.manifests[0].source.digest == built.digest
    assert not any(CANARY in path.read_bytes() for path in (tmp_path / "sealed").rglob("*") if path.is_file())


def test_one_platform_is_taken_out_of_an_index(multi: Built, built: Built, sink: OCILayout) -> None:
    result = seal(multi, sink, platform="linux/amd64")
    assert result.source_digest == built.digest
    assert not result.image.is_index
    assert is_sealed(sealed_manifest(sink))
    assert refused(lambda: seal(multi, sink, platform="linux/s390x")) == "oci.manifest.no_platform"


def test_indexes_that_name_no_image_are_refused(multi: Built, built: Built, sink: OCILayout) -> None:
    assert refused(lambda: seal(index_of(built), sink)) == "imagetool.platforms.empty_index"
    nested = index_of(multi, entry_of(multi.digest, "amd64", mediaType=DOCKER_INDEX))
    assert refused(lambda: seal(nested, sink)) == "imagetool.platforms.nested_index"


class Watch:
    total = 0
    done = 0

    def begin(self, total_bytes: int) -> None:
        self.total = total_bytes

    def advance(self, count: int) -> None:
        self.done += count


def test_progress_counts_every_byte(built: Built, sink: OCILayout) -> None:
    watch = Watch()
    result = seal(built, sink, progress=watch)
    assert watch.total == watch.done == result.plain_bytes > 0


def refused(run: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


def test_a_sealed_image_is_not_sealed_again(built: Built, sink: OCILayout, tmp_path: Path) -> None:
    result = seal(built, sink)
    again = Built(sink, result.digest, (), tmp_path)
    assert refused(lambda: seal(again, OCILayout(tmp_path / "x", create=True))) == "oci.encryption.already_encrypted"


def test_a_partly_encrypted_image_is_neither(built: Built, sink: OCILayout) -> None:
    media_type = "application/vnd.oci.image.layer.v1.tar+encrypted"
    half = rewrite(built, {}, {"mediaType": media_type})
    manifest = parse_manifest(read_manifest(half.layout, half.digest).raw)
    assert refused(lambda: is_sealed(manifest)) == "oci.encryption.partly_encrypted"
    assert refused(lambda: seal(half, sink)) == "oci.encryption.already_encrypted"


@pytest.mark.parametrize(
    ("media_type", "code"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", "oci.manifest.foreign_layer"),
        ("application/wasm", "oci.manifest.unknown_layer_type"),
    ],
)
def test_layers_that_cannot_be_sealed_are_refused(built: Built, sink: OCILayout, media_type: str, code: str) -> None:
    assert refused(lambda: seal(rewrite(built, {}, {"mediaType": media_type}), sink)) == code
    assert refused(lambda: read_manifest(sink, "v1")) == "oci.layout.manifest_missing"


def test_an_image_without_layers_is_refused(tmp_path: Path, sink: OCILayout) -> None:
    assert refused(lambda: seal(build_layout(tmp_path / "none"), sink)) == "oci.encryption.no_layers"


class Refusing:
    """A recipient that cannot be used."""

    scheme = "provider.broken"

    def wrap(self, options: bytes) -> bytes:
        raise ImageRefused("test.refused", "no")


def test_a_recipient_that_cannot_be_used_leaves_nothing(built: Built, sink: OCILayout, tmp_path: Path) -> None:
    assert refused(lambda: seal(built, sink, recipients=[*RECIPIENTS, Refusing()])) == "test.refused"
    assert refused(lambda: seal(built, sink, recipients=[])) == "oci.encryption.no_recipient"
    assert list((tmp_path / "sealed" / "blobs" / "sha256").iterdir()) == []


def test_a_changed_source_layer_is_refused_and_not_stored(built: Built, sink: OCILayout, tmp_path: Path) -> None:
    layer = parse_manifest(read_manifest(built.layout, "v1").raw).layers[0]
    blob = tmp_path / "plain" / "blobs" / "sha256" / layer.digest.hex
    blob.write_bytes(flipped(blob.read_bytes()))
    assert refused(lambda: seal(built, sink)) == "oci.layout.digest_mismatch"
    assert len(list((tmp_path / "sealed" / "blobs" / "sha256").iterdir())) < len(LAYERS)
    assert refused(lambda: read_manifest(sink, "v1")) == "oci.layout.manifest_missing"


def test_foreign_layers_are_left_only_where_the_caller_says_so(built: Built, sink: OCILayout, tmp_path: Path) -> None:
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    layer = parse_manifest(read_manifest(built.layout, "v1").raw).layers[0]
    blob = tmp_path / "plain" / "blobs" / "sha256" / layer.digest.hex
    blob.unlink()  # it is elsewhere
    image = rewrite(built, {}, {"mediaType": foreign, "urls": ["https://elsewhere.test/layer"]})
    assert refused(lambda: seal(image, sink)) == "oci.manifest.foreign_layer"
    result = seal(image, sink, leave_foreign=True)
    document = parse_document(read_manifest(sink, "v1").raw, ceiling=1 << 20, code="test")
    assert (result.foreign, result.plain_bytes) == (1, len(built.layers[1]))
    assert document["layers"][0]["mediaType"] == foreign
    assert document["layers"][0]["urls"] == ["https://elsewhere.test/layer"]
    assert document["layers"][1]["mediaType"].endswith("+encrypted")


def test_a_plain_layer_that_is_not_the_configurations_is_refused(built: Built, sink: OCILayout) -> None:
    document = parse_document(read_manifest(built.layout, "v1").raw, ceiling=1 << 20, code="test")
    swapped = rewrite(built, {"layers": document["layers"][::-1]}, {})
    assert refused(lambda: seal(swapped, sink)) == "oci.layer.diff_id_mismatch"
    fewer = rewrite(built, {"layers": document["layers"][:1]}, {})
    assert refused(lambda: seal(fewer, sink)) == "imagetool.layers.diff_ids"
