"""Images that skopeo 1.18 encrypted by each scheme of ocicrypt, and ocicrypt's own key files.

`rsa.pem` opens what is for RSA and not what is for the elliptic curve, and so on: the verdicts of the index. From the
private options on, opening is that of the packets (`test_guest_images.py`); here every scheme's layer is decrypted to
the plain one, and its negative cases are derived.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.annotations import KEYS_PREFIX, PUBLIC_OPTIONS, LayerEncryption, parse_layer_encryption
from cloister.oci.encryption.authenticate import AuthenticatedLayer, authenticate_layer
from cloister.oci.encryption.keyfiles import (
    KeyFile,
    OpeningKey,
    parse_certificate,
    parse_key_file,
    parse_recipient_key,
    read_key_file,
)
from cloister.oci.encryption.options import PrivateOptions
from cloister.oci.encryption.wrapping import KeyUnwrapper, open_keys, unwrap_layer_key
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_MANIFEST, parse_manifest
from cloister.oci.store import read_manifest
from unit.oci.builders import REFERENCE, spool, verify
from vectors.test_guest_images import DIFF_ID, PLAIN_LAYER, writable_copy

OPENS = {
    "jwe-rsa": [["rsa.pem"]],
    "jwe-ec": [["ec.pem"]],
    "pkcs7": [["rsa.pem"], ["rsa.pem", "rsa.crt"]],
    "pgp": [["pgp.sec.bin"]],
    "multi": [["rsa.pem"], ["ec.pem"], ["ec.pem", "rsa.pem"]],
}
DOES_NOT_OPEN = {
    "jwe-rsa": ["ec.pem", "pgp.sec.bin"],
    "jwe-ec": ["rsa.pem", "pgp.sec.bin"],
    "pkcs7": ["ec.pem", "pgp.sec.bin"],
    "pgp": ["rsa.pem", "ec.pem"],
    "multi": ["pgp.sec.bin"],
    "prov": ["rsa.pem", "ec.pem", "pgp.sec.bin"],
}


@pytest.fixture(scope="session")
def files(guest_vectors: Path) -> Path:
    return guest_vectors / "ocicrypt" / "skopeo-1.18"


class Encrypted:
    """A writable copy of a vector, whose manifest the tests change and sign."""

    def __init__(self, files: Path, name: str, folder: Path) -> None:
        self.name = name
        self.path = writable_copy(files / name, folder / name)
        self.layout = OCILayout(self.path)
        self.document: dict[str, Any] = parse_document(
            read_manifest(self.layout, "v1").raw, ceiling=1 << 20, code="test"
        )

    @property
    def annotations(self) -> dict[str, str]:
        return self.document["layers"][0]["annotations"]

    @property
    def scheme(self) -> str:
        return next(name for name in self.annotations if name.startswith(KEYS_PREFIX))

    def change(self, name: str, old: bytes, new: bytes) -> None:
        content = base64.b64decode(self.annotations[name])
        assert old in content
        self.annotations[name] = base64.b64encode(content.replace(old, new, 1)).decode()

    def private(self, keys: Sequence[KeyUnwrapper]) -> PrivateOptions:
        return unwrap_layer_key(self._parsed(), keys)

    def open(self, keys: Sequence[KeyUnwrapper], **changes: Any) -> AuthenticatedLayer:
        signer = ECDSAP256Signer.generate()
        digest = self.layout.write_manifest(encode_document(self.document), OCI_MANIFEST, "v1")
        sign_image(self.layout, digest, signer, repository=REFERENCE.name)
        image = verify(self.layout, digest, signer)
        private = self.private(keys)
        if changes:
            kept = {"key": private.key, "digest": private.digest, "nonce": private.nonce}
            private = PrivateOptions(**{**kept, **changes})
        return authenticate_layer(image, 0, spool(self.layout, image.manifest.layers[0]), private)

    def _parsed(self) -> LayerEncryption:
        return parse_layer_encryption(parse_manifest(encode_document(self.document)).layers[0], path="layers[0]")


@pytest.fixture(params=sorted(OPENS))
def encrypted(request: pytest.FixtureRequest, files: Path, tmp_path: Path) -> Encrypted:
    return Encrypted(files, request.param, tmp_path)


def keys_of(files: Path, names: Sequence[str]) -> list[KeyUnwrapper]:
    return open_keys([str(files / name) for name in names])


def first_keys(files: Path, encrypted: Encrypted) -> list[KeyUnwrapper]:
    return keys_of(files, OPENS[encrypted.name][0])


def refused(run: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


@pytest.mark.parametrize(("name", "names"), [(name, names) for name, sets in OPENS.items() for names in sets])
def test_the_keys_of_the_index_decrypt_to_the_plain_layer(
    files: Path, tmp_path: Path, name: str, names: list[str]
) -> None:
    layer = Encrypted(files, name, tmp_path)
    keys = keys_of(files, names)
    assert layer.private(keys).digest == PLAIN_LAYER
    assert Digest.of(b"".join(layer.open(keys).open())) == DIFF_ID


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in DOES_NOT_OPEN.items() for key in keys])
def test_other_keys_do_not(files: Path, tmp_path: Path, name: str, key: str) -> None:
    layer = Encrypted(files, name, tmp_path)
    assert refused(lambda: layer.private(keys_of(files, [key]))) == "oci.encryption.no_key"


def test_a_certificate_alone_opens_nothing(files: Path) -> None:
    assert refused(lambda: keys_of(files, ["rsa.crt"])) == "oci.encryption.key"
    assert refused(lambda: keys_of(files, ["ec.pem", "rsa.crt"])) == "oci.encryption.key"


def test_the_published_kek_is_refused_as_a_file_too(files: Path, tmp_path: Path) -> None:
    kek = tmp_path / "kek"
    kek.write_bytes(bytes.fromhex("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea"))
    assert refused(lambda: open_keys([str(kek)])) == "oci.encryption.sample_kek"
    kek.write_bytes(bytes(32))
    layer = Encrypted(files, "prov", tmp_path)
    assert refused(lambda: layer.private(open_keys([str(kek)]))) == "oci.encryption.no_key"


# -- the negative cases that the index asks to derive -----------------------------------------------------------


@pytest.mark.parametrize("position", [0, 77, 154])
def test_a_flipped_ciphertext_byte(files: Path, encrypted: Encrypted, position: int) -> None:
    (entry,) = encrypted.document["layers"]
    digest = parse_digest(entry["digest"])
    blob = encrypted.path / "blobs" / "sha256" / str(digest).removeprefix("sha256:")
    content = bytearray(blob.read_bytes())
    content[position] ^= 1
    entry["digest"] = str(encrypted.layout.write_blob([bytes(content)])[0])
    assert refused(lambda: encrypted.open(first_keys(files, encrypted))) == "oci.encryption.mac_mismatch"


def test_a_flipped_mac(files: Path, encrypted: Encrypted) -> None:
    document = parse_document(base64.b64decode(encrypted.annotations[PUBLIC_OPTIONS]), ceiling=4096, code="test")
    mac = bytearray(base64.b64decode(document["hmac"]))
    mac[31] ^= 0x80
    encrypted.change(PUBLIC_OPTIONS, document["hmac"].encode(), base64.b64encode(mac))
    assert refused(lambda: encrypted.open(first_keys(files, encrypted))) == "oci.encryption.mac_mismatch"


def test_a_changed_digest_in_the_private_options(files: Path, encrypted: Encrypted) -> None:
    layer = encrypted.open(first_keys(files, encrypted), digest=Digest.of(b"other"))
    assert refused(lambda: list(layer.open())) == "oci.encryption.plain_digest_mismatch"


def test_dropped_public_options(files: Path, encrypted: Encrypted) -> None:
    del encrypted.annotations[PUBLIC_OPTIONS]
    assert refused(lambda: encrypted.private(first_keys(files, encrypted))) == "oci.encryption.missing_pubopts"


def test_an_unknown_cipher(files: Path, encrypted: Encrypted) -> None:
    encrypted.change(PUBLIC_OPTIONS, b"AES_256_CTR_HMAC_SHA256", b"AES_256_CTR_HMAC_SHA512")
    assert refused(lambda: encrypted.private(first_keys(files, encrypted))) == "oci.encryption.unknown_cipher"


def test_an_empty_mac(files: Path, encrypted: Encrypted) -> None:
    document = parse_document(base64.b64decode(encrypted.annotations[PUBLIC_OPTIONS]), ceiling=4096, code="test")
    encrypted.change(PUBLIC_OPTIONS, document["hmac"].encode(), b"")
    assert refused(lambda: encrypted.private(first_keys(files, encrypted))) == "oci.encryption.empty_hmac"


def test_the_element_of_another_layer(files: Path, encrypted: Encrypted, tmp_path: Path) -> None:
    """The format does not bind an element to its layer; the MAC over the layer does."""
    other = Encrypted(files, "jwe-ec" if encrypted.name != "jwe-ec" else "jwe-rsa", tmp_path / "other")
    for name in [name for name in encrypted.annotations if name.startswith(KEYS_PREFIX)]:
        del encrypted.annotations[name]
    encrypted.annotations[other.scheme] = other.annotations[other.scheme]
    keys = keys_of(files, ["ec.pem", "rsa.pem"])
    assert refused(lambda: encrypted.open(keys)) == "oci.encryption.mac_mismatch"


@pytest.mark.parametrize("name", ["jwe-rsa", "jwe-ec", "pkcs7", "pgp"])
def test_each_flipped_bit_of_an_element_is_refused(files: Path, tmp_path: Path, name: str) -> None:
    """Most are another key's; where the frame breaks, that is said. Every third byte, one bit each."""
    layer = Encrypted(files, name, tmp_path)
    keys = keys_of(files, OPENS[name][0])
    element = base64.b64decode(layer.annotations[layer.scheme])
    good = layer.private(keys)
    for position in range(0, len(element), 3):
        changed = bytearray(element)
        changed[position] ^= 1 << position % 8
        layer.annotations[layer.scheme] = base64.b64encode(changed).decode()
        try:
            private = layer.private(keys)
        except CloisterError:
            continue
        # What is not authenticated by the format itself, and means nothing: a name of the recipient, say.
        assert (private.key, private.digest, private.nonce) == (good.key, good.digest, good.nonce), position
        assert is_free(name, position), (position, element[position : position + 8])


