"""Images between places: what the commands do, what they leave behind when they refuse, and what `inspect` says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError, Refused
from cloister.imagetool.encrypt import encrypt_image
from cloister.oci.layout import OCILayout
from cloister.oci.store import checked_blob, read_manifest
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri
from cloister.sdk.images import KeyEncryptionKeys, encrypt_between, parse_places
from cloister.sdk.inspection import describe_image
from imagetool_images import CANARY, build, manifest_of, recipient, rewrite
from tampering import flipped
from unit.oci.builders import KEK, KEK_ID, Built, build_layout


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build(tmp_path / "plain", "gzip")


@pytest.fixture
def kek_file(tmp_path: Path) -> Path:
    path = tmp_path / "kek"
    path.write_bytes(KEK)
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return tmp_path


def cloister(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["image", *words])
    if isinstance(result.exception, CloisterError):
        return 1, result.stdout, result.exception.code
    return result.exit_code, result.stdout, result.stderr


def visible_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("place", ["oci:{}/out:v1", "oci-archive:{}/out.tar:v1", "dir:{}/out"])
def test_around_through_every_place_that_holds_encryption(built: Built, keys: Path, tmp_path: Path, place: str) -> None:
    sealed = place.format(tmp_path)
    words = ("encrypt", f"oci:{built.path}:v1", sealed, "--recipient", f"jwe:{keys}/key.pub", "--output", "json")
    status, output, said = cloister(*words)
    assert status == 0, said
    answer = json.loads(output)
    assert answer["source"] == str(built.digest)
    status, output, said = cloister("inspect", sealed, "--output", "json")
    assert json.loads(output)["encryption"] == "all layers", said
    status, output, said = cloister(
        "decrypt", sealed, f"oci:{tmp_path}/back:v1", "--key", f"{keys}/key.pem", "--output", "json"
    )
    assert json.loads(output)["digest"] == str(built.digest), said


def test_a_place_that_cannot_hold_encryption_is_refused_and_nothing_is_written(
    built: Built, keys: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = ("encrypt", f"oci:{built.path}:v1", f"docker-archive:{out}/x.tar", "--recipient", f"jwe:{keys}/key.pub")
    assert cloister(*words)[0] == 1
    assert cloister(*words)[2] == "oci.location.not_writable"
    assert visible_files(out) == []


@pytest.mark.parametrize("place", ["oci:{}/x:v1", "oci-archive:{}/x.tar:v1", "dir:{}/x"])
@pytest.mark.parametrize(
    ("source", "recipient_text"),
    [("oci:{}/plain:none", "jwe:{}/key.pub"), ("oci:{}/plain:v1", "jwe:{}/none"), ("oci:{}/plain:v1", "smoke:signal")],
)
def test_what_is_refused_leaves_no_file(
    built: Built, keys: Path, tmp_path: Path, place: str, source: str, recipient_text: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = ("encrypt", source.format(tmp_path), place.format(out), "--recipient", recipient_text.format(tmp_path))
    assert cloister(*words)[0] == 1
    assert visible_files(out) == []


def test_a_changed_layer_leaves_no_archive(built: Built, keys: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    blob = built.path / "blobs" / "sha256" / manifest_of(built.layout).layers[0].digest.hex
    blob.write_bytes(flipped(blob.read_bytes()))
    words = ("encrypt", f"oci:{built.path}:v1", f"oci-archive:{out}/x.tar:v1", "--recipient", f"jwe:{keys}/key.pub")
    assert cloister(*words)[2] == "oci.layout.digest_mismatch"
    assert visible_files(out) == []


def test_decrypting_verifies_first_where_that_is_asked(built: Built, keys: Path, tmp_path: Path) -> None:
    """By key and by policy; who signed is told, and a refusal leaves nothing."""
    sealed, named = f"oci:{tmp_path}/sealed:v1", ("--repository", "images.test/team/app")
    cloister("encrypt", f"oci:{built.path}:v1", sealed, "--recipient", f"jwe:{keys}/key.pub")
    signer = ECDSAP256Signer.generate()
    (tmp_path / "sign.pem").write_bytes(signer.private_pem())
    (tmp_path / "sign.pub").write_bytes(signer.public_key.pem())
    identity = {"type": "exactRepository", "dockerRepository": "images.test/team/app"}
    signed_by = {"type": "sigstoreSigned", "keyPath": f"{tmp_path}/sign.pub", "signedIdentity": identity}
    policy, anything = tmp_path / "policy.json", tmp_path / "anything.json"
    policy.write_text(json.dumps({"default": [signed_by]}))
    anything.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    words = ("decrypt", sealed, f"oci:{tmp_path}/back:v1", "--key", f"{keys}/key.pem")
    by_key = ("--verify-key", f"{tmp_path}/sign.pub", *named)
    by_policy = ("--policy", str(policy))
    for way in (by_key, by_policy):
        assert cloister(*words, *way)[2] == "oci.signing.unsigned"
        assert not (tmp_path / "back").exists()
    assert cloister("sign", sealed, "--key", f"{tmp_path}/sign.pem", *named)[0] == 0
    for way in (by_key, by_policy):
        answer = json.loads(cloister(*words, *way, "--output", "json")[1])
        assert answer["verified"] and answer["signers"] == [f"key {signer.public_key.fingerprint[:16]}"]
        assert answer["digest"] == str(built.digest)
        assert "signature verified" in cloister(*words, *way)[2]
        assert cloister(*words, *way, "--not-before", "2126-01-01")[2] == "oci.signing.no_valid_signature"
    accepted = json.loads(cloister(*words, "--policy", str(anything), "--output", "json")[1])
    assert not accepted["verified"]
    for way in (("--policy", str(anything)), ()):
        assert "NOT verified" in cloister(*words, *way)[2]
    assert cloister(*words, "--policy", str(anything), "--not-before", "2020-01-01")[2] == "oci.signing.age.unproved"
    assert cloister(*words, *by_key, *by_policy)[0] == 2
    assert cloister(*words, "--not-before", "2020-01-01")[0] == 2
    assert cloister(*words, "--verify-key", f"{tmp_path}/sign.pub")[2] == "cli.image.repository"


def test_layers_that_were_not_encrypted_are_told(built: Built, keys: Path, tmp_path: Path) -> None:
    """Somebody puts a plain layer into the place of an encrypted one; it is copied, and a person is told."""
    sealed, plain = tmp_path / "sealed", manifest_of(built.layout).layers[0]
    cloister("encrypt", f"oci:{built.path}:v1", f"oci:{sealed}:v1", "--recipient", f"jwe:{keys}/key.pub")
    OCILayout(sealed).write_blob(checked_blob(built.layout, plain))

    def spoil(document: dict[str, Any]) -> None:
        entry = {"mediaType": plain.media_type, "digest": str(plain.digest), "size": plain.size}
        document["layers"][0] = entry

    rewrite(OCILayout(sealed), spoil)
    words = ("decrypt", f"oci:{sealed}:v1", f"oci:{tmp_path}/back:v1", "--key", f"{keys}/key.pem")
    status, _, said = cloister(*words)
    assert status == 0, said
    (warning,) = [line for line in said.splitlines() if "NOT encrypted" in line]
    assert "1 layer copied" in warning and "ANYBODY" in warning
    assert json.loads(cloister(*words, "--output", "json")[1])["already_plain"] == 1
    signer = ECDSAP256Signer.generate()
    (tmp_path / "sign.pem").write_bytes(signer.private_pem())
    (tmp_path / "sign.pub").write_bytes(signer.public_key.pem())
    named = ("--repository", "images.test/team/app")
    cloister("sign", f"oci:{sealed}:v1", "--key", f"{tmp_path}/sign.pem", *named)
    said = cloister(*words, "--verify-key", f"{tmp_path}/sign.pub", *named)[2]
    (warning,) = [line for line in said.splitlines() if "NOT encrypted" in line]
    assert "signed with the rest" in warning


def test_rewrap_in_place(built: Built, keys: Path, kek_file: Path, tmp_path: Path) -> None:
    sealed = f"oci-archive:{tmp_path}/x.tar:v1"
    words = ("encrypt", f"oci:{built.path}:v1", sealed, "--recipient", KEK_ID, "--key-file", str(kek_file))
    assert cloister(*words)[0] == 0
    add = ("rewrap", sealed, "--add", f"jwe:{keys}/key.pub", "--key", "kbs", "--key-file", str(kek_file))
    assert cloister(*add)[0] == 0
    assert cloister("rewrap", sealed, "--remove", "kbs")[0] == 0
    described = json.loads(cloister("inspect", sealed, "--output", "json")[1])
    assert [set(layer["recipients"]) for layer in described["layers"]] == [{"jwe"}, {"jwe"}]
    assert cloister("rewrap", sealed, "--remove", "kbs")[2] == "imagetool.rewrap.no_such_scheme"
    assert cloister("decrypt", sealed, f"oci:{tmp_path}/back:v1", "--key", f"{keys}/key.pem")[0] == 0


def test_guests_are_warned_of(tmp_path: Path, kek_file: Path) -> None:
    built = build(tmp_path / "zstd", "zstd")
    words = (
        "encrypt",
        f"oci:{built.path}:v1",
        f"oci:{tmp_path}/x:v1",
        "--recipient",
        KEK_ID,
        "--key-file",
        str(kek_file),
    )
    status, _, said = cloister(*words)
    assert status == 0
    assert "CoCo guests cannot read" in said
    assert "--compress gzip" in said
    assert "CoCo guests" not in cloister(*words, "--compress", "gzip")[2]


@pytest.mark.parametrize("content", [None, bytes(31), bytes(33)])
def test_key_files_of_another_length_are_refused(built: Built, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "kek"
    if content is not None:
        path.write_bytes(content)
    place = parse_places(f"oci:{built.path}:v1", f"oci:{tmp_path}/x:v1")
    with pytest.raises(CloisterError) as caught:
        encrypt_between(place, [KEK_ID], keks=KeyEncryptionKeys(path))
    assert caught.value.code in ("imagetool.keyprovider.key_file", "oci.encryption.kek_length")
    assert not (tmp_path / "x").exists()


# -- inspect


def described(layout: OCILayout, **options: Any) -> dict[str, Any]:
    return describe_image(layout, "v1", **options)


def test_inspect_lists_everything_that_stays_readable(tmp_path: Path) -> None:
    run = {
        "Cmd": ["/serve", "--model"],
        "Env": ["TOKEN=" + "x" * 300],
        "User": "app",
        "WorkingDir": "/srv",
        "Labels": {"a": "b"},
    }
    built = build_layout(tmp_path / "plain", *[b""], run=run)
    rewrite(built.layout, lambda document: document.update(annotations={"org.test/note": "said"}))
    sealed = OCILayout(tmp_path / "sealed", create=True)
    encrypt_image(built.layout, "v1", sealed, tag="v1", recipients=[recipient()])
    answer = described(sealed)
    lines = {item["what"]: item["value"] for item in answer["readable"]}
    assert lines["config.Cmd"] == "/serve --model"
    assert lines["config.Env"].startswith("TOKEN=xxx")
    assert lines["config.Env"].endswith("(306 characters)")
    assert lines["config.Labels"] == "a=b"
    assert lines["annotation org.test/note"] == "said"
    assert lines["number and size of layers"].startswith("1: ")
    assert not any("enc." in what for what in lines)
    raw = read_manifest(sealed, "v1").raw.decode()
    assert "said" in raw  # it is there to be read


def test_inspect_says_what_is_encrypted_and_for_whom(built: Built, tmp_path: Path) -> None:
    assert described(built.layout)["encryption"] == "0 of 2 layers"
    sealed = OCILayout(tmp_path / "sealed", create=True)
    encrypt_image(built.layout, "v1", sealed, tag="v1", recipients=[recipient()])
    answer = described(sealed)
    assert answer["encryption"] == "all layers"
    assert answer["layers"][0]["recipients"] == {"provider.attestation-agent": [KEK_ID]}
    assert all(layer["for_guests"] for layer in answer["layers"])
    assert CANARY.decode() not in json.dumps(answer)


def test_inspect_says_when_an_element_cannot_be_read(built: Built, tmp_path: Path) -> None:
    sealed = OCILayout(tmp_path / "sealed", create=True)
    encrypt_image(built.layout, "v1", sealed, tag="v1", recipients=[recipient()])

    def spoil(document: dict[str, Any]) -> None:
        for scheme in ("jwe", "pkcs7", "pgp", "pkcs11", "provider.attestation-agent", "provider.own"):
            document["layers"][0]["annotations"][f"org.opencontainers.image.enc.keys.{scheme}"] = "AAECAw=="

    rewrite(sealed, spoil)
    recipients = described(sealed)["layers"][0]["recipients"]
    assert recipients.pop("provider.own") == ["known to its provider only (4 bytes)"]
    assert len(recipients) == 5
    for scheme, lines in recipients.items():
        assert lines[0].startswith(("cannot be read", "names nobody")), (scheme, lines)


def test_a_key_of_the_trust_service_is_made_once(private_home: Path) -> None:
    path = parse_resource_uri(KEK_ID)
    first, second = KeyEncryptionKeys(), KeyEncryptionKeys()
    key = first.for_recipient(path)
    assert (first.made, first.found) == ([KEK_ID], [])
    assert second.for_recipient(path) == key == second.at(path)
    assert (second.made, second.found) == ([], [KEK_ID])
    with pytest.raises(CloisterError) as caught:
        second.at(parse_resource_uri("kbs:///default/image-kek/none"))
    assert caught.value.code == "trust.resource.missing"


class Overtaken:
    """A trust service that gets the key from somebody else right before it is stored."""

    def __init__(self) -> None:
        self.held: dict[ResourcePath, bytes] = {}

    @contextmanager
    def opened(self) -> Iterator[Overtaken]:
        yield self

    def put_resource(self, path: ResourcePath, content: bytes, *, replaces: int | None = None) -> None:
        self.held[path] = KEK
        if replaces is not None:
            raise Refused("trust.resource.conflict", "another version is there")
        self.held[path] = content

    def get_resource_content(self, path: ResourcePath) -> bytes:
        if path not in self.held:
            raise Refused("trust.resource.missing", "there is none")
        return self.held[path]


def test_of_two_that_make_a_key_at_once_one_is_kept_and_both_use_it() -> None:
    """Otherwise the image that was encrypted under the other key could never be decrypted."""
    service = Overtaken()
    keks = KeyEncryptionKeys(service=service.opened)  # type: ignore[arg-type]  # as much of a client as is used
    assert keks.for_recipient(parse_resource_uri(KEK_ID)) == KEK and (keks.made, keks.found) == ([], [KEK_ID])
    assert list(service.held.values()) == [KEK]
