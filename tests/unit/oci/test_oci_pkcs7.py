"""Layer keys in PKCS #7: what skopeo 1.18 writes and the well-formed one; everything else is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import CloisterError
from cloister.oci.encryption.pkcs7 import PKCS7Unwrapper, PKCS7Wrapper
from unit.oci.recipients import OPTIONS, certificate, rsa_key

NONCE = b"n" * 12
ENVELOPED = bytes.fromhex("06092a864886f70d010703")
DATA = bytes.fromhex("06092a864886f70d010701")
RSA = bytes.fromhex("06092a864886f70d010101")
GCM = {16: "06", 24: "1a", 32: "2e"}


def tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    length = bytes((size,)) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    if 0x80 <= size < 0x100:
        length = bytes((0x81, size))
    return bytes((tag,)) + length + content


def element(
    *,
    key_bytes: int = 16,
    odd: bool = False,
    nonce_tag: int = 0x04,
    version: bytes = b"\0",
    kind: bytes = ENVELOPED,
    inner: bytes = DATA,
    cipher: bytes = b"",
    nonce: bytes = NONCE,
    icv: bytes = b"\x10",
    content_tag: int = 0x80,
    infos: list[bytes] | None = None,
) -> bytes:
    """Return an EnvelopedData of `rsa_key()`; without arguments it is well-formed."""
    key = b"k" * key_bytes
    if infos is None:
        infos = [recipient(rsa_key().public_key().encrypt(key, padding.PKCS1v15()))]
    parameters = tlv(0x30, tlv(nonce_tag, nonce), tlv(0x02, icv))
    algorithm = tlv(0x30, cipher or tlv(0x06, bytes.fromhex(f"6086480165030401{GCM[key_bytes]}")),
                    tlv(0x10, parameters) if odd else parameters)  # fmt: skip
    sealed = AESGCM(key).encrypt(NONCE, OPTIONS, None)
    content = tlv(0xA0, tlv(0x04, sealed)) if odd else tlv(content_tag, sealed)
    enveloped = tlv(0x30, tlv(0x02, version), tlv(0x31, *infos), tlv(0x30, inner, algorithm, content))
    return tlv(0x30, kind, tlv(0xA0, enveloped))


def recipient(encrypted: bytes, *, version: bytes = b"\0", algorithm: bytes = RSA + b"\x05\0") -> bytes:
    name = tlv(0x30, tlv(0x30), tlv(0x02, b"\x01"))
    return tlv(0x30, tlv(0x02, version), name, tlv(0x30, algorithm), tlv(0x04, encrypted))


def refused(data: bytes) -> str:
    with pytest.raises(CloisterError) as caught:
        PKCS7Unwrapper(rsa_key()).unwrap(data)
    return caught.value.code


@pytest.mark.parametrize("names", [("",), ("", "other"), ("other", "", "third")])
def test_round_trip_for_each_recipient(names: tuple[str, ...]) -> None:
    written = PKCS7Wrapper([certificate(name) for name in names]).wrap(OPTIONS)
    for name in names:
        assert PKCS7Unwrapper(rsa_key(name)).unwrap(written) == OPTIONS
    with pytest.raises(CloisterError) as caught:
        PKCS7Unwrapper(rsa_key("stranger")).unwrap(written)
    assert caught.value.code == "oci.encryption.unwrap_failed"


def test_what_is_written_is_what_skopeo_reads() -> None:
    written = PKCS7Wrapper([certificate()]).wrap(OPTIONS)
    assert bytes.fromhex("06096086480165030401061013301184 0c".replace(" ", "")) in written
    assert certificate().issuer.public_bytes() in written
    assert certificate().serial_number.to_bytes(20, "big").lstrip(b"\0") in written
    wrapper = PKCS7Wrapper([certificate()])
    assert len({wrapper.wrap(OPTIONS)[-300:] for _ in range(4)}) == 4


@pytest.mark.parametrize("key_bytes", [16, 24, 32])
@pytest.mark.parametrize(("odd", "nonce_tag", "content_tag"), [(False, 4, 0x80), (True, 4, 0), (True, 0x84, 0)])
def test_the_forms_that_are_read(key_bytes: int, odd: bool, nonce_tag: int, content_tag: int) -> None:
    data = element(key_bytes=key_bytes, odd=odd, nonce_tag=nonce_tag, content_tag=content_tag)
    assert PKCS7Unwrapper(rsa_key()).unwrap(data) == OPTIONS


def test_recipients_of_other_kinds_are_skipped() -> None:
    good = recipient(rsa_key().public_key().encrypt(b"k" * 16, padding.PKCS1v15()))
    others = [tlv(0xA1, b"agreement"), recipient(b"x", version=b"\x02"), recipient(b"x", algorithm=DATA), tlv(0x30)]
    assert PKCS7Unwrapper(rsa_key()).unwrap(element(infos=[*others, good])) == OPTIONS
    assert refused(element(infos=others)) == "oci.encryption.unwrap_failed"


MALFORMED: list[Callable[[], bytes]] = [
    lambda: b"",
    lambda: b"\x30",
    lambda: b"\x30\x80\x00\x00",
    lambda: element() + b"\0",
    lambda: element(version=b"\x02"),
    lambda: element(kind=DATA),
    lambda: element(inner=ENVELOPED),
    lambda: element(nonce=b"n" * 16),
    lambda: element(icv=b"\x0c"),
    lambda: element(nonce_tag=0x05),
    lambda: element(content_tag=0x81),
    lambda: b"\x30\x81\x05\x02\x03\x01\x00\x01",
    lambda: tlv(0x30, ENVELOPED),
    lambda: bytes(40_000),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed(data: Callable[[], bytes]) -> None:
    assert refused(data()) == "oci.encryption.pkcs7.malformed"


def test_every_truncation_is_malformed() -> None:
    good = element()
    for size in range(len(good)):
        assert refused(good[:size]) == "oci.encryption.pkcs7.malformed"


def test_content_that_nothing_authenticates_is_refused() -> None:
    cbc = bytes.fromhex("0609608648016503040102")
    assert refused(element(cipher=cbc)) == "oci.encryption.pkcs7.unknown_cipher"


def test_too_many_recipients() -> None:
    assert refused(element(infos=[recipient(b"x")] * 33)) == "oci.encryption.pkcs7.too_many"
    with pytest.raises(CloisterError) as caught:
        PKCS7Wrapper([certificate()] * 33)
    assert caught.value.code == "oci.encryption.pkcs7.too_many"


def test_certificates_of_other_keys() -> None:
    with pytest.raises(CloisterError) as caught:
        PKCS7Wrapper([certificate(of_ec=True)])
    assert caught.value.code == "oci.encryption.pkcs7.unfit_certificate"
