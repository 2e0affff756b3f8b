"""The seam between images and keys: which element is tried with which key, and what is told when none opens."""

from __future__ import annotations

import pytest

from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.oci.digest import Digest
from cloister.oci.encryption.annotations import PACKET_SCHEME, LayerEncryption
from cloister.oci.encryption.options import PrivateOptions, PublicOptions, encode_private_options
from cloister.oci.encryption.wrapping import (
    KeyUnwrapper,
    PacketUnwrapper,
    PacketWrapper,
    open_keys,
    open_recipients,
    unwrap_layer_key,
    wrap_layer_key,
)
from cloister.protocol.resourceuri import ResourcePath
from unit.oci.builders import KEK, KEK_ID

OTHER_ID = "kbs:///default/image-kek/2"
OPTIONS = encode_private_options(PrivateOptions(key=b"k" * 32, digest=Digest.of(b"plain"), nonce=b"n" * 16))


class Key:
    """Opens the elements given and knows no other."""

    def __init__(self, scheme: str, *opens: bytes) -> None:
        self.scheme = scheme
        self.opens = opens
        self.tried: list[bytes] = []

    def unwrap(self, element: bytes) -> bytes:
        self.tried.append(element)
        if element not in self.opens:
            raise ImageRefused("oci.encryption.unwrap_failed", "another key")
        return OPTIONS


def keks(path: ResourcePath) -> bytes:
    """A broker that holds one KEK."""
    if path.uri != KEK_ID:
        raise Unavailable("client.keybroker.unreachable", "no such broker")
    return KEK


def encryption(**wrapped: tuple[bytes, ...]) -> LayerEncryption:
    named = {name.replace("_attestation", ".attestation-agent"): elements for name, elements in wrapped.items()}
    return LayerEncryption(public=PublicOptions(b"m" * 32), wrapped=named)


def refused(layer: LayerEncryption, *keys: KeyUnwrapper) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        unwrap_layer_key(layer, keys)
    return caught.value


def test_every_element_is_tried_left_to_right_until_one_opens() -> None:
    first, second = Key("jwe", b"none"), Key("pgp", b"3")
    options = unwrap_layer_key(encryption(jwe=(b"1", b"2"), pgp=(b"x", b"3", b"4"), pkcs7=(b"?",)), [first, second])
    assert bytes(options.key) == b"k" * 32
    assert first.tried == [b"1", b"2"]
    assert second.tried == [b"x", b"3"]


def test_no_key_that_fits_names_the_schemes_on_both_sides() -> None:
    error = refused(encryption(jwe=(b"1",), pkcs7=(b"?",)), Key("jwe"), Key("pgp"))
    assert (error.code, error.expected, error.actual) == ("oci.encryption.no_key", "a key for jwe, pkcs7", "jwe, pgp")
    assert refused(encryption(jwe=(b"1",))).actual == "no key"


def test_a_packet_is_written_and_opened() -> None:
    wrapped = wrap_layer_key(OPTIONS, [PacketWrapper(KEK_ID, KEK), PacketWrapper(KEK_ID, KEK)])
    assert [len(elements) for elements in wrapped.values()] == [2]
    layer = encryption(provider_attestation=wrapped[PACKET_SCHEME])
    assert encode_private_options(unwrap_layer_key(layer, [PacketUnwrapper(keks)])) == OPTIONS


def test_what_says_more_than_another_key_is_told() -> None:
    """A broker that does not answer first, then an element that is malformed, then `no_key`."""
    good = PacketWrapper(KEK_ID, KEK).wrap(OPTIONS)
    away = PacketWrapper(OTHER_ID, KEK).wrap(OPTIONS)
    unwrapper = PacketUnwrapper(keks)
    assert refused(encryption(provider_attestation=(b"{", away)), unwrapper).code == "client.keybroker.unreachable"
    assert refused(encryption(provider_attestation=(b"{",)), unwrapper).code == "oci.encryption.packet.not_json"
    other = PacketUnwrapper(lambda path: bytes(32))
    assert refused(encryption(provider_attestation=(good,)), other).code == "oci.encryption.no_key"
    assert unwrap_layer_key(encryption(provider_attestation=(b"{", away, good)), [unwrapper])


def test_the_sample_kek_is_refused_on_both_sides() -> None:
    sample = bytes.fromhex("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea")
    with pytest.raises(ImageRefused) as caught:
        PacketWrapper(KEK_ID, sample)
    assert caught.value.code == "oci.encryption.sample_kek"
    layer = encryption(provider_attestation=(PacketWrapper(KEK_ID, KEK).wrap(OPTIONS),))
    assert refused(layer, PacketUnwrapper(lambda path: sample)).code == "oci.encryption.sample_kek"


def test_wrappers_show_no_key() -> None:
    assert repr(PacketWrapper(KEK_ID, KEK)) == f"PacketWrapper({KEK_ID})"


def test_recipients_and_keys_by_name() -> None:
    (wrapper,) = open_recipients([KEK_ID], kek_for=keks)
    (unwrapper,) = open_keys(["kbs"], kek_at=keks)
    assert unwrapper.unwrap(wrapper.wrap(OPTIONS)) == OPTIONS


@pytest.mark.parametrize("text", ["", "kbs", "file", ":x", "unknown:x"])
def test_recipients_that_are_none(text: str) -> None:
    with pytest.raises(CloisterError) as caught:
        open_recipients([text], kek_for=keks)
    assert caught.value.code == "oci.encryption.recipient"


def test_the_broker_is_refused_where_there_is_none() -> None:
    with pytest.raises(CloisterError) as caught:
        open_recipients([KEK_ID])
    assert caught.value.code == "oci.encryption.recipient"
    with pytest.raises(CloisterError) as caught:
        open_keys(["kbs"])
    assert caught.value.code == "oci.encryption.key"
