"""Images encrypted by skopeo 1.18 and signed by cosign 2.5, with the verdicts their index gives.

The encrypted vector is wrapped with the published sample KEK, which `unwrap_private_options` refuses; the tests open
its packet one level below, where keys are not judged.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.signer import ECDSAP256PublicKey, ECDSAP256Signer
from cloister.errors import CloisterError, FormatRefused, ImageRefused
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.annotations import PROVIDER_KEYS, PUBLIC_OPTIONS, parse_layer_encryption
from cloister.oci.encryption.authenticate import AuthenticatedLayer, accept_unencrypted_layer, authenticate_layer
from cloister.oci.encryption.keyprovider import GRPCEndpoint, TTRPCEndpoint, parse_endpoint
from cloister.oci.encryption.options import CIPHER, PrivateOptions, parse_private_options, parse_public_options
from cloister.oci.encryption.packet import open_packet, parse_packet, unwrap_private_options
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_MANIFEST, parse_manifest
from cloister.oci.signing.simplesigning import (
    SIGNATURE_ANNOTATION,
    SignatureCandidate,
    parse_payload,
    read_candidates,
    signature_tag,
)
from cloister.oci.signing.verify import ExactRepository, UncheckedRepository, VerifiedManifest, verify_manifest
from cloister.oci.store import read_manifest
from cloister.oci.unpack import unpack_image
from unit.oci.builders import OPTIONS, REFERENCE, spool, verify

SAMPLE_KEK = bytes.fromhex("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea")
PLAIN_LAYER = parse_digest("sha256:e40cd31d1175e4ffa1fadf8462f4833d08d989a6fd0b5d38523055b41e554749")
DIFF_ID = parse_digest("sha256:5a3ce0eb0fcf87604ae42d9486eeba786924e82214f2ecc3967198d3bc0167aa")


@pytest.fixture(scope="session")
def ocicrypt(guest_vectors: Path) -> Path:
    return guest_vectors / "ocicrypt"


@pytest.fixture(scope="session")
def cosign(guest_vectors: Path) -> Path:
    return guest_vectors / "signature" / "cosign-2.5"


def writable_copy(source: Path, target: Path) -> Path:
    """Copy content without the vectors' read-only modes."""
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return target


