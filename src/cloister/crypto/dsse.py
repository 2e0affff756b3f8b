"""Signed documents: the Dead Simple Signing Envelope (DSSE 1.0), as in-toto and Sigstore use it.

What is signed is the pre-authentication encoding of payload type and payload, `DSSEv1 <length> <type> <length>
<payload>`, so that bytes signed as one kind of document are never read as another. Signatures are ECDSA P-256 with
SHA-256 in DER. The verifier chooses the keys: a `keyid` only says which of them to try, and no key comes from the
envelope. The payload is read after a signature held, never before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cloister.crypto.jwt import key_id
from cloister.crypto.pae import pre_authentication_encoding
from cloister.crypto.signer import ECDSA_P256_SIGNATURE_BYTES, ECDSAP256PublicKey, Signer
from cloister.errors import FormatRefused, Refused
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import ENVELOPE_SIGNATURES
from cloister.wire.strictjson import parse_json_object

_CODE: Final = "crypto.dsse"
_OVERHEAD_BYTES: Final = 16 * 1024  # names, signatures and white space around the payload


class _SignatureWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    sig: str
    keyid: str = ""


class _EnvelopeWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, rename="camel"):
    payload_type: str
    payload: str
    signatures: tuple[_SignatureWire, ...]


def sign_envelope(payload: bytes, signer: Signer, *, payload_type: str) -> bytes:
    """Return the envelope (JSON) of `payload` with one signature; the key is named by its RFC 7638 thumbprint."""
    signature = signer.sign(pre_authentication_encoding(payload, payload_type))
    envelope = _EnvelopeWire(
        payload_type=payload_type,
        payload=encode_b64(payload),
        signatures=(_SignatureWire(keyid=key_id(signer.public_key), sig=encode_b64(signature)),),
    )
    return msgspec.json.format(msgspec.json.encode(envelope), indent=2) + b"\n"


def verify_envelope(
    data: bytes, keys: Mapping[str, ECDSAP256PublicKey], *, payload_type: str, ceiling: int
) -> tuple[bytes, str]:
    """Return the payload and the id of the key whose signature holds.

    Steps: 1 the envelope's shape; 2 the payload's type is the expected one; 3 one of `keys` signed it.

    Args:
        data: the envelope.
        keys: pinned keys by `cloister.crypto.jwt.key_id`.
        payload_type: the only type accepted.
        ceiling: most bytes of payload accepted.

    Raises:
        FormatRefused: not an envelope (`crypto.dsse.*`).
        Refused: another payload type (`crypto.dsse.payload_type`), no pinned key among the signers
            (`crypto.dsse.unknown_key`), or a pinned key's signature does not hold (`crypto.dsse.bad_signature`).
    """
    # 1
    document = parse_json_object(data, ceiling=2 * ceiling + _OVERHEAD_BYTES, code=_CODE, family=FormatRefused)
    try:
        envelope = msgspec.convert(document, _EnvelopeWire)
        payload = decode_b64(envelope.payload, path="payload", ceiling=ceiling)
        signatures = [
            (item.keyid, decode_b64(item.sig, path="signatures", ceiling=ECDSA_P256_SIGNATURE_BYTES))
            for item in envelope.signatures[:ENVELOPE_SIGNATURES]
        ]
    except (msgspec.ValidationError, FormatRefused) as err:
        raise FormatRefused(f"{_CODE}.malformed", f"not a signed envelope: {err}") from err
    if not 0 < len(envelope.signatures) <= ENVELOPE_SIGNATURES:
        raise FormatRefused(
            f"{_CODE}.malformed", "impossible number of signatures", expected=f"1 to {ENVELOPE_SIGNATURES}"
        )
    # 2
    if envelope.payload_type != payload_type:
        raise Refused(
            f"{_CODE}.payload_type",
            "envelope holds another kind of document",
            path="payloadType",
            expected=payload_type,
            actual=envelope.payload_type[:80],
        )
    # 3
    signed = pre_authentication_encoding(payload, payload_type)
    for name, signature in signatures:
        key = keys.get(name)
        if key is None:
            continue
        try:
            key.verify(signed, signature)
        except Refused as err:
            raise Refused(
                f"{_CODE}.bad_signature", "the envelope's signature does not hold", path="signatures", actual=name[:60]
            ) from err
        return payload, name
    raise Refused(
        f"{_CODE}.unknown_key",
        "the envelope is not signed by a key that is trusted here",
        path="signatures",
        expected=", ".join(sorted(keys))[:120] or "no key at all",
        actual=", ".join(name[:44] for name, _ in signatures)[:120],
        hint="give the public key of whoever issues these values",
    )
