"""Registries and places of images between Cloister and the tools of the field: our client against CNCF Distribution;
skopeo, cosign and OCI's own conformance suite against the embedded registry, with and without accounts; each other's
directories and archives."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, Unavailable
from cloister.oci.archive import DockerArchive, OCIArchive
from cloister.oci.credentials import find_credentials
from cloister.oci.digest import Digest
from cloister.oci.directory import ImageDirectory
from cloister.oci.distribution import RegistryClient
from cloister.oci.document import encode_document
from cloister.oci.layout import OCILayout
from cloister.oci.location import RegistryAccess, open_sink, parse_location
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, ImageManifest, parse_index, parse_manifest
from cloister.oci.reference import parse_reference
from cloister.oci.referrers import attach_referrer, list_referrers, read_referrers
from cloister.oci.session import Credentials
from cloister.oci.store import ImageSource, checked_blob, read_manifest, referrers_tag
from cloister.oci.transfer import copy_image
from cloister.oci.transport import HTTPTransport
from conformance.registry_process import RegistryProcess
from conformance.tools import require_go_program, require_tool
from unit.oci.builders import Built, archive, build_layout, directory, file

pytestmark = pytest.mark.tool

LAYERS = [archive(directory(b"d"), file(b"d/a", b"content")), archive(file(b"b", b"y" * 5000))]
ANN = Credentials("ann", "word")
# bcrypt of "word", cost 5: the one scheme that registry takes.
HTPASSWD = "ann:$2b$05$abcdefghijklmnopqrstuuQDoL5Sa/TtfS/XN4AY/jgq.HBbO1BTu\n"
EMPTY = b"{}"


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build_layout(tmp_path / "source", *LAYERS)


def manifest_of(source: ImageSource, selector: str | Digest) -> ImageManifest:
    stored = read_manifest(source, selector)
    return parse_manifest(stored.raw, media_type=stored.media_type)


def check_all(source: ImageSource, selector: str | Digest) -> list[Digest]:
    """Read every blob of an image and return their digests."""
    manifest = manifest_of(source, selector)
    for blob in (manifest.config, *manifest.layers):
        for _ in checked_blob(source, blob):
            continue
    return [manifest.config.digest, *(layer.digest for layer in manifest.layers)]


def refused(run: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


def signature_of(subject: Digest, note: str) -> bytes:
    described = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(EMPTY)), "size": 2}
    return encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": "application/x-test",
            "config": described,
            "layers": [described],
            "subject": {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 500},
            "annotations": {"note": note},
        }
    )


# -- our client against CNCF Distribution -------------------------------------------------------------------------


class Distribution:
    """`docker-registry` with its files in `root`; with `accounts` it asks for Basic."""

    def __init__(self, root: Path, *, accounts: bool) -> None:
        root.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        (root / "htpasswd").write_text(HTPASSWD)
        auth = f"auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n" if accounts else ""
        (root / "config.yml").write_text(
            f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\n"
            f"  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{self.port}\n{auth}"
        )
        self._process = subprocess.Popen(
            [require_tool("docker-registry"), "serve", str(root / "config.yml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.transport = HTTPTransport()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                self.transport.open("GET", f"http://{self.address}/v2/", {}).close()
                return
            except Unavailable:
                time.sleep(0.05)
        self.close()
        raise RuntimeError("docker-registry did not start")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self, name: str, credentials: Credentials | None = None) -> RegistryClient:
        reference = parse_reference(f"{self.address}/{name}")
        return RegistryClient(
            self.transport,
            reference,
            plain_http=True,
            other_origins=False,
            credentials=credentials,
            sleep=lambda _: None,
        )

    def close(self) -> None:
        self.transport.close()
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distribution]:
    with closing(Distribution(tmp_path_factory.mktemp("distribution") / "r", accounts=True)) as registry:
        yield registry


def test_push_and_pull_with_a_password(distribution: Distribution, built: Built) -> None:
    client = distribution.client("team/app", ANN)
    assert copy_image(built.layout, "v1", client, "v1") == built.digest
    assert check_all(client, "v1") == check_all(built.layout, "v1")
    assert client.list_tags() == ("v1",)
    for nobody in (None, Credentials("ann", "other")):
        stranger = distribution.client("team/app", nobody)
        assert refused(lambda stranger=stranger: stranger.get_manifest("v1")) == "oci.distribution.denied"
        assert refused(lambda stranger=stranger: stranger.write_blob([b"x"])) == "oci.distribution.denied"


def test_chunks_ranges_mounts_and_deletes(distribution: Distribution) -> None:
    content = os.urandom(9 << 20)
    first, second = distribution.client("one", ANN), distribution.client("two", ANN)
    digest, size = first.write_blob(content[start : start + 700_000] for start in range(0, len(content), 700_000))
    blob = Descriptor(media_type="x", digest=digest, size=size)
    assert (digest, size) == (Digest.of(content), len(content))
    assert b"".join(first.stream_blob(blob, start=5_000_000)) == content[5_000_000:]
    assert not second.has_blob(digest)
    assert second.mount_blob(first, digest)
    assert b"".join(checked_blob(second, blob)) == content
    assert not second.mount_blob(first, Digest.of(b"nowhere"))
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
    second.write_manifest(index, OCI_INDEX, "v1")
    assert second.delete_manifest(str(Digest.of(index)))
    assert second.get_manifest("v1") is None


def test_referrers_without_the_api(distribution: Distribution, built: Built) -> None:
    client = distribution.client("signed/app", ANN)
    digest = copy_image(built.layout, "v1", client, "v1")
    client.write_blob([EMPTY])
    assert client.referrers(digest) is None
    assert list_referrers(client, digest) == ()
    signatures = [signature_of(digest, note) for note in ("one", "two")]
    for raw in signatures:
        attach_referrer(client, raw)
    assert [item.raw for item in read_referrers(client, digest)] == signatures
    listed = parse_index(read_manifest(client, referrers_tag(digest)).raw).manifests
    assert [(item.artifact_type, item.annotations["note"]) for item in listed] == [
        ("application/x-test", "one"),
        ("application/x-test", "two"),
    ]


# -- our client against our registry with accounts -----------------------------------------------------------------


@pytest.fixture(params=["basic", "tokens"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryProcess]:
    (tmp_path / "users").write_text("ann:word\n")
    options = ["--users", str(tmp_path / "users"), *(["--tokens"] if request.param == "tokens" else [])]
    with RegistryProcess(tmp_path / "guarded", *options) as registry:
        yield registry


def login(registry: RegistryProcess, folder: Path) -> dict[str, str]:
    """Write what `docker login` writes and return the environment that finds it."""
    folder.mkdir()
    auth = base64.b64encode(b"ann:word").decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": auth}}}))
    return {**os.environ, "DOCKER_CONFIG": str(folder), "HOME": str(folder), "REGISTRY_AUTH_FILE": ""}


def test_we_log_in_to_our_registry(guarded: RegistryProcess, built: Built, tmp_path: Path) -> None:
    environment = login(guarded, tmp_path / "docker")
    reference = parse_reference(f"{guarded.address}/team/app")
    credentials = find_credentials(reference, environment)
    client = guarded.client("team/app", credentials)
    digest = copy_image(built.layout, "v1", client, "v1")
    assert check_all(client, digest) == check_all(built.layout, "v1")
    assert copy_image(client, digest, guarded.client("other/app", credentials), "v1") == digest
    assert refused(lambda: guarded.client("team/app").get_manifest("v1")) == "oci.distribution.denied"


# -- skopeo -------------------------------------------------------------------------------------------------------


class Skopeo:
    """Runs skopeo 1.18 or newer, without a policy about signatures."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self._program = require_tool("skopeo", minimum=(1, 18))
        self._environment = environment or {**os.environ, "HOME": str(folder)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, "--insecure-policy", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def copy(self, source: str, target: str, *options: str) -> None:
        self.ok("copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", *options, source, target)


@pytest.fixture
def skopeo(tmp_path: Path) -> Skopeo:
    return Skopeo(tmp_path)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with RegistryProcess(tmp_path_factory.mktemp("registry")) as process:
        yield process


def test_skopeo_copies_into_our_registry_and_out(
    skopeo: Skopeo, registry: RegistryProcess, built: Built, tmp_path: Path
) -> None:
    place = f"docker://{registry.address}/skopeo/app:v1"
    skopeo.copy(f"oci:{built.path}:v1", place)
    assert Digest.of(read_manifest(registry.client("skopeo/app"), "v1").raw) == built.digest
    skopeo.copy(place, f"dir:{tmp_path}/dir")
    skopeo.copy(place, f"oci-archive:{tmp_path}/oci.tar:v1")
    skopeo.copy(place, f"docker-archive:{tmp_path}/docker.tar:app:1")
    plain = [Digest.of(layer) for layer in LAYERS]
    assert check_all(ImageDirectory(tmp_path / "dir"), "") == check_all(built.layout, "v1")
    with closing(OCIArchive(tmp_path / "oci.tar")) as packed:
        assert check_all(packed, "v1") == check_all(built.layout, "v1")
    with closing(DockerArchive(tmp_path / "docker.tar")) as saved:
        assert check_all(saved, "app:1")[1:] == plain
    described = json.loads(skopeo.ok("inspect", "--tls-verify=false", place))
    assert (described["Digest"], described["RepoTags"]) == (str(built.digest), ["v1"])


def test_skopeo_lists_and_deletes_tags(skopeo: Skopeo, registry: RegistryProcess, built: Built) -> None:
    client = registry.client("skopeo/tags")
    for tag in ("a", "b"):
        copy_image(built.layout, "v1", client, tag)
    place = f"docker://{registry.address}/skopeo/tags"
    assert json.loads(skopeo.ok("list-tags", "--tls-verify=false", place))["Tags"] == ["a", "b"]
    skopeo.ok("delete", "--tls-verify=false", f"{place}:a")
    assert client.get_manifest("a") is None


def test_skopeo_copies_all_platforms(skopeo: Skopeo, registry: RegistryProcess, tmp_path: Path) -> None:
    layout = build_layout(tmp_path / "multi", LAYERS[0], tag="amd").layout
    images = {"amd64": "amd", "arm64": "arm"}
    build_layout(tmp_path / "multi", LAYERS[1], tag="arm")
    entries = []
    for architecture, tag in images.items():
        raw = read_manifest(layout, tag).raw
        entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(raw)), "size": len(raw)}
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    layout.write_manifest(index, OCI_INDEX, "multi")
    ours, theirs = registry.client("multi/ours"), registry.client("multi/theirs")
    copy_image(layout, "multi", ours, "v1")
    skopeo.copy(f"docker://{registry.address}/multi/ours:v1", f"docker://{registry.address}/multi/theirs:v1", "--all")
    assert read_manifest(theirs, "v1").raw == index
    skopeo.copy(f"docker://{registry.address}/multi/ours:v1", f"dir:{tmp_path}/dir", "--all")
    skopeo.copy(f"docker://{registry.address}/multi/ours:v1", f"oci:{tmp_path}/out:v1", "--all")
    for source in (theirs, ImageDirectory(tmp_path / "dir"), OCILayout(tmp_path / "out")):
        for tag in images.values():
            digest = Digest.of(read_manifest(layout, tag).raw)
            assert check_all(source, digest) == check_all(layout, digest)
    with open_sink(parse_location(f"dir:{tmp_path}/again"), nowhere()) as sink:
        copy_image(layout, "multi", sink, "v1")
    skopeo.copy(f"dir:{tmp_path}/again", f"docker://{registry.address}/multi/again:v1", "--all")
    assert read_manifest(registry.client("multi/again"), "v1").raw == index


