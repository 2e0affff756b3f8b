"""skopeo, buildah and containerd's decoder encrypt and decrypt through our key provider, and through others' with us.

Keys are made in and had from a trust service that really runs, over its administration API, except where a test says
otherwise. What the tools write is opened here, and what is made here is opened by them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import pytest

from cloister.client.admin import AdminClient
from cloister.imagetool.decrypt import decrypt_image
from cloister.imagetool.encrypt import encrypt_image
from cloister.oci.digest import Digest
from cloister.oci.encryption.annotations import PROVIDER_KEYS, parse_layer_encryption
from cloister.oci.encryption.options import parse_private_options
from cloister.oci.encryption.packet import AnnotationPacket, open_packet
from cloister.oci.encryption.wrapping import PacketUnwrapper, PacketWrapper
from cloister.oci.inflate import inflate
from cloister.oci.layer import DeviceNodes, LayerUnpacker, UnpackOptions
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import ImageManifest, parse_layer_type, parse_manifest
from cloister.oci.rootfs import RootDirectory
from cloister.oci.store import checked_blob, read_manifest
from cloister.oci.transfer import copy_image
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri
from cloister.trust.access import TOKEN_FILE
from cloister.wire.protobuf import encode_field
from conformance.registry_process import RegistryProcess
from conformance.test_skopeo_images import PROVIDER
from conformance.tools import require_go_program, require_tool, skip_or_fail
from images import TAG, BuildFailed, busybox_image, layered_image
from trust_process import Owner, Running, make_owner, running
from trust_world import MODEL

pytestmark = pytest.mark.tool

DOCS: Final = Path(__file__).resolve().parents[2] / "docs" / "howto"
CLOISTER: Final = (sys.executable, "-m", "cloister")
NAME: Final = "provider:attestation-agent"
ACCEPT_ANYTHING: Final = '{"default":[{"type":"insecureAcceptAnything"}]}'
DECODER: Final = ("github.com/containerd/imgcrypt", "v1.1.1", "./cmd/ctd-decoder")  # the last that holds the command
CTR_ENC: Final = ("github.com/containerd/imgcrypt", "v1.1.1", "./cmd/ctr")
NERDCTL: Final = ("github.com/containerd/nerdctl", "v1.7.7", "./cmd/nerdctl")
CONTAINERD_2: Final = ("github.com/containerd/containerd/v2", "v2.1.9", "./cmd/containerd")
PAYLOAD_TYPE: Final = "io.containerd.ocicrypt.v1.Payload"
KEK: Final = bytes(range(32))


class Bench:
    """A trust service, and tools that are told how to reach our key provider."""

    def __init__(self, service: Running, owner: Owner, folder: Path) -> None:
        self.service, self.owner, self.folder = service, owner, folder
        self.policy = folder / "policy.json"
        self.policy.write_text(ACCEPT_ANYTHING, encoding="ascii")
        self.trust = ("--server", service.report["url"], "--ca", service.report["ca_file"])
        self.trust += ("--token-file", str(owner.state / TOKEN_FILE))

    def admin(self) -> AdminClient:
        token = (self.owner.state / TOKEN_FILE).read_text().strip()
        return AdminClient(self.service.report["url"], token, ca_pem=self.service.ca_pem)

    def stored(self) -> list[str]:
        """Addresses of the keys in the trust service, of each with its version."""
        with self.admin() as client:
            found = client.list_resources(limit=1000).resources
        return [f"{item.path} {item.version}" for item in found if item.path.startswith("default/image-kek/")]

    def kek(self, kek_id: str) -> bytes:
        with self.admin() as client:
            return client.get_resource_content(parse_resource_uri(kek_id))

    def environment(self, *options: str, config: str | None = None) -> dict[str, str]:
        """Environment of a tool: our provider as a command with `options`, or another configuration's text."""
        if config is None:
            done = subprocess.run(
                [*CLOISTER, "keyprovider", "config", *options], capture_output=True, text=True, check=True, timeout=60
            )
            config = done.stdout
        place = self.folder / f"ocicrypt-{hashlib.sha256(config.encode()).hexdigest()[:8]}.conf"
        place.write_text(config, encoding="ascii")
        return {**os.environ, "OCICRYPT_KEYPROVIDER_CONFIG": str(place), "HOME": str(self.folder)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("keyprovider")
    owner = make_owner(folder)
    with running(owner.state) as service:
        yield Bench(service, owner, folder)


@pytest.fixture(scope="module")
def image() -> Path:
    """Four layers."""
    try:
        return layered_image()
    except BuildFailed as err:
        skip_or_fail(str(err))


@pytest.fixture(scope="module")
def one_layer() -> Path:
    try:
        return busybox_image()
    except BuildFailed as err:
        skip_or_fail(str(err))


@pytest.fixture(scope="module")
def skopeo() -> str:
    return require_tool("skopeo", minimum=(1, 14))


def serve(bench: Bench, listen: str, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start our provider as a service and return it with its address."""
    process = subprocess.Popen(
        [*CLOISTER, "keyprovider", "serve", "--listen", listen, *bench.trust, *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(" ok  key provider answers"):
            return process, line.split()[-1]
    raise RuntimeError(f"the key provider ended with {process.wait(20)}")


def end(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    return said


def run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=120, check=False)


def copy(skopeo: str, bench: Bench, environment: Mapping[str, str], source: Path, target: Path, *options: str) -> None:
    result = attempt(skopeo, bench, environment, source, target, *options)
    assert result.returncode == 0, result.stderr


def attempt(
    skopeo: str, bench: Bench, environment: Mapping[str, str], source: Path, target: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    words = [skopeo, "--policy", str(bench.policy), "copy", "--quiet", *options]
    return run([*words, f"oci:{source}:{TAG}", f"oci:{target}:{TAG}"], environment)


def manifest_of(layout: Path) -> ImageManifest:
    stored = read_manifest(OCILayout(layout), TAG)
    return parse_manifest(stored.raw, media_type=stored.media_type)


def layers_of(layout: Path) -> list[Digest]:
    return [layer.digest for layer in manifest_of(layout).layers]


def packets_of(layout: Path) -> list[AnnotationPacket]:
    return [parse_layer_encryption(layer).packets()[0] for layer in manifest_of(layout).layers]


def opened(layout: Path, kek: bytes) -> list[Digest]:
    """Digests of the plain layers, as the layers' private options have them."""
    return [parse_private_options(open_packet(packet, kek)).digest for packet in packets_of(layout)]


# -- skopeo -----------------------------------------------------------------------------------------------------------


def test_skopeo_and_our_command(skopeo: str, bench: Bench, image: Path, tmp_path: Path) -> None:
    environment = bench.environment(*bench.trust)
    kek_id = "kbs:///default/image-kek/command"
    copy(skopeo, bench, environment, image, tmp_path / "sealed", "--encryption-key", f"{NAME}:keyid={kek_id}")
    # Four layers were wrapped at once by four processes: one made the key, all used it.
    assert {packet.kek_id for packet in packets_of(tmp_path / "sealed")} == {kek_id}
    assert "default/image-kek/command 1" in bench.stored()
    assert opened(tmp_path / "sealed", bench.kek(kek_id)) == layers_of(image)
    copy(skopeo, bench, environment, tmp_path / "sealed", tmp_path / "plain", "--decryption-key", NAME)
    assert layers_of(tmp_path / "plain") == layers_of(image)


def test_skopeo_and_our_service_on_a_socket(skopeo: str, bench: Bench, image: Path, tmp_path: Path) -> None:
    process, address = serve(bench, f"unix:{tmp_path}/kp.sock")
    environment = bench.environment("--grpc", address)
    before = bench.stored()
    copy(skopeo, bench, environment, image, tmp_path / "sealed", "--encryption-key", NAME)
    made = sorted(set(bench.stored()) - set(before))
    # No key was named: each layer has one of its own.
    assert made == sorted(f"{packet.kek_path} 1" for packet in packets_of(tmp_path / "sealed")) and len(made) == 4
    copy(skopeo, bench, environment, tmp_path / "sealed", tmp_path / "plain", "--decryption-key", NAME)
    assert layers_of(tmp_path / "plain") == layers_of(image)
    said = end(process)
    assert said.count(" ok  wrap ") == said.count(" ok  unwrap ") == 4
    assert not (tmp_path / "kp.sock").exists()


def test_skopeo_decrypts_what_we_encrypted(skopeo: str, bench: Bench, image: Path, tmp_path: Path) -> None:
    kek_id = "kbs:///default/image-kek/ours"
    with bench.admin() as client:
        client.put_resource(parse_resource_uri(kek_id), KEK)
    sink = OCILayout(tmp_path / "sealed", create=True)
    encrypt_image(OCILayout(image), TAG, sink, tag=TAG, recipients=[PacketWrapper(kek_id, KEK)])
    process, address = serve(bench, "127.0.0.1:0", "--insecure-any-local-user")
    environment = bench.environment("--grpc", address)
    copy(skopeo, bench, environment, tmp_path / "sealed", tmp_path / "plain", "--decryption-key", NAME)
    assert layers_of(tmp_path / "plain") == layers_of(image)
    with bench.admin() as client:
        client.delete_resource(parse_resource_uri(kek_id))
    again = attempt(skopeo, bench, environment, tmp_path / "sealed", tmp_path / "again", "--decryption-key", NAME)
    assert again.returncode != 0 and "trust.resource.missing" in again.stderr
    assert "trust.resource.missing" in end(process)


def test_skopeo_is_told_why_not(skopeo: str, bench: Bench, one_layer: Path, tmp_path: Path) -> None:
    environment, before = bench.environment(*bench.trust), bench.stored()
    for parameters, words in (("sample=true", "sample key"), ("keyid=default/key/1", "cannot read what follows")):
        option = ("--encryption-key", f"{NAME}:{parameters}")
        result = attempt(skopeo, bench, environment, one_layer, tmp_path / "sealed", *option)
        assert result.returncode != 0 and words in result.stderr, result.stderr
    assert bench.stored() == before
    (tmp_path / "kek").write_bytes(KEK)
    by_file = bench.environment("--key-file", str(tmp_path / "kek"))
    copy(skopeo, bench, by_file, one_layer, tmp_path / "sealed", "--encryption-key", f"{NAME}:keyid={MODEL.uri}")
    assert opened(tmp_path / "sealed", KEK) == layers_of(one_layer) and bench.stored() == before
    # The trust service holds something else at that address.
    result = attempt(skopeo, bench, environment, tmp_path / "sealed", tmp_path / "plain", "--decryption-key", NAME)
    assert result.returncode != 0 and "wrong length" in result.stderr and "CLS-I-" in result.stderr


def test_a_guest_has_the_key_that_skopeo_used_released(
    skopeo: str, bench: Bench, one_layer: Path, tmp_path: Path
) -> None:
    """The one rule of this trust service lets one pod have keys below default/model."""
    kek_id = ResourcePath("default", "model", "image-kek").uri
    environment = bench.environment(*bench.trust)
    copy(skopeo, bench, environment, one_layer, tmp_path / "sealed", "--encryption-key", f"{NAME}:keyid={kek_id}")
    guest = bench.service.client(bench.owner)
    assert opened(tmp_path / "sealed", guest.get_resource(parse_resource_uri(kek_id))) == layers_of(one_layer)
    guest.wipe()


# -- others' providers ------------------------------------------------------------------------------------------------


def test_we_use_somebody_elses_provider(skopeo: str, bench: Bench, image: Path, tmp_path: Path) -> None:
    script = tmp_path / "provider.py"
    script.write_text(PROVIDER, encoding="ascii")
    command = {"path": sys.executable, "args": [str(script), KEK.hex()]}
    entry = {"key-providers": {"attestation-agent": {"cmd": command}}}
    environment = bench.environment(config=json.dumps(entry))

    def cloister(verb: str, source: str, target: str, *options: str) -> None:
        words = [*CLOISTER, "image", verb, f"oci:{tmp_path}/{source}:{TAG}", f"oci:{tmp_path}/{target}:{TAG}", *options]
        result = run(words, environment)
        assert result.returncode == 0, result.stderr

    (tmp_path / "image").symlink_to(image)
    cloister("encrypt", "image", "ours", "--recipient", f"{NAME}:keyid=x")
    copy(skopeo, bench, environment, tmp_path / "ours", tmp_path / "plain-ours", "--decryption-key", NAME)
    copy(skopeo, bench, environment, image, tmp_path / "theirs", "--encryption-key", f"{NAME}:keyid=x")
    cloister("decrypt", "theirs", "plain-theirs", "--key", NAME)
    for folder in ("plain-ours", "plain-theirs"):
        assert layers_of(tmp_path / folder) == layers_of(image)


# -- buildah ----------------------------------------------------------------------------------------------------------


class Buildah:
    """buildah with storage of its own: no daemon, no network, no mounts (driver vfs)."""

    def __init__(self, program: str, bench: Bench, folder: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir()
        self._folder = folder
        self._words = [program, "--root", str(folder / "root"), "--runroot", str(folder / "run")]
        self._words += ["--storage-driver", "vfs"]
        self._policy = ["--signature-policy", str(bench.policy), "--quiet"]
        helpers = folder / "helpers"  # it looks for a program that makes networks, which these verbs do not call
        helpers.mkdir()
        (helpers / "netavark").write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
        (helpers / "netavark").chmod(0o755)
        (folder / "containers.conf").write_text(f'[engine]\nhelper_binaries_dir=["{helpers}"]\n', encoding="ascii")
        self._environment = {**environment, "CONTAINERS_CONF": str(folder / "containers.conf")}

    def words_anywhere(self) -> list[str]:
        """Words to put a verb behind, in any environment."""
        policy = self._folder / ".config" / "containers"
        policy.mkdir(parents=True)
        (policy / "policy.json").write_text(ACCEPT_ANYTHING, encoding="ascii")
        settings = [f"{name}={self._environment[name]}" for name in ("CONTAINERS_CONF",)]
        return ["env", f"HOME={self._folder}", *settings, *self._words]

    def __call__(self, verb: str, *words: str) -> str:
        result = run([*self._words, verb, *self._policy, *words], self._environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A buildah that starts itself again, as it does to unpack layers: not through a loader's command line."""
    found = Path(require_tool("buildah", minimum=(1, 39)))
    if found.read_bytes()[:2] != b"#!":
        return str(found)
    patchelf = require_tool("patchelf")
    loader, _, libraries, program = shlex.split(found.read_text("utf-8").splitlines()[1])[1:5]
    copied = tmp_path_factory.mktemp("buildah") / "buildah"
    shutil.copy(program, copied)
    command = [patchelf, "--set-interpreter", loader, "--force-rpath", "--set-rpath", libraries, str(copied)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return str(copied)


def test_buildah_pushes_encrypted_and_pulls(buildah: str, bench: Bench, image: Path, tmp_path: Path) -> None:
    process, address = serve(bench, f"unix:{tmp_path}/kp.sock")
    environment = bench.environment("--grpc", address)
    kek_id = "kbs:///default/image-kek/buildah"
    first = Buildah(buildah, bench, tmp_path / "first", environment)
    number = first("pull", f"oci:{image}:{TAG}")
    first("push", "--encryption-key", f"{NAME}:keyid={kek_id}", number, f"oci:{tmp_path}/sealed:{TAG}")
    assert {packet.kek_id for packet in packets_of(tmp_path / "sealed")} == {kek_id}
    assert len(opened(tmp_path / "sealed", bench.kek(kek_id))) == 4
    second = Buildah(buildah, bench, tmp_path / "second", environment)
    pulled = second("pull", "--decryption-key", NAME, f"oci:{tmp_path}/sealed:{TAG}")
    assert pulled == number  # the image's id is the digest of its configuration, whose diff_ids were compared
    said = end(process)
    assert said.count(" ok  wrap ") == said.count(" ok  unwrap ") == 4


# -- containerd -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder() -> str:
    """containerd's stream processor for encrypted layers, built by Go once for this machine."""
    return require_go_program(*DECODER)


def configuration(release: int) -> str:
    """What the how-to says is to be in the configuration of containerd 1 or 2."""
    page = (DOCS / "encrypt-with-nerdctl-and-containerd.md").read_text("utf-8")
    second, first = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    if release == 2:
        return str(second)
    return f"{first}\n{second[second.index('[stream_processors') :]}"


def configured() -> Mapping[str, Any]:
    """The decoder's entry in it."""
    processors: dict[str, Any] = tomllib.loads(configuration(2))["stream_processors"]
    return processors["io.containerd.ocicrypt.decoder.v1.tar.gzip"]


@pytest.mark.parametrize("place", ["trust service", "file"])
def test_containerd_decodes_a_layer(decoder: str, bench: Bench, image: Path, tmp_path: Path, place: str) -> None:
    """As containerd calls it: the layer on standard input, descriptor and parameters on descriptor 3."""
    kek_id = "kbs:///default/image-kek/containerd"
    (tmp_path / "kek").write_bytes(KEK)
    with bench.admin() as client:
        client.put_resource(parse_resource_uri(kek_id), KEK)
    layout = OCILayout(tmp_path / "sealed", create=True)
    encrypt_image(OCILayout(image), TAG, layout, tag=TAG, recipients=[PacketWrapper(kek_id, KEK)])
    options = bench.trust if place == "trust service" else ("--key-file", str(tmp_path / "kek"))
    environment = bench.environment(*options)
    document = json.loads(manifest_of(tmp_path / "sealed").raw)
    entry, plain = document["layers"][0], manifest_of(image).layers[0]
    processor = configured()
    assert [entry["mediaType"]] == processor["accepts"] and plain.media_type == processor["returns"]
    assert [word.partition("=")[0] for word in processor["env"]] == ["OCICRYPT_KEYPROVIDER_CONFIG"]

    def decode() -> subprocess.CompletedProcess[bytes]:
        payload = json.dumps({"DecryptConfig": {"Parameters": {}}, "Descriptor": entry}).encode()
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(encode_field(1, PAYLOAD_TYPE.encode()) + encode_field(2, payload))
        blob = tmp_path / "sealed" / "blobs" / "sha256" / entry["digest"].partition(":")[2]
        script = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
        with blob.open("rb") as layer:
            result = subprocess.run(
                [sys.executable, "-c", script, str(reading), decoder],
                stdin=layer,
                capture_output=True,
                env=environment,
                pass_fds=[reading],
                timeout=60,
                check=False,
            )
        os.close(reading)
        return result

    done = decode()
    assert done.returncode == 0, done.stderr
    assert Digest.of(done.stdout) == plain.digest
    entry["annotations"][PROVIDER_KEYS] = document["layers"][1]["annotations"][PROVIDER_KEYS]
    assert decode().returncode != 0  # another layer's key


def files_of(root: Path) -> dict[str, bytes]:
    """Return the contents of a tree's plain files by their names."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module", params=[1, 2])
def release(request: pytest.FixtureRequest) -> tuple[int, str]:
    """A release of containerd and its program: Debian's, and one that Go built once for this machine."""
    if os.geteuid():
        skip_or_fail("containerd needs root")
    program = require_go_program(*CONTAINERD_2) if request.param == 2 else require_tool("containerd", minimum=(1, 7))
    return request.param, program


class Containerd:
    """containerd with the configuration of the how-to, in a directory of its own; use it in a `with` statement."""

    def __init__(self, folder: Path, release: tuple[int, str], decoder: str, provider_config: str) -> None:
        self.folder = folder
        self.socket = folder / "containerd.sock"
        number, self._program = release
        places = f'root = "{folder}/root"\nstate = "{folder}/state"'
        text = re.sub(r"^version = \d$", rf"\g<0>\n{places}", configuration(number), count=1, flags=re.MULTILINE)
        text = text.replace("/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf", provider_config)
        text += f'\n[grpc]\naddress = "{self.socket}"\n'
        if number == 2:
            text = text.replace("use_local_image_pull", 'snapshotter = "native"\nuse_local_image_pull')
        else:
            text += '\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "native"\n'
        (folder / "config.toml").write_text(text, "utf-8")
        self._path = f"{Path(decoder).parent}:{os.environ['PATH']}"

    def __enter__(self) -> Containerd:
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            [self._program, "--config", str(self.folder / "config.toml")],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "PATH": self._path},
        )
        self._channel = grpc.insecure_channel(f"unix:{self.socket}")
        grpc.channel_ready_future(self._channel).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def pull(self, reference: str) -> None:
        """Have it pull and unpack an image as kubelet does (CRI, `runtime.v1.ImageService`)."""
        call = self._channel.unary_unary("/runtime.v1.ImageService/PullImage")
        call(encode_field(1, encode_field(1, reference.encode())), timeout=60)

    def snapshots(self) -> list[dict[str, bytes]]:
        """Files of every layer it unpacked, by name, each layer with those below."""
        root = self.folder / "root" / "io.containerd.snapshotter.v1.native" / "snapshots"
        return [files_of(place) for place in sorted(root.glob("*"), key=lambda place: int(place.name))]


@pytest.mark.parametrize("place", ["trust service", "file"])
def test_containerd_pulls_what_we_encrypted(
    release: tuple[int, str], decoder: str, bench: Bench, image: Path, tmp_path: Path, place: str
) -> None:
    """containerd itself, by the interface that kubelet uses, with the configuration that the page shows."""
    kek_id = "kbs:///default/image-kek/cri"
    (tmp_path / "kek").write_bytes(KEK)
    with bench.admin() as client:
        client.put_resource(parse_resource_uri(kek_id), KEK)
    options = bench.trust if place == "trust service" else ("--key-file", str(tmp_path / "kek"))
    config = bench.environment(*options)["OCICRYPT_KEYPROVIDER_CONFIG"]
    with RegistryProcess(tmp_path / "registry") as registry:
        plain = OCILayout(image)
        encrypt_image(plain, TAG, registry.client("app"), tag=TAG, recipients=[PacketWrapper(kek_id, KEK)])
        other = [PacketWrapper("kbs:///default/image-kek/unknown", bytes(32))]
        encrypt_image(plain, TAG, registry.client("other"), tag=TAG, recipients=other)
        with Containerd(tmp_path, release, decoder, config) as containerd:
            with pytest.raises(grpc.RpcError) as caught:
                containerd.pull(f"{registry.address}/other:{TAG}")
            # It tells one of two things it noticed: the decoder's error, or that nothing came out of it.
            said = caught.value.details()
            assert "missing private key needed" in said or "wrong diff id" in said, said
            assert not any(containerd.snapshots())
            containerd.pull(f"{registry.address}/app:{TAG}")
            found = containerd.snapshots()[-1]
    (tmp_path / "ours").mkdir()
    with RootDirectory(tmp_path / "ours") as tree:
        unpacker = LayerUnpacker(tree, UnpackOptions(ownership=False, devices=DeviceNodes.SKIP_BELOW_DEV))
        for layer in manifest_of(image).layers:
            kind = parse_layer_type(layer.media_type, path="layer").compression
            unpacker.apply(inflate(checked_blob(plain, layer), kind, ceiling=1 << 30))
    assert found == files_of(tmp_path / "ours")
    assert len(found) > 2


class ContainerdClient(NamedTuple):
    """A client of containerd, built by Go once for this machine, and what it needs here that the page leaves out."""

    module: tuple[str, str, str]
    everywhere: tuple[str, ...] = ()
    pull: tuple[str, ...] = ()
    push: tuple[str, ...] = ()


CLIENTS: Final = {
    "nerdctl": ContainerdClient(NERDCTL, ("--snapshotter", "native", "--insecure-registry"), pull=("--quiet",)),
    "ctr-enc": ContainerdClient(CTR_ENC, pull=("--plain-http", "--snapshotter", "native"), push=("--plain-http",)),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_of_containerd_encrypt_and_decrypt(
    name: str, release: tuple[int, str], decoder: str, bench: Bench, image: Path, tmp_path: Path
) -> None:
    """What they encrypted in containerd, with the commands of the how-to, is opened here; they open it again."""
    tool = CLIENTS[name]
    program = require_go_program(*tool.module)
    page = (DOCS / "encrypt-with-nerdctl-and-containerd.md").read_text("utf-8")
    pull, encrypt, push, decrypt = re.findall(rf"^{name} ((?:images? |pull |push ).*)$", page, re.MULTILINE)
    environment = bench.environment(*bench.trust)
    with RegistryProcess(tmp_path / "registry") as registry:
        client = registry.client("app")
        copy_image(OCILayout(image), TAG, client, "v1")
        provider = environment["OCICRYPT_KEYPROVIDER_CONFIG"]
        with Containerd(tmp_path, release, decoder, provider) as containerd:
            words = [program, "--address", str(containerd.socket), *tool.everywhere]
            if name == "nerdctl":
                words += ["--data-root", str(tmp_path / "nerdctl")]

            def do(line: str, *options: str) -> None:
                *verbs, reference = shlex.split(line.replace("registry.example", registry.address))
                done = run([*words, *verbs, *options, reference], environment)
                assert done.returncode == 0, done.stderr

            do(pull, *tool.pull)
            do(encrypt)
            do(push, *tool.push)
            key = [PacketUnwrapper(lambda path: bench.kek(f"kbs:///{path}"))]
            opened_here = OCILayout(tmp_path / "opened", create=True)
            decrypt_image(client, "sealed", opened_here, tag=TAG, keys=key)
            assert layers_of(tmp_path / "opened") == layers_of(image)
            do(decrypt)
            do(push.replace(":sealed", ":plain"), *tool.push)
            copy_image(client, "plain", OCILayout(tmp_path / "again", create=True), TAG)
            assert layers_of(tmp_path / "again") == layers_of(image)


# -- the pages --------------------------------------------------------------------------------------------------------


def page_script(page: str) -> str:
    """The shell blocks of a how-to, waiting for what is started in the background where a reader would."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for line in "".join(blocks).splitlines():
        lines.append(line)
        if line.endswith("&"):
            lines.append("until [ -S keyprovider.sock ]; do sleep 0.1; done; sleep 0.5")
    return "\n".join(lines)


def follow(page: str, bench: Bench, image: Path, folder: Path, **programs: list[str]) -> None:
    """Do what a page says, in a directory with `oci:app:v1`, with a trust service of this machine."""
    (folder / "bin").mkdir()
    for name, words in {"cloister": list(CLOISTER), **programs}.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    shutil.copytree(image, folder / "app")
    environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder)}
    result = subprocess.run(
        ["bash", "-c", page_script(page)], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_page_about_skopeo(skopeo: str, bench: Bench, one_layer: Path, tmp_path: Path) -> None:
    follow("encrypt-with-skopeo.md", bench, one_layer, tmp_path, skopeo=[skopeo, "--policy", str(bench.policy)])
    for folder in ("plain", "again"):
        assert layers_of(tmp_path / folder) == layers_of(one_layer)


def test_the_page_about_buildah(buildah: str, bench: Bench, one_layer: Path, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    program = Buildah(buildah, bench, tmp_path / "storage", {})
    follow("encrypt-with-buildah.md", bench, one_layer, tmp_path / "page", buildah=program.words_anywhere())
    (packet,) = packets_of(tmp_path / "page" / "sealed")
    assert packet.kek_id == "kbs:///default/image-kek/app"
