"""Layer keys in PKCS #11 documents, without a token: documents, addresses, YAML, and which modules may run.

What needs a token is in `tests/conformance/test_skopeo_schemes.py`.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from cloister.errors import CloisterError
from cloister.oci.encryption.keyfiles import TokenKeyFile
from cloister.oci.encryption.pkcs11 import (
    ModulePolicy,
    PKCS11Wrapper,
    open_pkcs11_recipient,
    open_token_key,
    parse_blobs,
    parse_token_key,
    read_module_policy,
    token_session,
)
from unit.oci.recipients import OPTIONS, ec_key, public_pem, rsa_key

HASHES = {"sha1": hashes.SHA1, "sha256": hashes.SHA256}
ADDRESS = "pkcs11:token=T;object=O?module-path=/m/x.so"
ALLOWED = ModulePolicy(allowed_module_paths=("/m/",))


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


def opened(element: bytes, key: Any) -> list[bytes]:
    found = []
    for blob, name in parse_blobs(element):
        digest = HASHES[name]
        found.append(key.decrypt(blob, padding.OAEP(padding.MGF1(digest()), digest(), None)))
    return found


@pytest.mark.parametrize(("name", "bits"), [("sha1", 2048), ("sha256", 3072)])
def test_what_is_written_opens_with_the_private_key(name: str, bits: int) -> None:
    key = rsa_key(bits=bits)
    element = PKCS11Wrapper([key.public_key(), key.public_key()], hash_name=name).wrap(OPTIONS)
    document = json.loads(element)
    assert document["version"] == 0
    assert [set(entry) for entry in document["recipients"]] == [{"version", "blob", "hash"}] * 2
    assert {entry["hash"] for entry in document["recipients"]} == {name}
    assert opened(element, key) == [OPTIONS, OPTIONS]


def test_the_environment_chooses_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    key = rsa_key(bits=3072)
    for value, name in (("", "sha256"), ("SHA1", "sha1"), ("sha256", "sha256")):
        monkeypatch.setenv("OCICRYPT_OAEP_HASHALG", value)
        assert json.loads(PKCS11Wrapper([key.public_key()]).wrap(OPTIONS))["recipients"][0]["hash"] == name
    monkeypatch.setenv("OCICRYPT_OAEP_HASHALG", "md5")
    assert refused(lambda: PKCS11Wrapper([key.public_key()])) == "oci.encryption.pkcs11.hash"


def test_no_hash_means_sha1() -> None:
    assert parse_blobs(b'{"version":0,"recipients":[{"version":0,"blob":"eA=="}]}') == [(b"x", "sha1")]


def test_keys_that_are_too_short() -> None:
    """Private options have 193 bytes: RSA with 2048 bits holds 190 with SHA-256."""
    assert len(OPTIONS) == 193
    wrapper = PKCS11Wrapper([rsa_key().public_key()], hash_name="sha256")
    assert refused(lambda: wrapper.wrap(OPTIONS)) == "oci.encryption.pkcs11.key_too_short"
    short = PKCS11Wrapper([rsa_key(bits=1024).public_key()], hash_name="sha1")
    assert refused(lambda: short.wrap(b"x")) == "oci.encryption.pkcs11.key_too_short"


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"version": 1, "recipients": []}, "version"),
        ({"version": 0}, "missing_member"),
        ({"recipients": []}, "missing_member"),
        ({"version": 0, "recipients": [{"version": 1, "blob": "eA=="}]}, "version"),
        ({"version": 0, "recipients": [{"version": 0}]}, "missing_member"),
        ({"version": 0, "recipients": [{"version": 0, "blob": "eA==", "hash": "sha512"}]}, "hash"),
        ({"version": 0, "recipients": [{"version": 0, "blob": "eA==", "more": 1}]}, "unknown_member"),
        ({"version": 0, "recipients": [{"version": 0, "blob": "eA=="}] * 33}, "too_many"),
        ({"version": 0, "recipients": [], "more": 1}, "unknown_member"),
    ],
)
def test_documents_that_are_refused(document: dict[str, Any], code: str) -> None:
    assert refused(lambda: parse_blobs(json.dumps(document).encode())) == f"oci.encryption.pkcs11.{code}"


def test_blobs_that_are_no_base64() -> None:
    element = b'{"version":0,"recipients":[{"version":0,"blob":"e"}]}'
    assert refused(lambda: parse_blobs(element)) == "wire.base64.malformed"
    long = base64.b64encode(bytes(3000))
    element = b'{"version":0,"recipients":[{"version":0,"blob":"' + long + b'"}]}'
    assert refused(lambda: parse_blobs(element)) == "wire.base64.too_long"


# -- keys in tokens -----------------------------------------------------------------------------------------------


def yaml(address: str, more: str = "") -> bytes:
    return f"pkcs11:\n  uri: {address}\n{more}".encode()


def test_an_address() -> None:
    address = "pkcs11:token=My%20Token;object=image;id=%01%FF;serial=1?module-path=/m/x.so&pin-value=12%3B4"
    key = parse_token_key(yaml(address, "module:\n  env:\n    CONF: /a\n    LEVEL: 3\n"), ALLOWED)
    assert (key.module, key.token, key.slot, key.label) == ("/m/x.so", "My Token", None, "image")
    assert (key.key_id, key.pin) == (b"\x01\xff", "12;4")
    assert key.environment == {"CONF": "/a", "LEVEL": "3"}
    assert "12;4" not in repr(key)


def test_a_slot_and_a_pin_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("2468\n")
    address = f"pkcs11:slot-id=7;id=%01?module-path=/m/x.so&pin-source=file:{tmp_path}/pin"
    key = parse_token_key(yaml(address), ALLOWED)
    assert (key.slot, key.pin, key.token, key.label) == (7, "2468", "", "")


@pytest.mark.parametrize(
    "address",
    [
        "pkcs11:token=T?module-path=/m/x.so",
        "pkcs11:object=O?module-path=/m/x.so",
        "pkcs11:token=T;object=O;object=P?module-path=/m/x.so",
        "pkcs11:token=T;object=O;colour=red?module-path=/m/x.so",
        "pkcs11:token=T;object?module-path=/m/x.so",
        "pkcs11:token=%FF;object=O?module-path=/m/x.so",
        "pkcs11:slot-id=-1;object=O?module-path=/m/x.so",
        "pkcs11:slot-id=99999999999;object=O?module-path=/m/x.so",
        "pkcs11:token=T;object=O?module-name=../x",
        "file:token=T;object=O?module-path=/m/x.so",
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    assert refused(lambda: parse_token_key(yaml(address), ALLOWED)) == "oci.encryption.pkcs11.uri"


@pytest.mark.parametrize(
    "data",
    [b"pkcs11: [", b"pkcs11: 3", b"pkcs11:\n  other: x\n", b"pkcs11:\n  uri: 3\n", b"\xff", b"x" * 70_000,
     b"pkcs11: !!python/name:os.x", b"module: {env: 3}\npkcs11: {uri: x}\n"],
)  # fmt: skip
def test_yaml_that_names_no_key(data: bytes) -> None:
    assert refused(lambda: parse_token_key(data, ALLOWED)) == "oci.encryption.pkcs11.yaml"


@pytest.mark.parametrize(
    "allowed", [(), ("/m",), ("/",), ("/m/x.so.2",), ("/other/",), ("m/",), ("/m/../m/",)], ids=lambda value: str(value)
)
def test_modules_that_are_not_allowed(allowed: tuple[str, ...]) -> None:
    policy = ModulePolicy(allowed_module_paths=allowed)
    assert refused(lambda: parse_token_key(yaml(ADDRESS), policy)) == "oci.encryption.pkcs11.module"


@pytest.mark.parametrize("path", ["/m/../etc/x.so", "/m/sub/x.so", "m/x.so", "x.so", ""])
def test_a_directory_allows_what_is_directly_in_it(path: str) -> None:
    address = f"pkcs11:token=T;object=O?module-path={path}"
    assert refused(lambda: parse_token_key(yaml(address), ALLOWED)) == "oci.encryption.pkcs11.module"


@pytest.mark.parametrize(("path", "allowed"), [("m/x.so", "m/"), ("m/x.so", "m/x.so"), ("x.so", "")])
def test_a_module_is_named_by_a_whole_path(path: str, allowed: str) -> None:
    """A relative one is looked for where the loader, or whoever set the directory, wants."""
    policy = ModulePolicy(allowed_module_paths=(allowed,))
    address = f"pkcs11:token=T;object=O?module-path={path}"
    assert refused(lambda: parse_token_key(yaml(address), policy)) == "oci.encryption.pkcs11.module"


def test_a_module_by_name_is_looked_for(tmp_path: Path) -> None:
    address = "pkcs11:token=T;object=O?module-name=softhsm2"
    folders = (f"{tmp_path}/none", str(tmp_path))
    policy = ModulePolicy(module_directories=folders, allowed_module_paths=(f"{tmp_path}/libsofthsm2.so",))
    assert refused(lambda: parse_token_key(yaml(address), policy)) == "oci.encryption.pkcs11.module"
    (tmp_path / "libsofthsm2.so").touch()
    assert parse_token_key(yaml(address), policy).module == f"{tmp_path}/libsofthsm2.so"
    elsewhere = ModulePolicy(module_directories=folders, allowed_module_paths=("/other/",))
    assert refused(lambda: parse_token_key(yaml(address), elsewhere)) == "oci.encryption.pkcs11.module"


# -- the configuration ----------------------------------------------------------------------------------------------


def test_where_the_configuration_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("OCICRYPT_CONFIG", "internal")
    assert "/usr/lib/softhsm/" in read_module_policy().allowed_module_paths
    config = tmp_path / "some.conf"
    config.write_text("pkcs11:\n  module-directories:\n    - /d/\n  allowed-module-paths:\n    - /d/x.so\n")
    monkeypatch.setenv("OCICRYPT_CONFIG", str(config))
    expected = ModulePolicy(module_directories=("/d/",), allowed_module_paths=("/d/x.so",))
    assert read_module_policy() == expected
    monkeypatch.setenv("OCICRYPT_CONFIG", str(tmp_path / "none"))
    assert refused(read_module_policy) == "oci.encryption.key_file.unreadable"
    monkeypatch.delenv("OCICRYPT_CONFIG")
    (tmp_path / ".config").mkdir()
    config.rename(tmp_path / ".config" / "ocicrypt.conf")
    assert read_module_policy() == expected
    (tmp_path / "xdg").mkdir()
    (tmp_path / "xdg" / "ocicrypt.conf").write_text("pkcs11: {}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert read_module_policy() == ModulePolicy()


def test_a_configuration_with_a_slip_allows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "conf"
    config.write_text("pkcs11:\n  allowed-module-path:\n    - /\n")
    monkeypatch.setenv("OCICRYPT_CONFIG", str(config))
    assert refused(read_module_policy) == "oci.encryption.pkcs11.yaml"


def test_no_configuration_allows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/etc/ocicrypt.conf").exists():
        pytest.skip("this machine has /etc/ocicrypt.conf")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("OCICRYPT_CONFIG", raising=False)
    code = "oci.encryption.pkcs11.no_config"
    assert refused(lambda: open_token_key(TokenKeyFile(data=yaml(ADDRESS)))) == code


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    key = parse_token_key(yaml(ADDRESS), ALLOWED)
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(CloisterError) as caught, token_session(key):
        pass
    assert caught.value.code == "oci.encryption.pkcs11.library"
    assert "cloister[pkcs11]" in caught.value.hint


def test_a_module_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"nothing")
    policy = ModulePolicy(allowed_module_paths=(f"{tmp_path}/",))
    key = parse_token_key(yaml(f"pkcs11:token=T;object=O?module-path={tmp_path}/x.so"), policy)
    with pytest.raises(CloisterError) as caught, token_session(key):
        pass
    assert caught.value.code == "oci.encryption.pkcs11.token"


def test_recipients_are_rsa(tmp_path: Path) -> None:
    (tmp_path / "rsa.pem").write_bytes(public_pem(rsa_key()))
    (tmp_path / "ec.pem").write_bytes(public_pem(ec_key()))
    assert open_pkcs11_recipient(str(tmp_path / "rsa.pem")) == rsa_key().public_key()
    assert refused(lambda: open_pkcs11_recipient(str(tmp_path / "ec.pem"))) == "oci.encryption.pkcs11.key"
