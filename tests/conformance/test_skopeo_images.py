"""Images between Cloister and skopeo, umoci: what one writes the other reads, encrypted images included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.crypto.signer import ECDSAP256Signer
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.sign import sign_image
from cloister.oci.archive import DockerArchive, OCIArchive
from cloister.oci.digest import Digest
from cloister.oci.encryption.authenticate import accept_unencrypted_layer
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import ImageConfig, ImageManifest, parse_config, parse_manifest
from cloister.oci.store import ImageSource, checked_blob, copy_blob, read_blob, read_manifest
from cloister.oci.unpack import unpack_image
from conformance.registry_process import RegistryProcess
from conformance.tools import require_tool, skip_or_fail
from images import TAG, BuildFailed, busybox_image, layered_image
from unit.oci.builders import KEK, OPTIONS, RECIPIENTS, REFERENCE, authenticate, spool, verify

pytestmark = pytest.mark.tool

# Speaks ocicrypt's key provider protocol for CoCo's provider, with nothing of Cloister in it.
PROVIDER = """
import base64, json, os, sys
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
kek = bytes.fromhex(sys.argv[1])
request = json.load(sys.stdin)
if request["op"] == "keyunwrap":
    packet = json.loads(base64.b64decode(request["keyunwrapparams"]["annotation"]))
    plain = AESGCM(kek).decrypt(base64.b64decode(packet["iv"]), base64.b64decode(packet["wrapped_data"]), None)
    answer = {"keyunwrapresults": {"optsdata": list(plain)}}
else:
    nonce = os.urandom(12)
    wrapped = AESGCM(kek).encrypt(nonce, base64.b64decode(request["keywrapparams"]["optsdata"]), None)
    packet = {"kid": "kbs:///default/image-kek/1", "wrapped_data": base64.b64encode(wrapped).decode(),
              "iv": base64.b64encode(nonce).decode(), "wrap_type": "A256GCM"}
    answer = {"keywrapresults": {"annotation": list(json.dumps(packet).encode())}}
