"""Every scheme of ocicrypt between Cloister and skopeo 1.18: what one encrypts the other decrypts, to equal digests.

Keys of OpenPGP are made by gpg or Sequoia, keys in tokens by SoftHSM. A PKCS #11 module takes its configuration once
for a process, so whatever uses a token here is `cloister` in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pysequoia
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.crypto.openpgp import decrypt_message, encrypt_message, find_recipients
from cloister.crypto.openpgpkeys import open_secret_keyring
from cloister.errors import CloisterError
from cloister.imagetool.decrypt import decrypt_image
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.rewrap import NewRecipients, rewrap_image
from cloister.oci.encryption.annotations import parse_layer_encryption
from cloister.oci.encryption.keyfiles import read_key_file
from cloister.oci.encryption.wrapping import KeyWrapper, open_keys, open_recipients
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import ImageManifest, parse_manifest
from cloister.oci.store import read_manifest
from conformance.hsm import MODULES, PIN
from conformance.tools import require_tool, skip_or_fail
from unit.oci.builders import build_layout
from unit.oci.recipients import certificate, ec_key, jwk, private_bytes, public_pem, rsa_key

pytestmark = pytest.mark.tool

PEOPLE = ("pgp-rsa", "pgp-other")  # skopeo's OpenPGP knows no elliptic curves
RECIPIENTS = {
    "jwe-rsa": "jwe:{keys}/rsa.pub",
    "jwe-p256": "jwe:{keys}/ec.pub",
    "jwe-p521": "jwe:{keys}/ec521.pub",
    "jwe-jwk": "jwe:{keys}/jwk.pub",
    "pkcs7": "pkcs7:{keys}/rsa.crt",
    "pgp-rsa": "pgp:pgp-rsa@cloister.test",
    "pgp-other": "pgp:Other Person",
}
KEYS = {
    "jwe-rsa": ["{keys}/rsa.key"],
    "jwe-p256": ["{keys}/ec.key:pass=secret"],
    "jwe-p521": ["{keys}/ec521.key"],
    "jwe-jwk": ["{keys}/jwk.key"],
    "pkcs7": ["{keys}/rsa.key", "{keys}/rsa.crt"],
    "pgp-rsa": ["{keys}/pgp-rsa.sec"],
    "pgp-other": ["{keys}/pgp-other.sec"],
}


class Lab:
    """Keys of all kinds, a plain image of two layers, and a skopeo that knows them."""

    def __init__(self, program: str, folder: Path, gnupg: Path) -> None:
        self._program = program
        self.folder = folder
        self.keys = folder / "keys"
        self.keys.mkdir()
        self.gnupg = gnupg
        self.plain = build_layout(folder / "plain", b"first layer" * 999, b"second layer" * 99)
        (folder / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}')
        self.environment = {**os.environ, "HOME": str(folder), "GNUPGHOME": str(gnupg), "OCICRYPT_CONFIG": "internal"}

    def recipients(self, *names: str) -> list[str]:
        return [RECIPIENTS[name].format(keys=self.keys) for name in names]

    def key(self, name: str) -> list[str]:
        return [text.format(keys=self.keys) for text in KEYS[name]]

    def wrappers(self, *names: str) -> list[KeyWrapper]:
        return open_recipients(self.recipients(*names), keyring=lambda: read_key_file(str(self.keys / "ring")))

    def skopeo(self, source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [self._program, "--policy", str(self.folder / "policy.json"), "copy", "--quiet", *options]
        return subprocess.run(
            [*command, f"oci:{source}:v1", f"oci:{target}:v1"],
            env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def skopeo_encrypts(self, target: Path, *recipients: str) -> OCILayout:
        options = [f"--encryption-key={recipient}" for recipient in recipients]
        done = self.skopeo(self.plain.path, target, *options)
        assert done.returncode == 0, done.stderr
        return OCILayout(target)

    def skopeo_decrypts(self, source: Path, *keys: str) -> None:
        target = Path(tempfile.mkdtemp(dir=self.folder))
        done = self.skopeo(source, target, *(f"--decryption-key={key}" for key in keys))
        assert done.returncode == 0, done.stderr
        self.require_plain(OCILayout(target))

    def we_encrypt(self, target: Path, *names: str) -> Path:
        recipients = self.wrappers(*names)
        encrypt_image(self.plain.layout, "v1", OCILayout(target, create=True), tag="v1", recipients=recipients)
        return target

    def we_decrypt(self, source: OCILayout, *keys: str) -> None:
        target = OCILayout(Path(tempfile.mkdtemp(dir=self.folder)) / "out", create=True)
        decrypt_image(source, "v1", target, tag="v1", keys=open_keys(list(keys)))
        self.require_plain(target)

    def require_plain(self, layout: OCILayout) -> None:
        found, plain = manifest_of(layout), manifest_of(self.plain.layout)
        assert [layer.digest for layer in found.layers] == [layer.digest for layer in plain.layers]
        assert found.config.digest == plain.config.digest


def manifest_of(layout: OCILayout) -> ImageManifest:
    stored = read_manifest(layout, "v1")
    return parse_manifest(stored.raw, media_type=stored.media_type)


class GnuPG:
    """A directory of GnuPG's; its path is short, because sockets are made in it."""

    def __init__(self) -> None:
        require_tool("gpg")
        self.home = Path(tempfile.mkdtemp(prefix="cgpg"))
        (self.home / "gpg-agent.conf").write_text("s2k-count 65536\n")  # else it measures how long a password takes
        self.environment = {**os.environ, "GNUPGHOME": str(self.home)}

    def run(self, *arguments: str, typed: str = "") -> str:
        command = ["gpg", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", "word"]
        command += ["--command-fd", "0"] if typed else ["--batch"]
        done = subprocess.run(
            [*command, *arguments], input=typed,
            env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def listed(self, name: str) -> list[list[str]]:
        return [line.split(":") for line in self.run("--list-keys", "--with-colons", name).splitlines()]

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, timeout=30)
        shutil.rmtree(self.home)


@pytest.fixture(scope="module")
def skopeos_gnupg() -> Iterator[GnuPG]:
    """What skopeo finds recipients in: with a key of an elliptic curve it reads none of the keys behind that."""
    gnupg = GnuPG()
    yield gnupg
    gnupg.close()


@pytest.fixture
def gnupg() -> Iterator[GnuPG]:
    gnupg = GnuPG()
    yield gnupg
    gnupg.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, skopeos_gnupg: GnuPG) -> Lab:
    lab = Lab(require_tool("skopeo", minimum=(1, 14)), tmp_path_factory.mktemp("schemes"), skopeos_gnupg.home)
    files = {
        "rsa.pub": public_pem(rsa_key()),
        "rsa.key": private_bytes(rsa_key()),
        "rsa.crt": certificate().public_bytes(Encoding.PEM),
        "ec.pub": public_pem(ec_key()),
        "ec.key": private_bytes(ec_key()),
        "ec521.pub": public_pem(ec_key("P-521")),
        "ec521.key": private_bytes(ec_key("P-521")),
        "jwk.pub": jwk(rsa_key("jwk"), alg="RSA-OAEP-256", kid="team"),
        "jwk.key": jwk(rsa_key("jwk"), private=True),
        "stranger.key": private_bytes(rsa_key("stranger")),
    }
    for name, person in zip(PEOPLE, ("Vector", "Other Person"), strict=True):
        secret = pysequoia.Tsk.generate(
            f"{person} <{name}@cloister.test>",
            profile=pysequoia.Profile.RFC4880,
            cipher_suite=pysequoia.CipherSuite.RSA2k,
        )
        files |= {f"{name}.sec": bytes(secret), f"{name}.pub": bytes(secret.extract_certificate())}
    for name, data in files.items():
        (lab.keys / name).write_bytes(data)
    skopeos_gnupg.run("--import", *(str(lab.keys / f"{name}.pub") for name in PEOPLE))
    skopeos_gnupg.run("--output", str(lab.keys / "ring"), "--export")
    return lab