def is_free(name: str, position: int) -> bool:
    """Whether a byte is one that no reader looks at: the recipient's name, and a tag that has two forms."""
    return name == "pkcs7" and (39 <= position <= 88 or position == 394)


# -- ocicrypt's key files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["private_key.der", "private_key.pem", "private_key8.der", "private_key8.pem", "private_key_ec.der",
             "RSA_private.jwk", "certificate_key.pem"],
)  # fmt: skip
def test_private_keys(guest_vectors: Path, name: str) -> None:
    assert isinstance(parsed(guest_vectors, name), OpeningKey)


@pytest.mark.parametrize("name", ["public_key.pem", "public_key_ec.der", "RSA_public.jwk"])
def test_public_keys(guest_vectors: Path, name: str) -> None:
    parse_recipient_key(read_key_file(str(guest_vectors / "ocicrypt" / "keys" / name)))
    assert refused(lambda: parsed(guest_vectors, name)) == "oci.encryption.key_file.unfit"


@pytest.mark.parametrize("name", ["certificate.pem", "public_certificate.pem"])
def test_certificates(guest_vectors: Path, name: str) -> None:
    data = read_key_file(str(guest_vectors / "ocicrypt" / "keys" / name))
    assert parse_certificate(data) == parsed(guest_vectors, name)
    assert isinstance(parsed(guest_vectors, name), x509.Certificate)


def test_halves_fit_each_other(guest_vectors: Path) -> None:
    private = parsed(guest_vectors, "private_key.pem")
    public = parse_recipient_key(read_key_file(str(guest_vectors / "ocicrypt" / "keys" / "public_key.pem")))
    assert isinstance(private, OpeningKey)
    assert private.key.public_key() == public.key
    certificate, key = parsed(guest_vectors, "certificate.pem"), parsed(guest_vectors, "certificate_key.pem")
    assert isinstance(certificate, x509.Certificate)
    assert isinstance(key, OpeningKey)
    assert certificate.public_key() == key.key.public_key()


@pytest.mark.parametrize("name", ["passwordfile", "ocicrypt_config.json"])
def test_files_that_are_no_keys(guest_vectors: Path, name: str) -> None:
    assert refused(lambda: parsed(guest_vectors, name)).startswith("oci.encryption.key_file.")


def parsed(guest_vectors: Path, name: str) -> KeyFile:
    return parse_key_file(read_key_file(str(guest_vectors / "ocicrypt" / "keys" / name)))