def nowhere() -> RegistryAccess:
    return RegistryAccess(transport=HTTPTransport(), plain_http=True, other_origins=False)


@pytest.mark.parametrize("kind", ["dir", "oci-archive", "docker-archive"])
def test_skopeo_reads_what_we_write(skopeo: Skopeo, built: Built, tmp_path: Path, kind: str) -> None:
    place = f"{kind}:{tmp_path}/image" + {"dir": "", "oci-archive": ":v1", "docker-archive": ":app:1"}[kind]
    with open_sink(parse_location(place), nowhere()) as sink:
        copy_image(built.layout, "v1", sink, "v1")
    skopeo.copy(place, f"oci:{tmp_path}/back:v1", "--preserve-digests" if kind != "docker-archive" else "--quiet")
    back = OCILayout(tmp_path / "back")
    if kind != "docker-archive":
        assert Digest.of(read_manifest(back, "v1").raw) == built.digest
    assert check_all(back, "v1")[0] == check_all(built.layout, "v1")[0]
    described = json.loads(skopeo.ok("inspect", "--config", place))
    assert described["rootfs"]["diff_ids"] == [str(Digest.of(layer)) for layer in LAYERS]


def test_skopeo_logs_in_to_our_registry(guarded: RegistryProcess, built: Built, tmp_path: Path) -> None:
    skopeo = Skopeo(tmp_path, login(guarded, tmp_path / "docker"))
    place = f"docker://{guarded.address}/team/app:v1"
    skopeo.copy(f"oci:{built.path}:v1", place)
    skopeo.copy(place, f"docker://{guarded.address}/other/app:v1")
    skopeo.copy(place, f"oci:{tmp_path}/out:v1")
    assert Digest.of(read_manifest(OCILayout(tmp_path / "out"), "v1").raw) == built.digest
    stranger = Skopeo(tmp_path)
    assert stranger.run("inspect", "--tls-verify=false", place).returncode != 0