def skopeo_key(text: str) -> str:
    """Return a key as skopeo reads it: PKCS #8 with a password is not among its forms."""
    return text.replace("/ec.key:pass=secret", "/ec.key")


# -- one recipient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RECIPIENTS))
def test_we_write_and_skopeo_reads(lab: Lab, tmp_path: Path, name: str) -> None:
    sealed = lab.we_encrypt(tmp_path / "sealed", name)
    lab.skopeo_decrypts(sealed, *map(skopeo_key, lab.key(name)))
    assert lab.skopeo(sealed, tmp_path / "out", f"--decryption-key={lab.keys}/stranger.key").returncode != 0


@pytest.mark.parametrize("name", sorted(RECIPIENTS))
def test_skopeo_writes_and_we_read(lab: Lab, tmp_path: Path, name: str) -> None:
    sealed = lab.skopeo_encrypts(tmp_path / "sealed", *lab.recipients(name))
    lab.we_decrypt(sealed, *lab.key(name))
    with pytest.raises(CloisterError) as caught:
        lab.we_decrypt(sealed, str(lab.keys / "stranger.key"))
    assert caught.value.code == "oci.encryption.no_key"


# -- several ------------------------------------------------------------------------------------------------------

ALL = ("jwe-rsa", "jwe-p256", "pkcs7", "pgp-rsa", "pgp-other")