class Sealed:
    """A writable copy of an encrypted vector, whose manifest the tests change and sign."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = OCILayout(path)
        self.signer = ECDSAP256Signer.generate()
        raw = read_manifest(self.layout, "v1").raw
        self.document: dict[str, Any] = parse_document(raw, ceiling=1 << 20, code="test")

    @property
    def annotations(self) -> dict[str, str]:
        return self.document["layers"][0]["annotations"]

    def change_json(self, key: str, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(base64.b64decode(self.annotations[key]))
        change(content)
        self.annotations[key] = base64.b64encode(json.dumps(content).encode()).decode()

    def open(self) -> AuthenticatedLayer:
        """Sign what the manifest now says, and do what the guest does, with the key the index names."""
        digest = self.layout.write_manifest(encode_document(self.document), OCI_MANIFEST, "v1")
        sign_image(self.layout, digest, self.signer, repository=REFERENCE.name)
        image = verify(self.layout, digest, self.signer)
        layer = image.manifest.layers[0]
        packet = parse_layer_encryption(layer).packets()[0]
        private = parse_private_options(open_packet(packet, SAMPLE_KEK))
        return authenticate_layer(image, 0, spool(self.layout, layer), private)


@pytest.fixture(params=["prov", "multi"])
def sealed(ocicrypt: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Sealed:
    return Sealed(writable_copy(ocicrypt / "skopeo-1.18" / request.param, tmp_path / "copy"))


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


# -- encrypted by skopeo ----------------------------------------------------------------------------------------


def test_skopeos_layer_decrypts_to_the_plain_one(sealed: Sealed, tmp_path: Path) -> None:
    layer = sealed.open()
    assert layer.image.config.diff_ids == (DIFF_ID,)
    assert Digest.of(b"".join(layer.open())) == DIFF_ID
    unpack_image(layer.image, [layer], tmp_path / "root", OPTIONS)
    assert (tmp_path / "root" / "hello.txt").is_file()


def test_the_private_options_name_the_plain_layer(sealed: Sealed) -> None:
    packet = parse_packet(base64.b64decode(sealed.annotations[PROVIDER_KEYS]))
    assert packet.kek_id == "kbs:///default/test-key/1"
    assert packet.nonce == bytes(range(12))
    assert parse_private_options(open_packet(packet, SAMPLE_KEK)).digest == PLAIN_LAYER


def test_the_plain_image_is_the_same(ocicrypt: Path, tmp_path: Path) -> None:
    layout = OCILayout(writable_copy(ocicrypt / "skopeo-1.18" / "plain", tmp_path / "plain"))
    signer = ECDSAP256Signer.generate()
    digest = sign_image(layout, "v1", signer, repository=REFERENCE.name)
    image = verify(layout, digest, signer)
    assert image.manifest.layers[0].digest == PLAIN_LAYER
    layer = accept_unencrypted_layer(image, 0, spool(layout, image.manifest.layers[0]))
    assert Digest.of(b"".join(layer.open())) == DIFF_ID


@pytest.mark.parametrize("position", [0, 77, 154])
def test_a_flipped_ciphertext_byte(sealed: Sealed, position: int) -> None:
    content = bytearray(b"".join(sealed.layout.stream_blob(parse_manifest(encode_document(sealed.document)).layers[0])))
    content[position] ^= 1
    assert refused(lambda: swap_blob(sealed, bytes(content)).open()) == "oci.encryption.mac_mismatch"


def swap_blob(sealed: Sealed, content: bytes) -> Sealed:
    digest, _ = sealed.layout.write_blob([content])
    sealed.document["layers"][0]["digest"] = str(digest)
    return sealed


def test_a_flipped_mac(sealed: Sealed) -> None:
    def flip(options: dict[str, Any]) -> None:
        mac = bytearray(base64.b64decode(options["hmac"]))
        mac[0] ^= 1
        options["hmac"] = base64.b64encode(mac).decode()

    sealed.change_json(PUBLIC_OPTIONS, flip)
    assert refused(sealed.open) == "oci.encryption.mac_mismatch"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"hmac": ""}, "oci.encryption.empty_hmac"),
        ({"cipher": "AES_128_CTR_HMAC_SHA1"}, "oci.encryption.unknown_cipher"),
        ({"cipher": ""}, "oci.encryption.unknown_cipher"),
    ],
)
def test_changed_public_options(sealed: Sealed, change: dict[str, str], code: str) -> None:
    sealed.change_json(PUBLIC_OPTIONS, lambda options: options.update(change))
    assert refused(sealed.open) == code


def test_dropped_public_options(sealed: Sealed) -> None:
    del sealed.annotations[PUBLIC_OPTIONS]
    assert refused(sealed.open) == "oci.encryption.missing_pubopts"


def test_a_changed_digest_in_the_private_options(sealed: Sealed) -> None:
    layer = sealed.open()
    packet = parse_layer_encryption(layer.image.manifest.layers[0]).packets()[0]
    private = parse_private_options(open_packet(packet, SAMPLE_KEK))
    other = PrivateOptions(key=private.key, digest=Digest.of(b"other"), nonce=private.nonce)
    blob = spool(sealed.layout, layer.image.manifest.layers[0])
    changed = authenticate_layer(layer.image, 0, blob, other)
    assert refused(lambda: list(changed.open())) == "oci.encryption.plain_digest_mismatch"


def test_counter_mode_wrapping_is_refused(sealed: Sealed) -> None:
    iv = base64.b64encode(bytes(16)).decode()
    sealed.change_json(PROVIDER_KEYS, lambda packet: packet.update(wrap_type="A256CTR", iv=iv))
    packet = parse_packet(base64.b64decode(sealed.annotations[PROVIDER_KEYS]))
    assert refused(lambda: unwrap_private_options(packet, bytes(32))) == "oci.encryption.packet.wrap_type"
    assert refused(sealed.open) == "oci.encryption.unwrap_failed"


def test_upstream_key_provider_configurations_are_read(ocicrypt: Path) -> None:
    name, upstream = "attestation-agent", ocicrypt / "upstream"
    grpc = parse_endpoint((upstream / "ocicrypt_keyprovider_grpc.conf").read_bytes(), name)
    assert grpc == GRPCEndpoint(address="127.0.0.1:50000")
    ttrpc = parse_endpoint((upstream / "ocicrypt_keyprovider_ttrpc.conf").read_bytes(), name)
    assert ttrpc == TTRPCEndpoint(socket="/run/confidential-containers/cdh.sock")


def test_the_sample_kek_is_refused_and_others_do_not_open(sealed: Sealed) -> None:
    packet = parse_packet(base64.b64decode(sealed.annotations[PROVIDER_KEYS]))
    assert refused(lambda: unwrap_private_options(packet, SAMPLE_KEK)) == "oci.encryption.sample_kek"
    assert refused(lambda: unwrap_private_options(packet, bytes(32))) == "oci.encryption.unwrap_failed"


@pytest.mark.parametrize("name", ["jwe-rsa", "jwe-ec", "pkcs7", "pgp"])
def test_other_schemes_are_named_in_the_refusal(ocicrypt: Path, name: str) -> None:
    layout = OCILayout(ocicrypt / "skopeo-1.18" / name)
    manifest = parse_manifest(read_manifest(layout, "v1").raw)
    with pytest.raises(ImageRefused) as caught:
        parse_layer_encryption(manifest.layers[0]).packets()
    assert caught.value.code == "oci.encryption.no_recipient"
    assert caught.value.actual == name.partition("-")[0]


# -- packets and annotations of others --------------------------------------------------------------------------


def test_the_published_sample_packet(ocicrypt: Path) -> None:
    packet = parse_packet((ocicrypt / "upstream" / "sample_kbc_annotation.json").read_bytes())
    private = parse_private_options(open_packet(packet, SAMPLE_KEK))
    assert base64.b64encode(private.key) == b"1jL2jJV0Oyz2nmPkLtqulW6cKcpIUN5FpILcVnP5Uqs="
    assert str(private.digest) == "sha256:18be1897f9402f27c8c0eba7c86e0c00f5656db62961b5949d55f9565c42c6e7"
    assert private.nonce == base64.b64decode("r10F9oaCu+nWFXfod3l83g==")


def test_a_packet_of_unknown_key_parses_but_names_no_place_in_a_broker(ocicrypt: Path) -> None:
    packet = parse_packet((ocicrypt / "upstream" / "cdh_annotation_v1.json").read_bytes())
    assert packet.kek_id == "kbs:///kbs:///default/key/1"
    with pytest.raises(FormatRefused) as caught:
        packet.kek_path  # noqa: B018  # reading it is the test
    assert caught.value.code == "protocol.resource.malformed"


def test_annotations_of_a_real_layer(ocicrypt: Path) -> None:
    lines = (ocicrypt / "upstream" / "readme_layer_annotations.txt").read_text().splitlines()
    found = {key.strip('" '): value.strip('", ') for key, _, value in (line.partition(":") for line in lines) if value}
    packet = parse_packet(base64.b64decode(found[PROVIDER_KEYS]))
    assert str(packet.kek_path) == "default/key/key_id1"
    assert len(parse_public_options(base64.b64decode(found[PUBLIC_OPTIONS])).hmac) == 32
    assert json.loads(base64.b64decode(found[PUBLIC_OPTIONS]))["cipher"] == CIPHER


# -- signed by cosign -------------------------------------------------------------------------------------------

REPOSITORY = "127.0.0.1:5577/vec/hello"
SUBJECT = parse_digest("sha256:1bd2ab1bbfb7822b5fcd4fad21866fc179fd3ef4a9756b869c86da0b507a3900")


class Signed:
    """The vector's files, in a layout as its registry would hold them."""

    def __init__(self, files: Path, layout: OCILayout) -> None:
        self.image = (files / "image-manifest.json").read_bytes()
        self.signature = (files / "sig-tag-manifest.json").read_bytes()
        self.payload = (files / "simplesigning-payload.json").read_bytes()
        self.key = ECDSAP256PublicKey.from_pem((files / "cosign.pub").read_bytes())
        layout.write_blob([self.payload])
        layout.write_manifest(self.signature, OCI_MANIFEST, signature_tag(SUBJECT))
        self.layout = layout

    def verify(self, **changes: Any) -> VerifiedManifest:
        options: dict[str, Any] = {
            "expected": SUBJECT,
            "candidates": read_candidates(self.layout, SUBJECT),
            "keys": [self.key],
            "repository": ExactRepository(REPOSITORY),
            **changes,
        }
        return verify_manifest(options.pop("raw", self.image), **options)