# -- cosign -------------------------------------------------------------------------------------------------------


def cosign(folder: Path, environment: dict[str, str], *arguments: str) -> None:
    result = subprocess.run(
        [require_tool("cosign"), *arguments],
        cwd=folder,
        env={**environment, "COSIGN_PASSWORD": "", "COSIGN_EXPERIMENTAL": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("place", ["ours", "distribution"])
def test_cosign_signs_by_referrers_and_we_find_them(
    place: str, built: Built, tmp_path: Path, distribution: Distribution, registry: RegistryProcess
) -> None:
    """With the referrers API and without; what cosign lists has no type in the second case, and is found as well."""
    environment = {**os.environ, "HOME": str(tmp_path)}
    if place == "ours":
        client, address = registry.client("cosign/app"), registry.address
    else:
        client, address = distribution.client("cosign/app", ANN), distribution.address
        auth = base64.b64encode(b"ann:word").decode()
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
    digest = copy_image(built.layout, "v1", client, "v1")
    cosign(tmp_path, environment, "generate-key-pair")
    options = ["--tlog-upload=false", "--allow-http-registry", "-y", "--registry-referrers-mode", "oci-1-1"]
    cosign(tmp_path, environment, "sign", "--key", "cosign.key", *options, f"{address}/cosign/app@{digest}")
    (found,) = read_referrers(client, digest)
    assert found.layers[0].media_type == "application/vnd.dev.cosign.simplesigning.v1+json"
    assert (client.referrers(digest) is None) is (place == "distribution")


def test_cosign_logs_in_to_our_registry(guarded: RegistryProcess, built: Built, tmp_path: Path) -> None:
    environment = login(guarded, tmp_path / "docker")
    client = guarded.client("team/app", ANN)
    digest = copy_image(built.layout, "v1", client, "v1")
    reference = f"{guarded.address}/team/app@{digest}"
    cosign(tmp_path, environment, "generate-key-pair")
    options = ["--allow-http-registry", reference]
    cosign(tmp_path, environment, "sign", "--key", "cosign.key", "--tlog-upload=false", "-y", *options)
    cosign(tmp_path, environment, "verify", "--key", "cosign.pub", "--insecure-ignore-tlog=true", *options)


# -- the conformance suite of the distribution specification --------------------------------------------------------

SUITE = ("github.com/opencontainers/distribution-spec/conformance", "v0.0.0-20260831232431-97274622c111")
WORKFLOWS = ("PULL", "PUSH", "BLOBS_DELETE", "MANIFESTS_DELETE", "TAGS_LIST", "TAGS_DELETE", "REFERRER")


@pytest.fixture(scope="module")
def suite() -> str:
    """The suite as a program, built once per machine."""
    return require_go_program(*SUITE)


@pytest.mark.parametrize("options", [[], ["--tokens"]], ids=["open", "tokens"])
def test_the_suite_of_the_specification_passes(suite: str, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "users").write_text("ann:word\n")
    accounts = ["--users", str(tmp_path / "users"), *options] if options else []
    settings = {
        "OCI_TLS": "disabled",
        "OCI_VERSION": "1.1",
        "OCI_RESULTS_DIR": str(tmp_path / "results"),
        "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
        "OCI_API_BLOBS_DIGEST_HEADER": "true",
        "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
        "OCI_DATA_SPARSE": "true",
        **({"OCI_USERNAME": "ann", "OCI_PASSWORD": "word"} if options else {}),
        **{f"OCI_API_{name}": "true" for name in WORKFLOWS},
    }
    with RegistryProcess(tmp_path / "registry", *accounts) as registry:
        environment = {**os.environ, **settings, "OCI_REGISTRY": registry.address}
        result = subprocess.run(
            [suite], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    counted = {name: int(number) for name, number in re.findall(r"(Pass|FAIL|Error|Total)\.+: +(\d+)", result.stdout)}
    failures = [line[:300] for line in result.stdout.splitlines() if ": FAIL" in line or ": Error" in line]
    assert (result.returncode, counted["FAIL"], counted["Error"]) == (0, 0, 0), failures[:20]
    assert counted["Pass"] >= 850
