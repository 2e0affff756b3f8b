"""Layer keys in PKCS #7 EnvelopedData, as ocicrypt writes and reads it (keywrap/pkcs7).

RFC 5652 section 6 (EnvelopedData, key transport by issuer and serial number), RFC 8017 section 7.2 (RSAES-PKCS1-v1_5),
RFC 5084 section 3.2 (parameters of AES-GCM). Two departures come from the library ocicrypt took: the tag of AES-GCM
stands behind the ciphertext, and in what skopeo up to 1.18 writes and reads, the parameters are wrapped twice, in a
SEQUENCE that lacks its constructed bit, the nonce has the tag `[4]`, and the content is an OCTET STRING inside `[0]`.
That is written here, because it is what readers read; it and the well-formed one are read.

CBC content is refused: nothing would authenticate the layer key. A certificate is a name for a public key here, as in
ocicrypt: neither its dates nor its issuer are judged. The padding of RSA's version 1.5 tells an attacker who may ask
often what was encrypted; whoever opens images for others on demand should not offer this scheme.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import ImageRefused
from cloister.oci.encryption.options import unwrap_failed
from cloister.wire.limits import WRAPPED_KEY_BYTES

SCHEME: Final = "pkcs7"
_CODE: Final = "oci.encryption.pkcs7"
_RECIPIENTS: Final = 32
_MINIMUM_RSA_BITS: Final = 2048
_KEY_BYTES: Final = 16  # AES-128: what ocicrypt's readers are sure to take
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16

_INTEGER: Final = 0x02
_OCTETS: Final = 0x04
_CONTEXT_4: Final = 0x84  # the format's own tag of the nonce, which RFC 5084 has as an OCTET STRING
_OID: Final = 0x06
_SEQUENCE: Final = 0x30
_PRIMITIVE_SEQUENCE: Final = 0x10  # the format's own; no SEQUENCE is primitive in DER
_SET: Final = 0x31
_CONTEXT_0: Final = 0x80
_CONSTRUCTED_0: Final = 0xA0
_ENVELOPED_DATA: Final = bytes.fromhex("2a864886f70d010703")
_DATA: Final = bytes.fromhex("2a864886f70d010701")
_RSA_ENCRYPTION: Final = bytes.fromhex("2a864886f70d010101")
_AES_128_GCM: Final = bytes.fromhex("608648016503040106")
_VERSION_0: Final = b"\0"
_AES_GCM: Final = {  # 2.16.840.1.101.3.4.1.n (NIST CSOR): length of the key in bytes
    _AES_128_GCM: 16,
    bytes.fromhex("60864801650304011a"): 24,
    bytes.fromhex("60864801650304012e"): 32,
}


class _Element(NamedTuple):
    tag: int
    content: bytes
    raw: bytes


class PKCS7Wrapper:
    """Writes one EnvelopedData for all certificates; a `KeyWrapper`."""

    scheme: Final = SCHEME

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        """Take the recipients' certificates.

        Raises:
            ImageRefused: `oci.encryption.pkcs7.too_many`, `oci.encryption.pkcs7.unfit_certificate`.
        """
        if not 0 < len(certificates) <= _RECIPIENTS:
            raise ImageRefused(f"{_CODE}.too_many", "too many recipients", expected=f"1 to {_RECIPIENTS}")
        self._recipients = [(_issuer_and_serial(item), _public_key(item)) for item in certificates]

    def wrap(self, options: bytes) -> bytes:
        """Return the DER that skopeo 1.18 reads."""
        key, nonce = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
        infos = [_recipient_info(name, public.encrypt(key, padding.PKCS1v15())) for name, public in self._recipients]
        parameters = _encode(_SEQUENCE, _encode(_CONTEXT_4, nonce), _encode(_INTEGER, bytes((_TAG_BYTES,))))
        content = _encode(
            _SEQUENCE,
            _encode(_OID, _DATA),
            _encode(_SEQUENCE, _encode(_OID, _AES_128_GCM), _encode(_PRIMITIVE_SEQUENCE, parameters)),
            _encode(_CONSTRUCTED_0, _encode(_OCTETS, AESGCM(key).encrypt(nonce, options, None))),
        )
        version = _encode(_INTEGER, _VERSION_0)
        enveloped = _encode(_SEQUENCE, version, _encode(_SET, *sorted(infos)), content)
        return _encode(_SEQUENCE, _encode(_OID, _ENVELOPED_DATA), _encode(_CONSTRUCTED_0, enveloped))


class PKCS7Unwrapper:
    """Opens EnvelopedData with one RSA key; a `KeyUnwrapper`. The key says whose element it is, so none is named."""

    scheme: Final = SCHEME

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key

    def unwrap(self, element: bytes) -> bytes:
        """Try every recipient; see `KeyUnwrapper.unwrap`.

        Raises:
            ImageRefused: `oci.encryption.unwrap_failed`, `oci.encryption.pkcs7.malformed`,
                `oci.encryption.pkcs7.unknown_cipher`.
        """
        encrypted_keys, key_bytes, nonce, sealed = _parse(element)
        for encrypted in encrypted_keys:
            try:
                key = self._key.decrypt(encrypted, padding.PKCS1v15())
                if len(key) == key_bytes:
                    return AESGCM(key).decrypt(nonce, sealed, None)
            except (InvalidTag, ValueError):
                continue  # another recipient's, or altered
        raise unwrap_failed(SCHEME)


def certificate_serials(element: bytes) -> list[int]:
    """Return the serial numbers by which the element names its recipients' certificates.

    Raises:
        ImageRefused: `oci.encryption.pkcs7.malformed`.
    """
    _, wrapped = _tagged(_elements(_one(element, _SEQUENCE)), _OID, _CONSTRUCTED_0)
    _, recipients, _ = _tagged(_elements(_one(wrapped, _SEQUENCE)), _INTEGER, _SET, _SEQUENCE)
    found = []
    for info in _elements(recipients)[:_RECIPIENTS]:
        name = _elements(info.content)[1:2]
        parts = _elements(name[0].content) if name and name[0].tag == _SEQUENCE else []
        if len(parts) == 2 and parts[1].tag == _INTEGER:
            found.append(int.from_bytes(parts[1].content, "big"))
    return found


def _public_key(certificate: x509.Certificate) -> rsa.RSAPublicKey:
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _MINIMUM_RSA_BITS:
        raise ImageRefused(
            f"{_CODE}.unfit_certificate",
            "certificate's key cannot be wrapped to",
            expected=f"RSA of {_MINIMUM_RSA_BITS} bits or more",
            actual=f"{getattr(key, 'key_size', '')} {type(key).__name__.strip('_')}".strip(),
        )
    return key


def _issuer_and_serial(certificate: x509.Certificate) -> bytes:
    """Return the two as they stand in the certificate: readers compare bytes."""
    members = _elements(_one(certificate.tbs_certificate_bytes, _SEQUENCE))
    if members and members[0].tag == _CONSTRUCTED_0:  # the version, absent in version 1
        members = members[1:]
    if len(members) < 3 or (members[0].tag, members[2].tag) != (_INTEGER, _SEQUENCE):
        raise _malformed()
    return _encode(_SEQUENCE, members[2].raw, members[0].raw)


def _recipient_info(name: bytes, encrypted: bytes) -> bytes:
    algorithm = _encode(_SEQUENCE, _encode(_OID, _RSA_ENCRYPTION))
    return _encode(_SEQUENCE, _encode(_INTEGER, _VERSION_0), name, algorithm, _encode(_OCTETS, encrypted))


def _parse(element: bytes) -> tuple[list[bytes], int, bytes, bytes]:
    """Return the encrypted keys of RSA recipients, the length of the key in them, nonce, ciphertext with tag."""
    if len(element) > WRAPPED_KEY_BYTES:
        raise _malformed()
    kind, wrapped = _tagged(_elements(_one(element, _SEQUENCE)), _OID, _CONSTRUCTED_0)
    version, recipients, content = _tagged(_elements(_one(wrapped, _SEQUENCE)), _INTEGER, _SET, _SEQUENCE)
    if kind != _ENVELOPED_DATA or version != _VERSION_0:
        raise _malformed()
    infos = _elements(recipients)
    if len(infos) > _RECIPIENTS:
        raise ImageRefused(f"{_CODE}.too_many", "too many recipients", expected=f"at most {_RECIPIENTS}")
    keys = [_encrypted_key(_elements(info.content)) for info in infos if info.tag == _SEQUENCE]
    key_bytes, nonce, sealed = _parse_content(_elements(content))
    return [key for key in keys if key], key_bytes, nonce, sealed


def _encrypted_key(members: list[_Element]) -> bytes:
    """Return the key of a key transport recipient, nothing for other kinds of recipient."""
    if [member.tag for member in members] != [_INTEGER, _SEQUENCE, _SEQUENCE, _OCTETS]:
        return b""
    algorithm = _elements(members[2].content)
    fits = algorithm and (algorithm[0].tag, algorithm[0].content) == (_OID, _RSA_ENCRYPTION)
    return members[3].content if fits and members[0].content == _VERSION_0 else b""


def _parse_content(members: list[_Element]) -> tuple[int, bytes, bytes]:
    if len(members) != 3 or (members[0].tag, members[0].content, members[1].tag) != (_OID, _DATA, _SEQUENCE):
        raise _malformed()
    algorithm = _elements(members[1].content)
    if not algorithm or algorithm[0].tag != _OID or algorithm[0].content not in _AES_GCM:
        raise ImageRefused(
            f"{_CODE}.unknown_cipher",
            "cipher of the wrapped layer key is not supported",
            path=SCHEME,
            expected="AES-128-GCM, AES-192-GCM or AES-256-GCM",
            actual=algorithm[0].content.hex()[:40] if algorithm else "none",
        )
    if len(algorithm) != 2:
        raise _malformed()
    parameters = algorithm[1]
    if parameters.tag == _PRIMITIVE_SEQUENCE:
        parameters = _only(parameters.content)
    if parameters.tag != _SEQUENCE:
        raise _malformed()
    nonce_tag = _CONTEXT_4 if parameters.content[:1] == bytes((_CONTEXT_4,)) else _OCTETS
    nonce, tag_bytes = _tagged(_elements(parameters.content), nonce_tag, _INTEGER)
    sealed = members[2]
    if sealed.tag == _CONSTRUCTED_0:
        sealed = _only(sealed.content)
    if sealed.tag not in (_CONTEXT_0, _OCTETS) or len(nonce) != _NONCE_BYTES or tag_bytes != bytes((_TAG_BYTES,)):
        raise _malformed()
    return _AES_GCM[algorithm[0].content], nonce, sealed.content


# -- DER (ITU-T X.690): one definite length in its shortest form, tags of one octet --------------------------------


def _encode(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _elements(data: bytes) -> list[_Element]:
    """Return the elements that `data` consists of.

    Raises:
        ImageRefused: `oci.encryption.pkcs7.malformed`.
    """
    found, at = [], 0
    while at < len(data):
        start, size = at + 2, data[at + 1] if at + 1 < len(data) else len(data)
        if size >= 0x80:
            width = size & 0x7F
            start += width
            size = int.from_bytes(data[at + 2 : start], "big")
            if width not in (1, 2, 3) or size < (0x80, 0x100, 0x10000)[width - 1]:
                raise _malformed()
        if start + size > len(data):
            raise _malformed()
        found.append(_Element(data[at], data[start : start + size], data[at : start + size]))
        at = start + size
    return found


def _only(data: bytes) -> _Element:
    elements = _elements(data)
    if len(elements) != 1:
        raise _malformed()
    return elements[0]


def _one(data: bytes, tag: int) -> bytes:
    element = _only(data)
    if element.tag != tag:
        raise _malformed()
    return element.content


def _tagged(elements: list[_Element], *tags: int) -> list[bytes]:
    if [element.tag for element in elements] != list(tags):
        raise _malformed()
    return [element.content for element in elements]


def _malformed() -> ImageRefused:
    return ImageRefused(f"{_CODE}.malformed", "wrapped layer key is not the EnvelopedData of ocicrypt", path=SCHEME)
