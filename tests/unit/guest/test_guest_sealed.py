"""Sealed secrets and secret files of a container: all of them in place, or no container."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.jwt import public_jwk
from cloister.crypto.sealedsecret import seal_envelope_secret, seal_vault_secret
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError, ImageRefused, KeyReleaseDenied
from cloister.guest.rootfiles import place_secrets
from cloister.guest.sealed import read_secret_files, unseal_environment
from cloister.oci.rootfs import RootDirectory
from cloister.podpolicy.model import ContainerPolicy, ProcessSpec
from cloister.protocol.resourceuri import ResourcePath

KEY_PATH = ResourcePath("default", "sealing-key", "1")
PASSWORD = ResourcePath("shop", "password", "1")
OTHER = ResourcePath("shop", "password", "2")
KEK_PATH = ResourcePath("shop", "kek", "1")
KEK = bytes(range(32))
SIGNER = ECDSAP256Signer.generate()


class Broker:
    """A key broker that knows some resources and remembers what it was asked."""

    def __init__(self, resources: Mapping[ResourcePath, bytes]) -> None:
        self._resources = resources
        self.asked: list[ResourcePath] = []

    @contextlib.contextmanager
    def resource(self, path: ResourcePath) -> Iterator[bytearray]:
        self.asked.append(path)
        if path not in self._resources:
            raise KeyReleaseDenied("client.keybroker.denied", "not released")
        yield bytearray(self._resources[path])


@pytest.fixture
def broker() -> Broker:
    return Broker(
        {
            KEY_PATH: json.dumps(public_jwk(SIGNER.public_key)).encode(),
            PASSWORD: b"canary-of-the-vault",
            OTHER: b"canary-of-another",
            KEK_PATH: KEK,
        }
    )


def container(**fields: Any) -> ContainerPolicy:
    known: dict[str, Any] = {
        "name": "app",
        "kind": "app",
        "image_digest": "sha256:" + "0" * 64,
        "repository": "r.test/a",
        "signature_keys": ("key",),
        "sealing_keys": {KEY_PATH.uri: ""},
        "unseal": (PASSWORD, KEK_PATH),
    }
    return ContainerPolicy(**(known | fields))


def spec(*env: str) -> ProcessSpec:
    return ProcessSpec(args=("/x",), env=env, cwd="/", user="0", terminal=False)


VAULT = seal_vault_secret(PASSWORD, SIGNER, kid=KEY_PATH.uri)
ENVELOPE = seal_envelope_secret(b"canary-of-the-envelope", SIGNER, kid=KEY_PATH.uri, key_id=KEK_PATH, kek=KEK)


def test_sealed_variables_become_their_secrets(broker: Broker) -> None:
    found = unseal_environment(container(), spec("A=1", f"V={VAULT}", f"E={ENVELOPE}", "EMPTY="), broker)
    assert found.env == ("A=1", "V=canary-of-the-vault", "E=canary-of-the-envelope", "EMPTY=")


def test_a_key_in_the_policy_itself_needs_no_broker(broker: Broker) -> None:
    policy = container(sealing_keys={"own": SIGNER.public_key.pem().decode()})
    text = seal_vault_secret(PASSWORD, SIGNER, kid="own")
    assert unseal_environment(policy, spec(f"V={text}"), broker).env == ("V=canary-of-the-vault",)
    assert broker.asked == [PASSWORD]


@pytest.mark.parametrize(
    ("fields", "text", "code"),
    [
        ({"sealing_keys": {}}, VAULT, "podpolicy.unseal.key"),
        ({"sealing_keys": {"kbs:///default/sealing-key/2": ""}}, VAULT, "podpolicy.unseal.key"),
        ({"unseal": ()}, VAULT, "podpolicy.unseal.resource"),
        ({"unseal": (PASSWORD,)}, ENVELOPE, "podpolicy.unseal.resource"),
        ({}, seal_vault_secret(OTHER, SIGNER, kid=KEY_PATH.uri), "podpolicy.unseal.resource"),
        ({}, seal_vault_secret(PASSWORD, ECDSAP256Signer.generate(), kid=KEY_PATH.uri), "crypto.sealed.bad_signature"),
        ({}, "sealed.fake.fake.fake", "crypto.sealed.malformed"),
        ({}, "sealed.", "crypto.sealed.malformed"),
        ({"unseal": (ResourcePath("shop", "gone", "1"),)}, None, "client.keybroker.denied"),
    ],
)
def test_a_secret_that_is_not_for_this_container_refuses_it(
    broker: Broker, fields: dict[str, Any], text: str | None, code: str
) -> None:
    if text is None:
        text = seal_vault_secret(ResourcePath("shop", "gone", "1"), SIGNER, kid=KEY_PATH.uri)
    for attempt in (
        lambda: unseal_environment(container(**fields), spec(f"V={text}"), broker),
        lambda: read_secret_files(container(files={"/run/secret": text}, **fields), broker),
    ):
        with pytest.raises(CloisterError) as caught:
            attempt()
        assert caught.value.code == code
        assert "canary" not in repr(caught.value.as_dict())
    assert OTHER not in broker.asked


def test_the_broker_is_not_asked_for_what_the_policy_does_not_name(broker: Broker) -> None:
    with pytest.raises(CloisterError):
        unseal_environment(container(sealing_keys={}), spec(f"V={VAULT}"), broker)
    assert broker.asked == []


@pytest.mark.parametrize("secret", [b"\xff", b"a\0b"])
def test_bytes_are_no_variable(secret: bytes) -> None:
    held = Broker({KEY_PATH: SIGNER.public_key.pem(), PASSWORD: secret})
    with pytest.raises(CloisterError) as caught:
        unseal_environment(container(), spec(f"V={VAULT}"), held)
    assert caught.value.code == "guest.sealed.not_text"
    assert caught.value.path == "containers.app.env.V"
    assert read_secret_files(container(files={"/f": VAULT}), held) == {"/f": secret}


def test_secret_files_come_by_address_and_sealed(broker: Broker) -> None:
    policy = container(files={"/run/secrets/db": OTHER.uri, "/etc/app/key": ENVELOPE})
    assert read_secret_files(policy, broker) == {
        "/run/secrets/db": b"canary-of-another",
        "/etc/app/key": b"canary-of-the-envelope",
    }


def test_secret_files_are_private_and_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "etc").mkdir(parents=True)
    outside.write_text("untouched")
    (root / "etc" / "key").symlink_to(outside)
    (root / "run").symlink_to("/../../etc")
    with RootDirectory(root) as tree:
        place_secrets(tree, {"/etc/key": b"one", "/run/secrets/two": b"two", "/top": b"three"}, None)
    assert outside.read_text() == "untouched"
    for path, content in (("etc/key", b"one"), ("etc/secrets/two", b"two"), ("top", b"three")):
        found = root / path
        assert found.read_bytes() == content
        assert stat.S_IMODE(found.lstat().st_mode) == 0o400


@pytest.mark.skipif(os.geteuid() != 0, reason="changing owners needs root")
def test_secret_files_belong_to_the_process(tmp_path: Path) -> None:
    with RootDirectory(tmp_path) as tree:
        place_secrets(tree, {"/key": b"one"}, (1000, 1001))
    assert ((tmp_path / "key").stat().st_uid, (tmp_path / "key").stat().st_gid) == (1000, 1001)


def test_a_directory_in_a_secrets_place_refuses(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with RootDirectory(tmp_path) as tree, pytest.raises(ImageRefused) as caught:
        place_secrets(tree, {"/key": b"one"}, None)
    assert caught.value.code == "guest.rootfiles.blocked"
    assert not list((tmp_path / "key").iterdir())
