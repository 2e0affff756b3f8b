"""Signed envelopes: the standard's own encoding, pinned keys only, one kind of document only."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from cloister.crypto.dsse import sign_envelope, verify_envelope
from cloister.crypto.jwt import key_id
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import FormatRefused, Refused

SIGNER = ECDSAP256Signer.generate()
OTHER = ECDSAP256Signer.generate()
KEYS = {key_id(SIGNER.public_key): SIGNER.public_key}
TYPE = "application/x-test"
PAYLOAD = b'{"a": 1}'


def envelope(**changes: Any) -> bytes:  # Any: JSON
    return json.dumps({**json.loads(sign_envelope(PAYLOAD, SIGNER, payload_type=TYPE)), **changes}).encode()


def verify(data: bytes, ceiling: int = 100) -> bytes:
    return verify_envelope(data, KEYS, payload_type=TYPE, ceiling=ceiling)[0]


def test_signed_payload_is_returned_with_its_key() -> None:
    found = verify_envelope(envelope(), KEYS, payload_type=TYPE, ceiling=100)
    assert found == (PAYLOAD, key_id(SIGNER.public_key))


def test_signature_is_over_the_encoding_of_the_standard() -> None:
    """DSSE 1.0: `DSSEv1 29 http://example.com/HelloWorld 11 hello world`."""
    kind = "http://example.com/HelloWorld"
    sealed = json.loads(sign_envelope(b"hello world", SIGNER, payload_type=kind))
    signature = base64.b64decode(sealed["signatures"][0]["sig"])
    SIGNER.public_key.verify(b"DSSEv1 29 http://example.com/HelloWorld 11 hello world", signature)


def test_any_pinned_key_among_several_signers_is_enough() -> None:
    first = json.loads(sign_envelope(PAYLOAD, OTHER, payload_type=TYPE))["signatures"]
    second = json.loads(envelope())["signatures"]
    assert verify(envelope(signatures=first + second)) == PAYLOAD


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"payload": base64.b64encode(b'{"a": 2}').decode()}, "crypto.dsse.bad_signature"),
        ({"payloadType": "application/x-other"}, "crypto.dsse.payload_type"),
        ({"payload": "eyJhIjogMX0"}, "crypto.dsse.malformed"),
        ({"payload": 1}, "crypto.dsse.malformed"),
        ({"payload": base64.b64encode(bytes(101)).decode()}, "crypto.dsse.malformed"),
        ({"signatures": []}, "crypto.dsse.malformed"),
        ({"signatures": [{"keyid": "x", "sig": "AAAA"}]}, "crypto.dsse.unknown_key"),
        ({"signatures": [{"sig": "AAAA"}]}, "crypto.dsse.unknown_key"),
        ({"signatures": [{"sig": "AAAA"}] * 17}, "crypto.dsse.malformed"),
        ({"signatures": [{"keyid": next(iter(KEYS)), "sig": "AAAA"}]}, "crypto.dsse.bad_signature"),
        (
            {"signatures": [{"keyid": next(iter(KEYS)), "sig": base64.b64encode(bytes(73)).decode()}]},
            "crypto.dsse.malformed",
        ),
        ({"signatures": [{"sig": "AAAA", "cert": "x"}]}, "crypto.dsse.malformed"),
        ({"key": "mine"}, "crypto.dsse.malformed"),
    ],
)
def test_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as caught:
        verify(envelope(**changes))
    assert caught.value.code == code


def test_signature_of_another_kind_of_document_does_not_hold() -> None:
    """The same payload, signed as something else, then relabelled."""
    sealed = json.loads(sign_envelope(PAYLOAD, SIGNER, payload_type="application/x-other"))
    with pytest.raises(Refused) as caught:
        verify(json.dumps({**sealed, "payloadType": TYPE}).encode())
    assert caught.value.code == "crypto.dsse.bad_signature"


def test_a_key_twice_and_no_json_are_refused() -> None:
    for data, code in ((b'{"payload": "", "payload": ""}', "duplicate_key"), (b"x", "not_json"), (b"", "not_json")):
        with pytest.raises(FormatRefused) as caught:
            verify(data)
        assert caught.value.code == f"crypto.dsse.{code}"


def test_without_keys_nothing_is_accepted() -> None:
    with pytest.raises(Refused) as caught:
        verify_envelope(envelope(), {}, payload_type=TYPE, ceiling=100)
    assert (caught.value.code, caught.value.expected) == ("crypto.dsse.unknown_key", "no key at all")
