"""Option objects, packets and annotations of encrypted layers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.crypto.aead import ctr_stream
from cloister.errors import CloisterError, FormatRefused, ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.encryption.annotations import (
    PACKET_SCHEME,
    PROVIDER_KEYS,
    PUBLIC_OPTIONS,
    encryption_annotations,
    parse_layer_encryption,
    without_encryption,
)
from cloister.oci.encryption.options import (
    CIPHER,
    PrivateOptions,
    PublicOptions,
    encode_private_options,
    encode_public_options,
    parse_private_options,
    parse_public_options,
)
from cloister.oci.encryption.packet import (
    AnnotationPacket,
    encode_packet,
    open_packet,
    parse_packet,
    unwrap_private_options,
    wrap_private_options,
)
from cloister.oci.manifest import Descriptor
from cloister.wire.base64 import encode_b64

KEK = bytes(range(32))
KEK_ID = "kbs:///default/key/1"
SAMPLE_KEK = bytes.fromhex("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea")
DIGEST = Digest.of(b"plain")
HMAC = b"m" * 32
NONCE = b"n" * 16


def private() -> PrivateOptions:
    return PrivateOptions(key=b"k" * 32, digest=DIGEST, nonce=NONCE)


def public_json(**more: Any) -> bytes:
    base = {"cipher": CIPHER, "hmac": encode_b64(HMAC), "cipheroptions": {}}
    return json.dumps({key: value for key, value in {**base, **more}.items() if value is not ...}).encode()


def private_json(**more: Any) -> bytes:
    base = {"symkey": encode_b64(b"k" * 32), "digest": str(DIGEST), "cipheroptions": {"nonce": encode_b64(NONCE)}}
    return json.dumps({key: value for key, value in {**base, **more}.items() if value is not ...}).encode()


def packet_json(**more: Any) -> bytes:
    base = {"kid": KEK_ID, "wrapped_data": encode_b64(b"w" * 200), "iv": encode_b64(b"i" * 12), "wrap_type": "A256GCM"}
    return json.dumps({key: value for key, value in {**base, **more}.items() if value is not ...}).encode()


def test_options_are_written_as_ocicrypt_writes_them() -> None:
    assert encode_public_options(PublicOptions(HMAC)) == (
        b'{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"' + encode_b64(HMAC).encode() + b'","cipheroptions":{}}'
    )
    assert encode_private_options(private()) == private_json().replace(b": ", b":").replace(b", ", b",")
    assert len(encode_private_options(private())) == 193  # the length every ocicrypt writer has


def test_options_round_trip() -> None:
    assert parse_public_options(encode_public_options(PublicOptions(HMAC))) == PublicOptions(HMAC)
    parsed = parse_private_options(encode_private_options(private()))
    assert (bytes(parsed.key), parsed.digest, parsed.nonce) == (b"k" * 32, DIGEST, NONCE)


def test_a_public_nonce_is_read() -> None:
    raw = public_json(cipheroptions={"nonce": encode_b64(NONCE)})
    assert parse_public_options(raw).nonce == NONCE


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (public_json(cipher="AES_128_CTR"), "oci.encryption.unknown_cipher"),
        (public_json(cipher=...), "oci.encryption.unknown_cipher"),
        (b"{}", "oci.encryption.unknown_cipher"),
        (public_json(hmac=""), "oci.encryption.empty_hmac"),
        (public_json(hmac=...), "oci.encryption.empty_hmac"),
        (public_json(hmac=None), "oci.encryption.empty_hmac"),
        (public_json(hmac=encode_b64(b"m" * 31)), "oci.encryption.field_length"),
        (public_json(hmac=encode_b64(b"m" * 64)), "wire.base64.too_long"),
        (public_json(hmac="not base64"), "wire.base64.malformed"),
        (public_json(hmac=[1, 2]), "oci.encryption.wrong_type"),
        (public_json(surprise=1), "oci.encryption.unknown_member"),
        (public_json(cipheroptions={"nonce": encode_b64(b"n" * 12)}), "oci.encryption.field_length"),
        (public_json(cipheroptions={"salt": "AA=="}), "oci.encryption.unknown_member"),
        (b"[]", "oci.encryption.not_json"),
        (b" " * 5000, "oci.encryption.too_long"),
    ],
)
def test_other_public_options_are_refused(raw: bytes, code: str) -> None:
    with pytest.raises(CloisterError) as caught:
        parse_public_options(raw)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (private_json(symkey=encode_b64(b"k" * 16)), "oci.encryption.field_length"),
        (private_json(symkey=...), "oci.encryption.missing_member"),
        (private_json(digest="sha256:x"), "oci.digest.malformed"),
        (private_json(digest=...), "oci.encryption.missing_member"),
        (private_json(cipheroptions={"nonce": encode_b64(b"n" * 15)}), "oci.encryption.field_length"),
        (private_json(more=1), "oci.encryption.unknown_member"),
    ],
)
def test_other_private_options_are_refused(raw: bytes, code: str) -> None:
    with pytest.raises(CloisterError) as caught:
        parse_private_options(raw)
    assert caught.value.code == code


def test_the_layer_key_is_neither_shown_nor_kept() -> None:
    options = PrivateOptions(key=b"\x41" * 32, digest=DIGEST, nonce=NONCE)
    assert "AAAA" not in repr(options)
    assert "A" * 8 not in repr(options)
    options.wipe()
    assert options.key == bytearray(32)


# -- packets ----------------------------------------------------------------------------------------------------


def test_a_packet_opens_with_its_kek_only() -> None:
    packet = parse_packet(encode_packet(wrap_private_options(private(), kek_id=KEK_ID, kek=KEK)))
    assert packet.kek_id == KEK_ID
    assert str(packet.kek_path) == "default/key/1"
    assert unwrap_private_options(packet, KEK).digest == DIGEST
    with pytest.raises(ImageRefused) as caught:
        unwrap_private_options(packet, bytes(32))
    assert caught.value.code == "oci.encryption.unwrap_failed"


def test_packets_are_written_as_version_1() -> None:
    packet = AnnotationPacket(kek_id=KEK_ID, wrapped=b"w" * 200, nonce=b"i" * 12)
    assert encode_packet(packet) == packet_json().replace(b": ", b":").replace(b", ", b",")


def test_wrapping_twice_gives_other_nonces() -> None:
    packets = {wrap_private_options(private(), kek_id=KEK_ID, kek=KEK).nonce for _ in range(8)}
    assert len(packets) == 8


def test_version_2_packets_are_read() -> None:
    raw = packet_json(version="0.1.0", provider="kbs", provider_settings={}, annotations={})
    assert parse_packet(raw) == parse_packet(packet_json())
    raw = packet_json(version="0.1.0", provider="kbs", provider_settings={"region": "x"}, annotations={"a": "b"})
    assert parse_packet(raw) == parse_packet(packet_json())


def test_another_provider_is_refused_in_plain_words() -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_packet(packet_json(version="0.1.0", provider="aliyun", iv=..., wrap_type=...))
    assert caught.value.code == "oci.encryption.packet.provider" and "key management" in caught.value.message


def ctr_packet(kek: bytes = KEK) -> AnnotationPacket:
    wrapped = b"".join(ctr_stream(kek, NONCE, [private_json()]))
    raw = packet_json(wrap_type="A256CTR", iv=encode_b64(NONCE), wrapped_data=encode_b64(wrapped))
    assert json.loads(encode_packet(parse_packet(raw))) == json.loads(raw)
    return parse_packet(raw)


def test_a_packet_that_nobody_authenticated_is_opened_for_an_owner_and_not_in_a_guest() -> None:
    packet = ctr_packet()
    assert open_packet(packet, KEK) == private_json()
    for work, code in (
        (lambda: unwrap_private_options(packet, KEK), "oci.encryption.packet.wrap_type"),
        (lambda: open_packet(packet, bytes(32)), "oci.encryption.unwrap_failed"),
    ):
        with pytest.raises(ImageRefused) as caught:
            work()
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (packet_json(wrap_type="A128GCM"), "oci.encryption.packet.wrap_type"),
        (packet_json(wrap_type="A256CTR"), "oci.encryption.packet.field_length"),
        (packet_json(wrap_type=...), "oci.encryption.packet.wrap_type"),
        (packet_json(version="0.2.0"), "oci.encryption.packet.version"),
        (packet_json(provider="aliyun"), "oci.encryption.packet.provider"),
        (packet_json(provider=""), "oci.encryption.packet.provider"),
        (packet_json(provider_settings=[]), "oci.encryption.packet.wrong_type"),
        (packet_json(annotations="a"), "oci.encryption.packet.wrong_type"),
        (packet_json(more=1), "oci.encryption.packet.unknown_member"),
        (packet_json(iv=encode_b64(b"i" * 16)), "oci.encryption.packet.field_length"),
        (packet_json(iv=...), "oci.encryption.packet.missing_member"),
        (packet_json(wrapped_data=encode_b64(b"w" * 16)), "oci.encryption.packet.field_length"),
        (packet_json(wrapped_data=encode_b64(b"w" * 5000)), "wire.base64.too_long"),
        (packet_json(kid=""), "oci.encryption.packet.field_length"),
        (packet_json(kid="k" * 600), "oci.encryption.packet.field_length"),
        (packet_json(kid=3), "oci.encryption.packet.wrong_type"),
        (b'{"kid":"a","kid":"b"}', "oci.encryption.packet.duplicate_key"),
        (b"", "oci.encryption.packet.not_json"),
    ],
)
def test_other_packets_are_refused(raw: bytes, code: str) -> None:
    with pytest.raises(CloisterError) as caught:
        parse_packet(raw)
    assert caught.value.code == code


def test_the_sample_kek_is_refused_in_both_directions() -> None:
    with pytest.raises(ImageRefused) as caught:
        wrap_private_options(private(), kek_id=KEK_ID, kek=SAMPLE_KEK)
    assert caught.value.code == "oci.encryption.sample_kek"
    with pytest.raises(ImageRefused) as caught:
        unwrap_private_options(parse_packet(packet_json()), SAMPLE_KEK)
    assert caught.value.code == "oci.encryption.sample_kek"


@pytest.mark.parametrize("kek", [b"", b"k" * 31, b"k" * 64])
def test_keks_of_other_length_are_refused(kek: bytes) -> None:
    with pytest.raises(ImageRefused) as caught:
        wrap_private_options(private(), kek_id=KEK_ID, kek=kek)
    assert caught.value.code == "oci.encryption.kek_length"


@pytest.mark.parametrize(
    "kek_id", ["", "default/key/1", "kbs://host/default/key/1", "kbs:///default/key", "kbs:///a/../c"]
)
def test_keks_without_a_place_in_the_broker_are_refused(kek_id: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        wrap_private_options(private(), kek_id=kek_id, kek=KEK)
    assert caught.value.code == "protocol.resource.malformed"


# -- annotations ------------------------------------------------------------------------------------------------


def layer(annotations: dict[str, str]) -> Descriptor:
    return Descriptor(media_type="x", digest=DIGEST, size=1, annotations=annotations)


def annotations() -> dict[str, str]:
    packet = encode_packet(wrap_private_options(private(), kek_id=KEK_ID, kek=KEK))
    return encryption_annotations(PublicOptions(HMAC), {PACKET_SCHEME: [packet]})


def test_annotations_round_trip_and_come_off() -> None:
    found = parse_layer_encryption(layer({"other": "x", **annotations()}))
    assert found.public == PublicOptions(HMAC)
    assert unwrap_private_options(found.packets()[0], KEK).nonce == NONCE
    assert without_encryption({"other": "x", **annotations()}) == {"other": "x"}


def test_several_recipients_are_alternatives() -> None:
    both = annotations()
    both[PROVIDER_KEYS] += "," + annotations()[PROVIDER_KEYS]
    both["org.opencontainers.image.enc.keys.jwe"] = "bm90IGxvb2tlZCBhdA=="
    found = parse_layer_encryption(layer(both))
    assert len(found.packets()) == len(found.wrapped[PACKET_SCHEME]) == 2
    assert found.wrapped["jwe"] == (b"not looked at",)
    assert encryption_annotations(found.public, found.wrapped) == both


def test_a_nonce_in_the_public_options_stays_there() -> None:
    public = PublicOptions(HMAC, NONCE)
    found = parse_layer_encryption(layer(encryption_annotations(public, {"jwe": [b"x"]})))
    assert found.public == public


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({PUBLIC_OPTIONS: ...}, "oci.encryption.missing_pubopts"),
        ({PUBLIC_OPTIONS: ""}, "oci.encryption.missing_pubopts"),
        ({PUBLIC_OPTIONS: "%%%"}, "wire.base64.malformed"),
        ({PROVIDER_KEYS: ...}, "oci.encryption.no_recipient"),
        ({PROVIDER_KEYS: ""}, "oci.encryption.no_recipient"),
        ({PROVIDER_KEYS: ..., "org.opencontainers.image.enc.keys.jwe": "eA=="}, "oci.encryption.no_recipient"),
        ({"org.opencontainers.image.enc.keys.jwe": "x"}, "wire.base64.malformed"),
        ({"org.opencontainers.image.enc.keys.jwe": "AAAA" * 11000}, "wire.base64.too_long"),
        ({f"org.opencontainers.image.enc.keys.{n}": "eA==" for n in range(16)}, "oci.encryption.too_many_recipients"),
        ({PROVIDER_KEYS: ",".join(["e30="] * 17)}, "oci.encryption.too_many_recipients"),
        ({PROVIDER_KEYS: "e30=,"}, "oci.encryption.packet.wrap_type"),
    ],
)
def test_other_annotations_are_refused(change: dict[str, Any], code: str) -> None:
    changed = {key: value for key, value in {**annotations(), **change}.items() if value is not ...}
    with pytest.raises(CloisterError) as caught:
        parse_layer_encryption(layer(changed), path="layers[0]").packets()
    assert caught.value.code == code


def test_the_refusal_names_the_schemes_that_were_there() -> None:
    pubopts = {PUBLIC_OPTIONS: annotations()[PUBLIC_OPTIONS]}
    with pytest.raises(ImageRefused) as caught:
        parse_layer_encryption(layer({**pubopts, "org.opencontainers.image.enc.keys.pkcs7": "eQ=="})).packets()
    assert caught.value.actual == "pkcs7"
