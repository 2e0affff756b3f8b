"""Manifests, indexes and configurations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.manifest import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    LayerType,
    is_index,
    parse_config,
    parse_index,
    parse_layer_type,
    parse_manifest,
)

DIGEST = "sha256:" + "a" * 64
LAYER = "application/vnd.oci.image.layer.v1.tar"


def descriptor(media_type: str = LAYER, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 10, **more}


def manifest(**more: Any) -> dict[str, Any]:
    base = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG), "layers": [descriptor()]}
    return {key: value for key, value in {**base, **more}.items() if value is not ...}


def index(**more: Any) -> dict[str, Any]:
    entry = descriptor(OCI_MANIFEST, platform={"os": "linux", "architecture": "arm64", "variant": "v8"})
    base = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    return {key: value for key, value in {**base, **more}.items() if value is not ...}


def encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def test_manifest_is_typed_and_keeps_its_bytes() -> None:
    raw = encode(manifest(annotations={"a": "b"}, layers=[descriptor(annotations={"c": "d"})], unknown=[1]))
    parsed = parse_manifest(raw)
    assert parsed.raw == raw
    assert parsed.digest == Digest.of(raw)
    assert parsed.config.media_type == OCI_CONFIG
    assert parsed.layers[0].annotations == {"c": "d"}
    assert parsed.annotations == {"a": "b"}


@pytest.mark.parametrize("said", ["", OCI_MANIFEST])
def test_manifest_without_media_type_is_taken(said: str) -> None:
    assert parse_manifest(encode(manifest(mediaType=...)), media_type=said).media_type == OCI_MANIFEST


def test_docker_schema_2_is_read() -> None:
    raw = encode(manifest(mediaType=DOCKER_MANIFEST, config=descriptor(DOCKER_CONFIG)))
    assert parse_manifest(raw, media_type=DOCKER_MANIFEST).media_type == DOCKER_MANIFEST
    assert is_index(encode(index(mediaType=DOCKER_INDEX)))


def test_index_gives_platforms() -> None:
    parsed = parse_index(encode(index()))
    assert parsed.manifests[0].platform == "linux/arm64/v8"


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (manifest(schemaVersion=1), "oci.manifest.schema_version"),
        (manifest(schemaVersion="2"), "oci.manifest.wrong_type"),
        (manifest(schemaVersion=...), "oci.manifest.missing_member"),
        (manifest(manifests=[]), "oci.manifest.ambiguous"),
        (manifest(mediaType=OCI_INDEX), "oci.manifest.ambiguous"),
        (index(mediaType=OCI_MANIFEST), "oci.manifest.ambiguous"),
        (index(), "oci.manifest.is_index"),
        (manifest(mediaType="application/json"), "oci.manifest.unknown_media_type"),
        (manifest(config=...), "oci.manifest.missing_member"),
        (manifest(layers=...), "oci.manifest.missing_member"),
        (manifest(layers=[descriptor()] * 128), "oci.manifest.too_many"),
        (manifest(layers=[descriptor(size=-1)]), "oci.manifest.wrong_type"),
        (manifest(layers=[descriptor(size=1 << 40)]), "oci.manifest.wrong_type"),
        (manifest(layers=[descriptor(digest="sha256:x")]), "oci.digest.malformed"),
        (manifest(layers=[descriptor(annotations={"a": 1})]), "oci.manifest.wrong_type"),
        (manifest(layers=[descriptor(annotations={"a": "x" * 70_000})]), "oci.manifest.too_long"),
        (manifest(layers=[descriptor(annotations={str(n): "" for n in range(1025)})]), "oci.manifest.too_many"),
        (manifest(config=descriptor(size=1 << 30)), "oci.manifest.wrong_type"),
    ],
)
def test_malformed_manifests_are_refused(document: dict[str, Any], code: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_manifest(encode(document))
    assert caught.value.code == code


def test_transport_and_document_must_agree() -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_manifest(encode(manifest()), media_type=DOCKER_MANIFEST)
    assert caught.value.code == "oci.manifest.media_type_mismatch"


def test_a_manifest_is_no_index() -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_index(encode(manifest()))
    assert caught.value.code == "oci.manifest.is_manifest"


@pytest.mark.parametrize("said", ["", OCI_INDEX])
def test_an_index_with_layers_is_refused(said: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_index(encode(index(mediaType=said or ..., layers=[descriptor()])), media_type=OCI_INDEX)
    assert caught.value.code == "oci.manifest.ambiguous"


def test_duplicate_keys_are_refused_anywhere() -> None:
    raw = encode(manifest()).replace(b'"size": 10}]', b'"size": 10, "size": 10}]')
    with pytest.raises(ImageRefused) as caught:
        parse_manifest(raw)
    assert caught.value.code == "oci.manifest.duplicate_key"


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        (LAYER, LayerType("", False)),
        (f"{LAYER}+gzip", LayerType("gzip", False)),
        (f"{LAYER}+zstd", LayerType("zstd", False)),
        (f"{LAYER}+encrypted", LayerType("", True)),
        (f"{LAYER}+gzip+encrypted", LayerType("gzip", True)),
        ("application/vnd.docker.image.rootfs.diff.tar", LayerType("", False)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", LayerType("gzip", False)),
    ],
)
def test_layer_types(media_type: str, expected: LayerType) -> None:
    assert parse_layer_type(media_type) == expected
    assert parse_layer_type(expected.media_type) == expected


@pytest.mark.parametrize(
    ("media_type", "code"),
    [
        ("", "oci.manifest.unknown_layer_type"),
        ("application/x-tar", "oci.manifest.unknown_layer_type"),
        (f"{LAYER}+xz", "oci.manifest.unknown_layer_type"),
        (f"{LAYER}+gzip+encrypted+encrypted", "oci.manifest.unknown_layer_type"),
        (f"{LAYER}+encrypted+gzip", "oci.manifest.unknown_layer_type"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted", "oci.manifest.unknown_layer_type"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "oci.manifest.foreign_layer"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "oci.manifest.foreign_layer"),
    ],
)
def test_other_layer_types_are_refused(media_type: str, code: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_layer_type(media_type)
    assert caught.value.code == code


def config(run: dict[str, Any] | None = None, **more: Any) -> bytes:
    base = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}, "config": run}
    return encode({key: value for key, value in {**base, **more}.items() if value is not ...})


def test_config_is_typed() -> None:
    parsed = parse_config(
        config(
            {
                "User": "app:app",
                "Env": ["A=b=c", "E="],
                "Entrypoint": ["/e"],
                "Cmd": ["a", ""],
                "WorkingDir": "/w",
                "StopSignal": "SIGINT",
                "Labels": {"x": "y"},
                "Healthcheck": {"Test": []},
            }
        )
    )
    assert parsed.user == "app:app"
    assert parsed.environment == ("A=b=c", "E=")
    assert parsed.entrypoint == ("/e",)
    assert parsed.command == ("a", "")
    assert parsed.working_directory == "/w"
    assert parsed.stop_signal == "SIGINT"
    assert parsed.diff_ids == (Digest("sha256", "a" * 64),)


def test_config_without_run_part_and_with_nulls() -> None:
    assert parse_config(config()).command == ()
    assert parse_config(config({"Cmd": None, "Entrypoint": None, "Env": None})).environment == ()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (config(architecture=...), "oci.config.missing_member"),
        (config(os=3), "oci.config.wrong_type"),
        (config(rootfs={"type": "disk", "diff_ids": []}), "oci.config.unknown_rootfs"),
        (config(rootfs={"type": "layers", "diff_ids": ["x"]}), "oci.digest.malformed"),
        (config(rootfs={"type": "layers", "diff_ids": [DIGEST] * 128}), "oci.config.too_many"),
        (config({"Env": ["NOVALUE"]}), "oci.config.environment"),
        (config({"Env": ["=x"]}), "oci.config.environment"),
        (config({"Env": ["A=\0"]}), "oci.config.nul_byte"),
        (config({"Cmd": ["a\0b"]}), "oci.config.nul_byte"),
        (config({"Cmd": "sh -c x"}), "oci.config.wrong_type"),
        (config({"WorkingDir": "relative"}), "oci.config.working_directory"),
        (b"{}", "oci.config.missing_member"),
    ],
)
def test_malformed_configs_are_refused(raw: bytes, code: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_config(raw)
    assert caught.value.code == code
