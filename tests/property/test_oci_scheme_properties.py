"""Wrapped layer keys and key files: any bytes end in a value or a refusal; a changed element never opens to others."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pysequoia
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.openpgp import find_recipients, split_user_id
from cloister.crypto.openpgpkeys import open_secret_keyring
from cloister.crypto.openpgppackets import dearmor, read_packets, write_packet
from cloister.errors import CloisterError
from cloister.oci.digest import Digest
from cloister.oci.encryption.annotations import LayerEncryption, encryption_annotations, parse_layer_encryption
from cloister.oci.encryption.jwe import JWEUnwrapper, JWEWrapper
from cloister.oci.encryption.keyfiles import (
    OpeningKey,
    RecipientKey,
    SecretKeyring,
    parse_certificate,
    parse_key_file,
    parse_recipient_key,
)
from cloister.oci.encryption.options import PublicOptions
from cloister.oci.encryption.pgp import PGPUnwrapper, PGPWrapper
from cloister.oci.encryption.pkcs7 import PKCS7Unwrapper, PKCS7Wrapper
from cloister.oci.encryption.pkcs11 import ModulePolicy, PKCS11Wrapper, parse_blobs, parse_token_key
from cloister.oci.encryption.wrapping import KeyUnwrapper, PacketUnwrapper, PacketWrapper, open_recipients
from cloister.oci.manifest import Descriptor
from unit.oci.builders import KEK, KEK_ID
from unit.oci.recipients import OPTIONS, certificate, ec_key, jwk, private_bytes, public_pem, rsa_key


class Blobs:
    """Reads PKCS #11 documents without a token; a `KeyUnwrapper`."""

    scheme = "pkcs11"

    def unwrap(self, element: bytes) -> bytes:
        return b"".join(blob for blob, _ in parse_blobs(element))


class Sample(NamedTuple):
    """An element, who opens it, and which of its bytes nobody authenticates."""

    element: bytes
    opener: KeyUnwrapper
    bound: bool


@cache
def secret() -> Any:
    suite = pysequoia.CipherSuite.Cv25519
    return pysequoia.Tsk.generate("A <a@b.test>", profile=pysequoia.Profile.RFC4880, cipher_suite=suite)


@cache
def samples() -> dict[str, Sample]:
    recipients = [RecipientKey(key=ec_key().public_key()), RecipientKey(key=rsa_key().public_key())]
    ring = bytes(secret().extract_certificate())
    opening = OpeningKey(key=ec_key())
    return {
        "jwe": Sample(JWEWrapper(recipients[:1]).wrap(OPTIONS), JWEUnwrapper(opening), bound=True),
        "jwe-general": Sample(JWEWrapper(recipients).wrap(OPTIONS), JWEUnwrapper(opening), bound=True),
        "pkcs7": Sample(PKCS7Wrapper([certificate()]).wrap(OPTIONS), PKCS7Unwrapper(rsa_key()), bound=True),
        "pgp": Sample(
            PGPWrapper(["a@b.test"], ring).wrap(OPTIONS), PGPUnwrapper(SecretKeyring(data=bytes(secret()))), bound=True
        ),
        "pkcs11": Sample(PKCS11Wrapper([rsa_key().public_key()], hash_name="sha1").wrap(OPTIONS), Blobs(), bound=False),
        "packet": Sample(PacketWrapper(KEK_ID, KEK).wrap(OPTIONS), PacketUnwrapper(lambda _: KEK), bound=True),
    }


SCHEMES = ("jwe", "jwe-general", "pkcs7", "pgp", "pkcs11", "packet")


def allowed(run: Callable[[], object]) -> None:
    """Run, and let refusals pass: any other error is a bug."""
    try:
        run()
    except CloisterError:
        return


@given(name=st.sampled_from(SCHEMES), data=st.binary(max_size=400))
def test_any_bytes_are_refused_by_type(name: str, data: bytes) -> None:
    with pytest.raises(CloisterError):
        samples()[name].opener.unwrap(data)


@st.composite
def edits(draw: st.DrawFn, name: str) -> bytes:
    """Return an element with a few bytes replaced, inserted and removed."""
    data = bytearray(samples()[name].element)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(("replace", "insert", "remove", "cut")))
        if kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=6))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 6))]
        elif data:
            data[at] = draw(st.integers(0, 255))
    return bytes(data)


@given(data=st.data(), name=st.sampled_from(SCHEMES))
def test_a_changed_element_opens_to_the_same_or_not_at_all(data: st.DataObject, name: str) -> None:
    changed = data.draw(edits(name))
    try:
        opened = samples()[name].opener.unwrap(changed)
    except CloisterError:
        return
    assert opened == OPTIONS or not samples()[name].bound


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=6),
    max_leaves=12,
)


