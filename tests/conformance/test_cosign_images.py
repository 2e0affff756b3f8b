"""Signatures between Cloister and cosign: what one signs the other verifies, in one registry."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cloister.crypto.signer import ECDSAP256PublicKey, ECDSAP256Signer
from cloister.errors import ImageRefused
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.signing.simplesigning import read_candidates
from cloister.oci.signing.verify import ExactRepository, VerifiedManifest, verify_manifest
from cloister.oci.store import read_manifest
from conformance.registry_process import RegistryProcess
from conformance.tools import require_tool
from unit.oci.builders import RECIPIENTS, archive, build_layout, file

pytestmark = pytest.mark.tool


class Cosign:
    """Runs cosign without its public services."""

    def __init__(self, folder: Path) -> None:
        self._program = require_tool("cosign")
        self._folder = folder
        self._environment = {**os.environ, "COSIGN_PASSWORD": "", "HOME": str(folder)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def make_key(self) -> ECDSAP256PublicKey:
        assert self.run("generate-key-pair").returncode == 0
        return ECDSAP256PublicKey.from_pem((self._folder / "cosign.pub").read_bytes())

    def sign(self, reference: str, *options: str) -> None:
        result = self.run(
            "sign", "--key", "cosign.key", "--tlog-upload=false", "--allow-http-registry", "-y", *options, reference
        )
        assert result.returncode == 0, result.stderr

    def verifies(self, reference: str, key: ECDSAP256PublicKey) -> bool:
        (self._folder / "check.pub").write_bytes(key.pem())
        result = self.run(
            "verify", "--key", "check.pub", "--insecure-ignore-tlog=true", "--allow-http-registry", reference
        )
        return result.returncode == 0


class Pushed(NamedTuple):
    """A sealed image in the registry."""

    client: RegistryClient
    name: str
    digest: Digest

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.digest}"

    def verify(self, *keys: ECDSAP256PublicKey, repository: str = "") -> VerifiedManifest:
        return verify_manifest(
            read_manifest(self.client, self.digest).raw,
            expected=self.digest,
            candidates=read_candidates(self.client, self.digest),
            keys=keys,
            repository=ExactRepository(repository or self.name),
        )


@pytest.fixture
def cosign(tmp_path: Path) -> Cosign:
    return Cosign(tmp_path)


@pytest.fixture
def pushed(tmp_path: Path) -> Iterator[Pushed]:
    built = build_layout(tmp_path / "plain", archive(file(b"a", b"x")))
    with RegistryProcess(tmp_path / "registry") as registry:
        client = registry.client("team/app")
        sealed = encrypt_image(built.layout, "v1", client, tag="v1", recipients=RECIPIENTS)
        yield Pushed(client, f"{registry.address}/team/app", sealed.digest)


def refused(pushed: Pushed, *keys: ECDSAP256PublicKey, repository: str = "") -> str:
    with pytest.raises(ImageRefused) as caught:
        pushed.verify(*keys, repository=repository)
    return caught.value.code


def test_we_verify_what_cosign_signed(cosign: Cosign, pushed: Pushed) -> None:
    key = cosign.make_key()
    assert refused(pushed, key) == "oci.signing.unsigned"
    cosign.sign(pushed.reference)
    assert pushed.verify(key).signer == key.fingerprint
    assert refused(pushed, ECDSAP256Signer.generate().public_key) == "oci.signing.no_valid_signature"
    assert refused(pushed, key, repository="elsewhere.test/app") == "oci.signing.no_valid_signature"


def test_cosigns_annotations_do_not_disturb(cosign: Cosign, pushed: Pushed) -> None:
    key = cosign.make_key()
    cosign.sign(pushed.reference, "-a", "team=a", "-a", "build=7")
    pushed.verify(key)


def test_cosign_verifies_what_we_signed(cosign: Cosign, pushed: Pushed) -> None:
    signer = ECDSAP256Signer.generate()
    assert not cosign.verifies(pushed.reference, signer.public_key)
    sign_image(pushed.client, pushed.digest, signer, repository=pushed.name)
    assert cosign.verifies(pushed.reference, signer.public_key)
    assert cosign.verifies(f"{pushed.name}:v1", signer.public_key)
    assert not cosign.verifies(pushed.reference, ECDSAP256Signer.generate().public_key)


@pytest.mark.parametrize("first", ["cosign", "cloister"])
def test_both_sign_one_image(cosign: Cosign, pushed: Pushed, first: str) -> None:
    key, signer = cosign.make_key(), ECDSAP256Signer.generate()
    if first == "cosign":
        cosign.sign(pushed.reference)
    sign_image(pushed.client, pushed.digest, signer, repository=pushed.name)
    if first == "cloister":
        cosign.sign(pushed.reference)
    assert len(read_candidates(pushed.client, pushed.digest)) == 2
    for each in (key, signer.public_key):
        pushed.verify(each)
        assert cosign.verifies(pushed.reference, each)