def test_skopeo_writes_for_all_and_each_of_our_keys_reads(lab: Lab, tmp_path: Path) -> None:
    sealed = lab.skopeo_encrypts(tmp_path / "sealed", *lab.recipients(*ALL))
    wrapped = parse_layer_encryption(manifest_of(sealed).layers[0]).wrapped
    assert {scheme: len(elements) for scheme, elements in wrapped.items()} == {"jwe": 1, "pkcs7": 1, "pgp": 1}
    for name in ALL:
        lab.we_decrypt(sealed, *lab.key(name))


def test_we_write_for_all_and_each_of_skopeos_keys_reads(lab: Lab, tmp_path: Path) -> None:
    sealed = lab.we_encrypt(tmp_path / "sealed", *ALL)
    wrapped = parse_layer_encryption(manifest_of(OCILayout(sealed)).layers[0]).wrapped
    assert {scheme: len(elements) for scheme, elements in wrapped.items()} == {"jwe": 1, "pkcs7": 1, "pgp": 1}
    for name in ALL:
        lab.skopeo_decrypts(sealed, *map(skopeo_key, lab.key(name)))


def test_a_recipient_added_to_skopeos_image(lab: Lab, tmp_path: Path) -> None:
    """A second element of a scheme that is there, and one of a scheme that is not; the first recipient stays."""
    sealed = lab.skopeo_encrypts(tmp_path / "sealed", *lab.recipients("jwe-rsa"))
    before = [layer.digest for layer in manifest_of(sealed).layers]
    change = NewRecipients(add=lab.wrappers("jwe-p256", "pgp-other"))
    rewrap_image(sealed, "v1", sealed, tag="v1", change=change, keys=open_keys(lab.key("jwe-rsa")))
    assert [layer.digest for layer in manifest_of(sealed).layers] == before
    wrapped = parse_layer_encryption(manifest_of(sealed).layers[1]).wrapped
    assert {scheme: len(elements) for scheme, elements in wrapped.items()} == {"jwe": 2, "pgp": 1}
    for name in ("jwe-rsa", "jwe-p256", "pgp-other"):
        lab.skopeo_decrypts(tmp_path / "sealed", *map(skopeo_key, lab.key(name)))
        lab.we_decrypt(sealed, *lab.key(name))


# -- gpg ----------------------------------------------------------------------------------------------------------


def test_between_gpg_and_us(gnupg: GnuPG, tmp_path: Path) -> None:
    """gpg's own keys, protected by a password. Subkeys that were revoked or have expired are not encrypted to."""
    gnupg.run("--quick-gen-key", "many <many@cloister.test>", "ed25519", "sign", "never")
    fingerprint = next(fields[9] for fields in gnupg.listed("many") if fields[0] == "fpr")
    for until in ("never", "never", "seconds=1"):
        gnupg.run("--quick-add-key", fingerprint, "cv25519", "encrypt", until)
    gnupg.run("--edit-key", fingerprint, typed="key 2\nrevkey\ny\n0\n\ny\nsave\n")
    ring, secrets, text, message = (str(tmp_path / name) for name in ("ring", "secrets", "text", "message"))
    gnupg.run("--output", ring, "--export")
    gnupg.run("--output", secrets, "--export-secret-keys")
    validity, last = ["u", "r", "u"], time.monotonic() + 10
    while validity == ["u", "r", "u"] and time.monotonic() < last:  # until the third has expired
        subkeys = [fields for fields in gnupg.listed("many") if fields[0] == "sub"]
        validity = [fields[1] for fields in subkeys]
    assert validity == ["u", "r", "e"]
    found = find_recipients(read_key_file(ring), ["many@cloister.test"])
    assert [key.named.key_id.hex().upper() for key in found] == [subkeys[0][4]]
    Path(message).write_bytes(encrypt_message(b"from us", found))
    assert gnupg.run("--decrypt", message) == "from us"
    Path(text).write_bytes(b"from gpg")
    options = ("--yes", "--trust-model", "always", "--compress-algo", "none", "--output", message)
    gnupg.run(*options, "--recipient", "many@cloister.test", "--encrypt", text)
    keys = open_secret_keyring(read_key_file(secrets), "word")
    assert decrypt_message(Path(message).read_bytes(), keys) == b"from gpg"
    with pytest.raises(CloisterError) as caught:
        open_secret_keyring(read_key_file(secrets), "other")
    assert caught.value.code == "crypto.openpgp.password"