json.dump(answer, sys.stdout)
"""


class Skopeo:
    """Runs skopeo with the key provider of this test."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        script = folder / "provider.py"
        script.write_text(PROVIDER, encoding="ascii")
        config = folder / "ocicrypt.conf"
        command = {"path": sys.executable, "args": [str(script), KEK.hex()]}
        config.write_text(json.dumps({"key-providers": {"attestation-agent": {"cmd": command}}}), encoding="ascii")
        policy = folder / "policy.json"
        policy.write_text('{"default":[{"type":"insecureAcceptAnything"}]}', encoding="ascii")
        self._policy = policy
        self._environment = {**os.environ, "OCICRYPT_KEYPROVIDER_CONFIG": str(config), "HOME": str(folder)}

    def copy(self, source: str, target: str, *options: str) -> None:
        command = [self._program, "--policy", str(self._policy), "copy", "--quiet", *options]
        command += ["--src-tls-verify=false"] if source.startswith("docker://") else []
        command += ["--dest-tls-verify=false"] if target.startswith("docker://") else []
        result = subprocess.run(
            [*command, source, target], env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, result.stderr


@pytest.fixture
def skopeo(tmp_path: Path) -> Skopeo:
    """Whatever skopeo there is."""
    return Skopeo(require_tool("skopeo"), tmp_path)


@pytest.fixture
def new_skopeo(tmp_path: Path) -> Skopeo:
    """A skopeo that knows key providers."""
    return Skopeo(require_tool("skopeo", minimum=(1, 14)), tmp_path)


@pytest.fixture(params=["busybox", "layered"])
def image(request: pytest.FixtureRequest) -> Path:
    try:
        return {"busybox": busybox_image, "layered": layered_image}[request.param]()
    except BuildFailed as err:
        skip_or_fail(str(err))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with RegistryProcess(tmp_path_factory.mktemp("registry")) as process:
        yield process


def manifest_of(source: ImageSource, selector: str = TAG) -> ImageManifest:
    stored = read_manifest(source, selector)
    return parse_manifest(stored.raw, media_type=stored.media_type)


def digests(manifest: ImageManifest) -> list[Digest]:
    return [manifest.config.digest, *(layer.digest for layer in manifest.layers)]


def check_all(source: ImageSource, manifest: ImageManifest) -> None:
    for descriptor in (manifest.config, *manifest.layers):
        for _ in checked_blob(source, descriptor):
            continue


# -- registry -----------------------------------------------------------------------------------------------------


def test_skopeo_pushes_and_we_pull(skopeo: Skopeo, registry: RegistryProcess, image: Path) -> None:
    skopeo.copy(f"oci:{image}:{TAG}", f"docker://{registry.address}/pushed/by-skopeo:{TAG}")
    client = registry.client("pushed/by-skopeo")
    found = manifest_of(client)
    assert digests(found) == digests(manifest_of(OCILayout(image)))
    check_all(client, found)


def test_we_push_and_skopeo_pulls(skopeo: Skopeo, registry: RegistryProcess, image: Path, tmp_path: Path) -> None:
    source, client = OCILayout(image), registry.client("pushed/by-us")
    manifest = manifest_of(source)
    for descriptor in (manifest.config, *manifest.layers):
        copy_blob(source, client, descriptor)
    client.write_manifest(manifest.raw, manifest.media_type, TAG)
    skopeo.copy(f"docker://{registry.address}/pushed/by-us:{TAG}", f"oci:{tmp_path}/out:{TAG}")
    pulled = OCILayout(tmp_path / "out")
    assert manifest_of(pulled).digest == manifest.digest
    check_all(pulled, manifest)


# -- layouts and archives -----------------------------------------------------------------------------------------


def test_archives_that_skopeo_writes(skopeo: Skopeo, image: Path, tmp_path: Path) -> None:
    skopeo.copy(f"oci:{image}:{TAG}", f"oci-archive:{tmp_path}/oci.tar:{TAG}")
    skopeo.copy(f"oci:{image}:{TAG}", f"docker-archive:{tmp_path}/docker.tar:app:1")
    original = OCILayout(image)
    manifest = manifest_of(original)
    config = parse_config(read_blob(original, manifest.config, ceiling=1 << 20))
    oci, docker = OCIArchive(tmp_path / "oci.tar"), DockerArchive(tmp_path / "docker.tar")
    assert digests(manifest_of(oci)) == digests(manifest)
    check_all(oci, manifest)
    saved = manifest_of(docker, "")
    check_all(docker, saved)
    assert [layer.digest for layer in saved.layers] == list(config.diff_ids)
    oci.close()
    docker.close()


def test_docker_schema_2_from_skopeo_is_sealed(
    skopeo: Skopeo, registry: RegistryProcess, image: Path, tmp_path: Path
) -> None:
    target = f"docker://{registry.address}/docker/schema2:{TAG}"
    skopeo.copy(f"oci:{image}:{TAG}", target, "--format", "v2s2")
    sink = OCILayout(tmp_path / "sealed", create=True)
    client = registry.client("docker/schema2")
    assert "docker" in manifest_of(client).media_type
    encrypt_image(client, TAG, sink, tag=TAG, recipients=RECIPIENTS)
    assert all(layer.media_type.endswith("+gzip+encrypted") for layer in manifest_of(sink).layers)


# -- encryption ---------------------------------------------------------------------------------------------------


def test_skopeo_decrypts_what_we_sealed(new_skopeo: Skopeo, image: Path, tmp_path: Path) -> None:
    sink = OCILayout(tmp_path / "sealed", create=True)
    encrypt_image(OCILayout(image), TAG, sink, tag=TAG, recipients=RECIPIENTS)
    new_skopeo.copy(
        f"oci:{tmp_path}/sealed:{TAG}", f"oci:{tmp_path}/plain:{TAG}", "--decryption-key", "provider:attestation-agent"
    )
    plain = OCILayout(tmp_path / "plain")
    assert digests(manifest_of(plain)) == digests(manifest_of(OCILayout(image)))
    check_all(plain, manifest_of(plain))


def test_skopeo_decrypts_from_our_registry(
    new_skopeo: Skopeo, registry: RegistryProcess, image: Path, tmp_path: Path
) -> None:
    encrypt_image(OCILayout(image), TAG, registry.client("sealed/app"), tag=TAG, recipients=RECIPIENTS)
    new_skopeo.copy(
        f"docker://{registry.address}/sealed/app:{TAG}",
        f"oci:{tmp_path}/plain:{TAG}",
        "--decryption-key",
        "provider:attestation-agent",
    )
    assert digests(manifest_of(OCILayout(tmp_path / "plain"))) == digests(manifest_of(OCILayout(image)))


def test_we_unpack_what_skopeo_encrypted(new_skopeo: Skopeo, image: Path, tmp_path: Path) -> None:
    new_skopeo.copy(
        f"oci:{image}:{TAG}",
        f"oci:{tmp_path}/sealed:{TAG}",
        "--encryption-key",
        "provider:attestation-agent:keyid=kbs:///default/image-kek/1",
    )
    layout, signer = OCILayout(tmp_path / "sealed"), ECDSAP256Signer.generate()
    digest = sign_image(layout, TAG, signer, repository=REFERENCE.name)
    verified = verify(layout, digest, signer)
    assert verified.config.diff_ids == config_of(OCILayout(image)).diff_ids
    layers = (authenticate(layout, verified, index) for index in range(len(verified.manifest.layers)))
    unpack_image(verified, layers, tmp_path / "root", OPTIONS)
    assert (tmp_path / "root" / "bin" / "busybox").is_file()


def config_of(layout: OCILayout) -> ImageConfig:
    return parse_config(read_blob(layout, manifest_of(layout).config, ceiling=1 << 20))


# -- unpacking ----------------------------------------------------------------------------------------------------


def test_we_unpack_as_umoci_does(image: Path, tmp_path: Path) -> None:
    umoci = require_tool("umoci")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    command = [umoci, "unpack", *rootless, "--image", f"{image}:{TAG}", str(tmp_path / "bundle")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    layout, signer = OCILayout(tmp_path / "signed", create=True), ECDSAP256Signer.generate()
    source = OCILayout(image)
    manifest = manifest_of(source)
    for descriptor in (manifest.config, *manifest.layers):
        copy_blob(source, layout, descriptor)
    layout.write_manifest(manifest.raw, manifest.media_type, TAG)
    sign_image(layout, TAG, signer, repository=REFERENCE.name)
    verified = verify(layout, manifest.digest, signer)
    layers = (accept_unencrypted_layer(verified, n, spool(layout, item)) for n, item in enumerate(manifest.layers))
    unpack_image(verified, layers, tmp_path / "root", OPTIONS)
    assert tree_of(tmp_path / "root") == tree_of(tmp_path / "bundle" / "rootfs")


def tree_of(root: Path) -> list[tuple[str, int, int, int, object]]:
    found = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        links = 0 if path.is_dir() else status.st_nlink
        found.append((str(path.relative_to(root)), status.st_mode, links, int(status.st_mtime), content))
    return found
