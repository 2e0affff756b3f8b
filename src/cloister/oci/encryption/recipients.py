"""For whom a layer is encrypted, as far as its annotations say, in words: nothing is opened, nothing is proved.

What an element says of its recipient differs by scheme: a packet names the key in the broker, PKCS #7 the serial number
of a certificate, OpenPGP the id of a key, a JWE at most a key id of its writer's choice, PKCS #11 and providers
nothing. All of it comes from an untrusted registry, and an element that cannot be read is said to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cloister.errors import CloisterError
from cloister.oci.document import Members, parse_document
from cloister.oci.encryption.annotations import PACKET_SCHEME, LayerEncryption
from cloister.oci.encryption.packet import parse_packet
from cloister.wire.base64 import decode_b64url
from cloister.wire.limits import WRAPPED_KEY_BYTES

_CODE: Final = "oci.encryption.recipients"
_SHOWN: Final = 64  # recipients of one element; more say nothing more


def describe_recipients(encryption: LayerEncryption) -> dict[str, list[str]]:
    """Return a line for each recipient, by scheme."""
    return {
        scheme: [line for element in elements for line in _describe(scheme, element)]
        for scheme, elements in sorted(encryption.wrapped.items())
    }


def _describe(scheme: str, element: bytes) -> list[str]:
    describe = _DESCRIBERS.get(scheme)
    if describe is None:
        return [f"known to its provider only ({len(element)} bytes)"]
    try:
        return describe(element)[:_SHOWN] or ["names nobody"]
    except CloisterError as err:
        return [f"cannot be read ({err.code})"]


def _packet(element: bytes) -> list[str]:
    return [parse_packet(element).kek_id]


def _jwe(element: bytes) -> list[str]:
    document = Members(parse_document(element, ceiling=WRAPPED_KEY_BYTES, code=_CODE), path="jwe", code=_CODE)
    protected = decode_b64url(document.text("protected", ""), path="jwe.protected", ceiling=WRAPPED_KEY_BYTES)
    shared = parse_document(protected, ceiling=WRAPPED_KEY_BYTES, code=_CODE) if protected else {}
    entries = document.array("recipients", ceiling=_SHOWN) or [{"header": document.raw_members("header")}]
    lines = []
    for entry in entries:
        own: dict[str, Any] = Members(entry, path="jwe.recipients", code=_CODE).raw_members("header")  # Any: JSON
        header = Members({**shared, **own}, path="jwe.header", code=_CODE)
        named = header.text("kid", "")
        lines.append(f"{header.text('alg', 'unknown')[:40]} key {named[:80]}" if named else _unnamed(header))
    return lines


def _unnamed(header: Members) -> str:
    return f"{header.text('alg', 'unknown')[:40]} key that is not named"


def _pkcs7(element: bytes) -> list[str]:
    from cloister.oci.encryption.pkcs7 import certificate_serials

    return [f"certificate with serial number {serial:x}" for serial in certificate_serials(element)]


def _pgp(element: bytes) -> list[str]:
    from cloister.crypto.openpgp import message_key_ids

    return [f"key {key_id.upper()}" for key_id in message_key_ids(element)]


def _pkcs11(element: bytes) -> list[str]:
    from cloister.oci.encryption.pkcs11 import parse_blobs

    return [f"key in a token that is not named ({hash_name})" for _, hash_name in parse_blobs(element)]


_DESCRIBERS: Final[Mapping[str, Callable[[bytes], list[str]]]] = {
    PACKET_SCHEME: _packet,
    "jwe": _jwe,
    "pkcs7": _pkcs7,
    "pgp": _pgp,
    "pkcs11": _pkcs11,
}