# -- tokens -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token(lab: Lab) -> Path:
    """The YAML of a key in a SoftHSM token."""
    module = next((path for path in MODULES if Path(path).exists()), None)
    tool = shutil.which("softhsm2-util")
    if module is None or tool is None:
        skip_or_fail("SoftHSM2 is not installed: run `tools/setup test-packages`")
    (lab.folder / "tokens").mkdir()
    config = lab.folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {lab.folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    (lab.keys / "token.key").write_bytes(private_bytes(rsa_key("token")))
    new = ["--init-token", "--free", "--label", "image keys", "--so-pin", "13579"]
    imported = ["--import", str(lab.keys / "token.key"), "--token", "image keys", "--label", "team", "--id", "0102"]
    for arguments in (new, imported):
        environment = {**lab.environment, "SOFTHSM2_CONF": str(config)}
        command = [tool, *arguments, "--pin", PIN]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=30)
    (lab.keys / "pin").write_text(PIN + "\n")
    text = "pkcs11:\n  uri: pkcs11:token=image%20keys;object=team;id=%01%02?module-path={module}&{pin}\n"
    text += "module:\n  env:\n    SOFTHSM2_CONF: {config}\n"
    (lab.keys / "token.yaml").write_text(text.format(module=module, config=config, pin=f"pin-value={PIN}"))
    pin_source = f"pin-source=file:{lab.keys}/pin"
    (lab.keys / "pinfile.yaml").write_text(text.format(module=module, config=config, pin=pin_source))
    return lab.keys / "token.yaml"


def cloister(lab: Lab, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloister", *arguments],
        env={**lab.environment, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_token_between_both(lab: Lab, token: Path, tmp_path: Path) -> None:
    """SoftHSM knows RSA-OAEP with SHA-1 only."""
    lab.environment["OCICRYPT_OAEP_HASHALG"] = "sha1"
    try:
        lab.skopeo_encrypts(tmp_path / "theirs", f"pkcs11:{token}")
        places = (f"oci:{lab.plain.path}:v1", f"oci:{tmp_path}/ours:v1")
        done = cloister(lab, "image", "encrypt", *places, "--recipient", f"pkcs11:{token}")
        assert done.returncode == 0, done.stderr
    finally:
        del lab.environment["OCICRYPT_OAEP_HASHALG"]
    lab.skopeo_decrypts(tmp_path / "ours", str(token))
    for name, key in (("theirs", token), ("ours", lab.keys / "pinfile.yaml")):
        target = f"oci:{tmp_path}/plain-{name}:v1"
        done = cloister(lab, "image", "decrypt", f"oci:{tmp_path}/{name}:v1", target, "--key", str(key))
        assert done.returncode == 0, done.stderr
        lab.require_plain(OCILayout(tmp_path / f"plain-{name}"))


def test_a_public_key_file_for_a_token(lab: Lab, token: Path, tmp_path: Path) -> None:
    public = lab.keys / "token.pub"
    public.write_bytes(public_pem(rsa_key("token")))
    sealed = f"oci:{tmp_path}/sealed:v1"
    encrypt = ("image", "encrypt", f"oci:{lab.plain.path}:v1", sealed, "--recipient", f"pkcs11:{public}")
    refused = cloister(lab, *encrypt)
    assert (refused.returncode, "key_too_short" in refused.stderr) == (1, True)
    assert cloister(lab, *encrypt, OCICRYPT_OAEP_HASHALG="sha1").returncode == 0
    lab.skopeo_decrypts(tmp_path / "sealed", str(token))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("pin-value=24680", "pin-value=11111"), "oci.encryption.pkcs11.pin"),
        (("object=team", "object=other"), "oci.encryption.pkcs11.key"),
    ],
)
def test_what_a_token_refuses(lab: Lab, token: Path, tmp_path: Path, change: tuple[str, str], code: str) -> None:
    lab.environment["OCICRYPT_OAEP_HASHALG"] = "sha1"
    try:
        lab.skopeo_encrypts(tmp_path / "theirs", f"pkcs11:{token}")
    finally:
        del lab.environment["OCICRYPT_OAEP_HASHALG"]
    text = token.read_text()
    assert change[0] in text
    (tmp_path / "changed.yaml").write_text(text.replace(*change))
    target = f"oci:{tmp_path}/plain:v1"
    key = str(tmp_path / "changed.yaml")
    done = cloister(lab, "image", "decrypt", f"oci:{tmp_path}/theirs:v1", target, "--key", key)
    assert (done.returncode != 0, code in done.stderr) == (True, True), done.stderr