@given(name=st.sampled_from(("jwe", "jwe-general", "pkcs11")), data=st.data())
def test_json_with_members_of_other_types(name: str, data: st.DataObject) -> None:
    document = json.loads(samples()[name].element)
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    allowed(lambda: samples()[name].opener.unwrap(json.dumps(document).encode()))


DER = st.recursive(
    st.tuples(st.sampled_from((2, 4, 6, 0x10, 0x80, 0x84)), st.binary(max_size=16)),
    lambda children: st.tuples(st.sampled_from((0x30, 0x31, 0xA0, 0x10)), st.lists(children, max_size=4)),
    max_leaves=12,
)


def encode_der(value: Any) -> bytes:
    tag, content = value
    body = content if isinstance(content, bytes) else b"".join(map(encode_der, content))
    length = bytes((len(body),)) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
    return bytes((tag,)) + length + body


@given(value=DER)
def test_any_der_is_refused_by_type(value: Any) -> None:
    with pytest.raises(CloisterError):
        samples()["pkcs7"].opener.unwrap(encode_der(value))


@given(packets=st.lists(st.tuples(st.integers(0, 63), st.binary(max_size=80)), max_size=5), text=st.binary(max_size=60))
def test_packets_of_openpgp(packets: list[tuple[int, bytes]], text: bytes) -> None:
    data = b"".join(write_packet(tag, body) for tag, body in packets)
    assert [tuple(packet) for packet in read_packets(data, ceiling=4096)] == packets
    for ring in (data, text, bytes(secret())[:40] + text, write_packet(5, b"\x04" + text)):
        allowed(lambda ring=ring: open_secret_keyring(ring, "password"))
        allowed(lambda ring=ring: find_recipients(ring, ["a@b.test"]))
        allowed(lambda ring=ring: samples()["pgp"].opener.unwrap(ring))
    allowed(lambda: list(read_packets(text, ceiling=4096)))
    allowed(lambda: dearmor(b"-----BEGIN PGP " + text))


@given(text=st.text(max_size=60))
def test_names_in_user_ids(text: str) -> None:
    assert 1 <= len(split_user_id(text)) <= 3


@cache
def files() -> tuple[bytes, ...]:
    return (
        private_bytes(rsa_key()),
        private_bytes(ec_key(), password=b"password"),
        public_pem(ec_key()),
        jwk(ec_key(), private=True),
        jwk(rsa_key()),
        bytes(secret()),
        b"pkcs11:\n  uri: pkcs11:token=a;object=b?module-path=/m/x.so\n",
    )


@given(number=st.integers(0, 6), at=st.integers(0, 4096), new=st.binary(max_size=5), cut=st.integers(0, 5))
def test_key_files_with_changed_bytes(number: int, at: int, new: bytes, cut: int) -> None:
    data = files()[number]
    at %= len(data)
    changed = data[:at] + new + data[at + cut :]
    for parse in (parse_recipient_key, parse_certificate, lambda data: parse_key_file(data, b"password")):
        allowed(lambda parse=parse: parse(changed))
    allowed(lambda: parse_token_key(changed, ModulePolicy(allowed_module_paths=("/m/",))))


@given(data=st.binary(max_size=300))
def test_any_key_file(data: bytes) -> None:
    for parse in (parse_recipient_key, parse_certificate, parse_key_file):
        allowed(lambda parse=parse: parse(data))
    allowed(lambda: parse_token_key(data, ModulePolicy()))


@given(texts=st.lists(st.text(max_size=20), max_size=3))
def test_any_recipient(texts: list[str]) -> None:
    allowed(lambda: open_recipients(texts, kek_for=lambda _: KEK, keyring=lambda: b""))


@given(
    wrapped=st.dictionaries(
        st.text("abcdefgh.-0123", min_size=1, max_size=12),
        st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4).map(tuple),
        min_size=1,
        max_size=5,
    ),
    nonce=st.none() | st.binary(min_size=16, max_size=16),
)
def test_annotations_round_trip(wrapped: dict[str, tuple[bytes, ...]], nonce: bytes | None) -> None:
    public = PublicOptions(b"m" * 32, nonce)
    annotations = encryption_annotations(public, wrapped)
    layer = Descriptor(media_type="x", digest=Digest.of(b""), size=0, annotations=annotations)
    assert parse_layer_encryption(layer, path="here") == LayerEncryption(public=public, wrapped=wrapped, path="here")
