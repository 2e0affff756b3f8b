"""Whole images between our commands and skopeo 1.18: JWE both ways, every compression, indexes, other recipients."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cloister.imagetool.compression import Compress
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, parse_index, parse_manifest
from cloister.oci.store import checked_blob, read_manifest
from cloister.sdk.images import KeyEncryptionKeys, decrypt_between, encrypt_between, parse_places, rewrap_between
from conformance.tools import require_tool
from imagetool_images import COMPRESSIONS, build

pytestmark = pytest.mark.tool
KEKS = KeyEncryptionKeys()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name, key in (("rsa", rsa.generate_private_key(65537, 3072)), ("ec", ec.generate_private_key(ec.SECP256R1()))):
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    (folder / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}', encoding="ascii")
    return folder


def skopeo(keys: Path, *words: str) -> None:
    program = require_tool("skopeo", minimum=(1, 18))
    command = [program, "--policy", str(keys / "policy.json"), "copy", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def layers(place: Path, tag: str = "v1") -> list[str]:
    layout = OCILayout(place)
    manifest = parse_manifest(read_manifest(layout, tag).raw)
    for layer in manifest.layers:
        for _ in checked_blob(layout, layer):
            continue
    return [str(layer.digest) for layer in manifest.layers]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["rsa", "ec"])
def test_both_ways(keys: Path, tmp_path: Path, compression: str, name: str) -> None:
    built = build(tmp_path / "plain", compression)
    jwe = f"jwe:{keys}/{name}.pub"
    encrypt_between(parse_places(f"oci:{built.path}:v1", f"oci:{tmp_path}/ours:v1"), [jwe], keks=KEKS)
    skopeo(keys, "--decryption-key", f"{keys}/{name}.pem", f"oci:{tmp_path}/ours:v1", f"oci:{tmp_path}/theirs-plain:v1")
    assert layers(tmp_path / "theirs-plain") == layers(built.path)
    skopeo(keys, "--encryption-key", jwe, f"oci:{built.path}:v1", f"oci:{tmp_path}/theirs:v1")
    places = parse_places(f"oci:{tmp_path}/theirs:v1", f"oci:{tmp_path}/ours-plain:v1")
    decrypt_between(places, [f"{keys}/{name}.pem"], keks=KEKS)
    if compression:  # skopeo compresses a plain layer on the way
        assert layers(tmp_path / "ours-plain") == layers(built.path)
    skopeo(keys, "--decryption-key", f"{keys}/{name}.pem", f"oci:{tmp_path}/theirs:v1", f"oci:{tmp_path}/back:v1")
    assert layers(tmp_path / "ours-plain") == layers(tmp_path / "back")


@pytest.mark.parametrize("choice", [Compress.GZIP, Compress.ZSTD])
def test_what_we_compressed_skopeo_decrypts(keys: Path, tmp_path: Path, choice: Compress) -> None:
    built = build(tmp_path / "plain", "")
    jwe = f"jwe:{keys}/rsa.pub"
    places = parse_places(f"oci:{built.path}:v1", f"oci:{tmp_path}/ours:v1")
    encrypt_between(places, [jwe], keks=KEKS, compress=choice)
    skopeo(keys, "--decryption-key", f"{keys}/rsa.pem", f"oci:{tmp_path}/ours:v1", f"oci:{tmp_path}/theirs:v1")
    decrypt_between(parse_places(f"oci:{tmp_path}/ours:v1", f"oci:{tmp_path}/back:v1"), [f"{keys}/rsa.pem"], keks=KEKS)
    assert layers(tmp_path / "theirs") == layers(tmp_path / "back")


def test_a_recipient_we_add_is_one_to_skopeo(keys: Path, tmp_path: Path) -> None:
    built = build(tmp_path / "plain", "gzip")
    skopeo(keys, "--encryption-key", f"jwe:{keys}/rsa.pub", f"oci:{built.path}:v1", f"oci:{tmp_path}/x:v1")
    rewrap_between(
        parse_places(f"oci:{tmp_path}/x:v1", f"oci:{tmp_path}/x:v2"),
        add=[f"jwe:{keys}/ec.pub"],
        remove=[],
        only_added=False,
        keys=[f"{keys}/rsa.pem"],
        keks=KEKS,
    )
    for name in ("rsa", "ec"):
        skopeo(keys, "--decryption-key", f"{keys}/{name}.pem", f"oci:{tmp_path}/x:v2", f"oci:{tmp_path}/{name}:v1")
        assert layers(tmp_path / name) == layers(built.path)


def test_all_platforms_of_an_index(keys: Path, tmp_path: Path) -> None:
    first, second = build(tmp_path / "plain", "gzip"), build(tmp_path / "other", "zstd")
    for descriptor in (tmp_path / "other" / "blobs" / "sha256").iterdir():
        (tmp_path / "plain" / "blobs" / "sha256" / descriptor.name).write_bytes(descriptor.read_bytes())
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": str(digest),
            "size": len(read_manifest(first.layout, digest).raw),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for digest, architecture in ((first.digest, "amd64"), (second.digest, "arm64"))
    ]
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    first.layout.write_manifest(index, OCI_INDEX, "all")
    places = parse_places(f"oci:{first.path}:all", f"oci:{tmp_path}/ours:v1")
    encrypt_between(places, [f"jwe:{keys}/rsa.pub"], keks=KEKS)
    listed = json.loads((tmp_path / "ours" / "index.json").read_text("utf-8"))["manifests"]
    assert len(listed) == 1  # the index; its images are listed there
    assert len(parse_index(read_manifest(OCILayout(tmp_path / "ours"), "v1").raw).manifests) == 2
    for architecture, original in (("amd64", first.digest), ("arm64", second.digest)):
        out = tmp_path / architecture
        choose = ["--override-arch", architecture, "--override-os", "linux"]
        program = require_tool("skopeo", minimum=(1, 18))
        policy = ["--policy", str(keys / "policy.json")]
        copy = ["copy", "--quiet", "--decryption-key", f"{keys}/rsa.pem", f"oci:{tmp_path}/ours:v1", f"oci:{out}:v1"]
        done = subprocess.run(
            [program, *choose, *policy, *copy], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        want = parse_manifest(read_manifest(first.layout, original).raw)
        assert layers(out) == [str(layer.digest) for layer in want.layers]
    back = decrypt_between(
        parse_places(f"oci:{tmp_path}/ours:v1", f"oci:{tmp_path}/back:v1"), [f"{keys}/rsa.pem"], keks=KEKS
    )
    assert back.digest == Digest.of(index)
