"""Keys of images in a trust service over the network: the service and the commands as processes, real TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.signer import ECDSAP256Signer
from cloister.oci.digest import Digest
from trust_process import Owner, Running, make_owner, running
from trust_world import quick_directory
from unit.oci.builders import Built, archive, build_layout, file

KEK = "kbs:///net/image-kek/one"


@pytest.fixture(scope="module")
def owner() -> Iterator[Owner]:
    with quick_directory() as directory:
        yield make_owner(directory)


@pytest.fixture(scope="module")
def service(owner: Owner) -> Iterator[Running]:
    with running(owner.state) as made:
        yield made


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build_layout(tmp_path / "plain", archive(file(b"a", b"content")))


class Machine:
    """Somebody's machine that has no trust service, and the options that reach one."""

    def __init__(self, service: Running, owner: Owner, place: Path) -> None:
        self.home = place / "no-home"
        self.server = ["--server", service.report["url"], "--ca", str(owner.state / "ca.pem")]
        self.token = ["--token-file", str(owner.state / "admin-token")]
        self.place = place

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "CLOISTER_HOME": str(self.home)}
        command = [sys.executable, "-m", "cloister", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)

    def done(self, *words: str) -> Any:
        made = self.run(*words, *self.server, *self.token, "--output", "json")
        assert made.returncode == 0, made.stderr
        assert not self.home.exists(), "a trust service was made here"
        return json.loads(made.stdout)

    def at(self, name: str) -> str:
        return f"oci:{self.place}/{name}:v1"


@pytest.fixture
def machine(service: Running, owner: Owner, tmp_path: Path) -> Machine:
    return Machine(service, owner, tmp_path)


def test_keys_are_made_kept_and_used_over_the_network(machine: Machine, built: Built) -> None:
    sealed = machine.done("image", "encrypt", machine.at("plain"), machine.at("sealed"), "--recipient", KEK)
    assert sealed["keys_made"] == [KEK]
    other = KEK.replace("one", "two")
    words = ["--replace", "--add", other, "--key", "kbs"]
    machine.done("image", "rewrap", machine.at("sealed"), machine.at("rewrapped"), *words)
    listed = machine.done("secret", "list")
    assert {"net/image-kek/one", "net/image-kek/two"} <= {item["path"] for item in listed["resources"]}
    plain = machine.done("image", "decrypt", machine.at("rewrapped"), machine.at("opened"), "--key", "kbs")
    assert plain["decrypted"] == 1
    root = machine.done("image", "verity", machine.at("sealed"), "--key", "kbs")
    assert root["digest"] and root["root_hash"]
    token = machine.place / "token"
    token.write_text("cat_nobody")
    words = ["decrypt", machine.at("rewrapped"), machine.at("refused"), "--key", "kbs", "--token-file", str(token)]
    refused = machine.run("image", *words, *machine.server)
    assert refused.returncode == 1 and "trust.access.unauthenticated" in refused.stderr
    assert not (machine.place / "refused").exists()
    opened = json.loads((machine.place / "opened" / "index.json").read_text())
    (entry,) = opened["manifests"]
    name = entry["digest"].removeprefix("sha256:")
    manifest = json.loads((machine.place / "opened" / "blobs" / "sha256" / name).read_text())
    assert [layer["digest"] for layer in manifest["layers"]] == [str(Digest.of(built.layers[0]))]


def test_a_policys_key_is_read_over_the_network(machine: Machine, built: Built) -> None:
    signer = ECDSAP256Signer.generate()
    (machine.place / "key.pem").write_bytes(signer.private_pem())
    (machine.place / "key.pub").write_bytes(signer.public_key.pem())
    machine.done("secret", "put", "kbs:///net/cosign/key", "--file", str(machine.place / "key.pub"))
    sign = ["--key", str(machine.place / "key.pem"), "--repository", "images.test/team/app"]
    assert machine.run("image", "sign", machine.at("plain"), *sign).returncode == 0
    asked = {
        "type": "sigstoreSigned",
        "keyPath": "kbs:///net/cosign/key",
        "signedIdentity": {"type": "exactRepository", "dockerRepository": "images.test/team/app"},
    }
    (machine.place / "policy.json").write_text(json.dumps({"default": [asked]}))
    report = machine.done("image", "verify", machine.at("plain"), "--policy", str(machine.place / "policy.json"))
    assert report["proved"] and report["digest"] == str(built.digest)


@pytest.mark.parametrize(
    ("token", "code", "status"),
    [
        ("cls_0000000000000000_nobody", "trust.access.unauthenticated", 1),
        (None, "sdk.administration.token", 1),
        ("", "sdk.administration.file", 3),
    ],
)
def test_a_token_that_is_none_gets_no_key_and_leaves_no_image(
    machine: Machine, built: Built, token: str | None, code: str, status: int
) -> None:
    path = machine.place / "token"
    if token:
        path.write_text(token)
    words = [] if token is None else ["--token-file", str(path)]
    missing = KEK.replace("one", "never")
    verb = ["encrypt", machine.at("plain"), machine.at("result"), "--recipient", missing]
    refused = machine.run("image", *verb, *machine.server, *words)
    assert refused.returncode == status, refused.stderr
    assert code in refused.stderr
    assert not (machine.place / "result").exists()
    listed = machine.done("secret", "list")
    assert "net/image-kek/never" not in {item["path"] for item in listed["resources"]}