@pytest.fixture
def signed(cosign: Path, tmp_path: Path) -> Signed:
    return Signed(cosign, OCILayout(tmp_path / "signed", create=True))


def test_cosigns_signature_verifies(signed: Signed) -> None:
    assert Digest.of(signed.image) == SUBJECT
    (layer,) = parse_manifest(signed.signature).layers
    assert layer.digest == Digest.of(signed.payload)
    assert parse_payload(signed.payload).repository == REPOSITORY
    verified = signed.verify()
    assert verified.digest == SUBJECT
    assert verified.signer == signed.key.fingerprint == hashlib.sha256(signed.key.spki).hexdigest()


def test_any_repository_when_that_is_said(signed: Signed) -> None:
    signed.verify(repository=UncheckedRepository("vector"))


@pytest.mark.parametrize("name", ["cosign1.pub", "cosign2.pub", "cosign3.pub", "nv.pub"])
def test_wrong_keys_are_refused(signed: Signed, guest_vectors: Path, name: str) -> None:
    wrong = ECDSAP256PublicKey.from_pem((guest_vectors / "signature" / "cosign-upstream" / name).read_bytes())
    assert refused(lambda: signed.verify(keys=[wrong])) == "oci.signing.no_valid_signature"
    signed.verify(keys=[wrong, signed.key])


