"""Images that skopeo encrypted, decrypted whole: the plain layer of the vectors comes out, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import CloisterError
from cloister.imagetool.decrypt import decrypt_image
from cloister.oci.digest import Digest
from cloister.oci.encryption.wrapping import open_keys
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import ImageManifest, parse_manifest
from cloister.oci.store import checked_blob, read_manifest
from cloister.sdk.inspection import describe_image

PLAIN = "sha256:e40cd31d1175e4ffa1fadf8462f4833d08d989a6fd0b5d38523055b41e554749"


@pytest.fixture
def skopeo(guest_vectors: Path) -> Path:
    return guest_vectors / "ocicrypt" / "skopeo-1.18"


def only_tag(layout: OCILayout) -> ImageManifest:
    return parse_manifest(read_manifest(layout, "").raw)


@pytest.mark.parametrize(
    ("name", "key"),
    [("jwe-rsa", "rsa.pem"), ("jwe-ec", "ec.pem"), ("pkcs7", "rsa.pem"), ("multi", "rsa.pem"), ("multi", "ec.pem")],
)
def test_the_plain_layer_comes_out(skopeo: Path, tmp_path: Path, name: str, key: str) -> None:
    sink = OCILayout(tmp_path / "out", create=True)
    result = decrypt_image(OCILayout(skopeo / name), "", sink, tag="v1", keys=open_keys([str(skopeo / key)]))
    manifest = parse_manifest(read_manifest(sink, result.digest).raw)
    assert [str(layer.digest) for layer in manifest.layers] == [PLAIN]
    assert manifest.config.digest == only_tag(OCILayout(skopeo / "plain")).config.digest
    assert Digest.of(b"".join(checked_blob(sink, manifest.layers[0]))) == manifest.layers[0].digest


@pytest.mark.parametrize(("name", "key"), [("jwe-rsa", "ec.pem"), ("jwe-ec", "rsa.pem"), ("pkcs7", "ec.pem")])
def test_another_key_opens_nothing(skopeo: Path, tmp_path: Path, name: str, key: str) -> None:
    sink = OCILayout(tmp_path / "out", create=True)
    with pytest.raises(CloisterError) as caught:
        decrypt_image(OCILayout(skopeo / name), "", sink, tag="v1", keys=open_keys([str(skopeo / key)]))
    assert caught.value.code == "oci.encryption.no_key"
    assert list((tmp_path / "out" / "blobs" / "sha256").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("jwe-rsa", {"jwe": ["RSA-OAEP key that is not named"]}),
        ("pkcs7", {"pkcs7": ["certificate with serial number 728321f439bfff772a917d4feb0ceb5915fa175"]}),
        ("pgp", {"pgp": ["key BD608E28F076DA39"]}),
        ("prov", {"provider.attestation-agent": ["kbs:///default/test-key/1"]}),
    ],
)
def test_recipients_are_listed_as_far_as_they_are_named(skopeo: Path, name: str, lines: dict[str, list[str]]) -> None:
    assert describe_image(OCILayout(skopeo / name), "")["layers"][0]["recipients"] == lines