def test_other_repository_and_other_bytes_are_refused(signed: Signed) -> None:
    other = ExactRepository("127.0.0.1:5577/vec/other")
    assert refused(lambda: signed.verify(repository=other)) == "oci.signing.no_valid_signature"
    assert refused(lambda: signed.verify(raw=signed.image + b"\n")) == "oci.signing.manifest_mismatch"
    assert refused(lambda: signed.verify(candidates=())) == "oci.signing.unsigned"


def test_each_flipped_bit_of_the_payload_is_refused(signed: Signed) -> None:
    signature = parse_manifest(signed.signature).layers[0].annotations[SIGNATURE_ANNOTATION]
    good = base64.b64decode(signature)
    for position in range(0, len(signed.payload), 3):
        changed = bytearray(signed.payload)
        changed[position] ^= 1
        candidate = SignatureCandidate(bytes(changed), good)
        code = refused(lambda candidate=candidate: signed.verify(candidates=[candidate]))
        assert code == "oci.signing.no_valid_signature"


@pytest.mark.parametrize("name", ["cosign.key", "cosign2.key"])
def test_cosigns_encrypted_keys_are_refused_by_name(guest_vectors: Path, name: str) -> None:
    pem = (guest_vectors / "signature" / "cosign-upstream" / name).read_bytes()
    assert refused(lambda: ECDSAP256Signer.from_pem(pem, b"")) == "crypto.signer.unsupported_key"
