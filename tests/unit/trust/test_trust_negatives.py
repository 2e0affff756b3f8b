"""The negative set that a key broker is accepted by, item by item: here what needs a whole service, elsewhere the rest.

`ELSEWHERE` names the tests of the others, and is checked, so that none can go without being missed.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate

from cloister.crypto.jwe import EphemeralKey
from cloister.crypto.signer import ECDSAP256Signer
from cloister.trust.keybroker import Answer
from cloister.wire.limits import KBS_REQUEST_BYTES
from trust_world import CANARY, Guest, World, error_of

TESTS = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "PCR selection": ("adversary/test_hostile_evidence.py", "test_a_quote_over_other_registers_is_refused"),
    "debug guest on Azure": ("unit/trust/test_trust_evidence.py", "test_a_debug_guest"),
    "swapped devices": ("unit/trust/test_trust_devices.py", "test_a_text_that_was_swapped"),
    "algorithm of a token": ("unit/crypto/test_jwt.py", "test_the_token_does_not_choose_the_algorithm"),
    "public key as HMAC secret": ("unit/crypto/test_jwt.py", "test_the_public_key_as_an_hmac_secret"),
    "key in the header": ("unit/crypto/test_jwt.py", "test_the_key_in_the_header_must_be_the_pinned_one"),
    "nonce reuse by many": ("unit/trust/test_trust_broker.py", "test_twenty_threads_with_one_nonce_get_one_token"),
}


@pytest.mark.parametrize("item", ELSEWHERE)
def test_what_is_tested_elsewhere_is(item: str) -> None:
    file, name = ELSEWHERE[item]
    assert f"def {name}(" in (TESTS / file).read_text("utf-8")


def refused(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, error_of(answer)["code"]) == (status, code)
    assert CANARY not in answer.body


def parts_of(token: str) -> list[Any]:
    return [json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in token.split(".")[:2]]


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_item_7_nonce_reuse_in_another_session(world: World) -> None:
    first, second = world.guest().handshake(), world.guest()
    second.auth()
    refused(second.send_attestation(second.attestation(nonce=first.nonce)), 401, "trust.session.nonce_mismatch")


def test_item_7_second_attest_on_the_session(world: World) -> None:
    guest = world.guest().handshake()
    before = guest.token
    refused(guest.send_attestation(), 401, "trust.session.nonce_used")
    assert guest.token == before, "no second token"


def test_item_7_swapped_additional_evidence(world: World) -> None:
    """The CPU's evidence binds the text; another one, even of no device, is another text."""
    guest = world.guest()
    guest.auth()
    body = guest.attestation(additional="")
    body["tee-evidence"]["additional_evidence"] = "{}"
    answer = guest.send_attestation(body)
    assert answer.status == 403 and answer.code == "evidence.freshness"


def test_item_7_expired_reference_value(world: World) -> None:
    world.clock.advance(days=31)
    guest = world.guest().handshake()
    refused(guest.resource(), 403, "appraisal.reference_values.expired")


class TestTokens:
    """A key that is not that of the certificate, and algorithms that are not the key's."""

    @pytest.fixture
    def guest(self, world: World) -> Guest:
        return world.guest().handshake()

    def test_item_7_the_leaf_of_our_tokens_is_their_key(self, guest: Guest) -> None:
        header, _ = parts_of(guest.token)
        leaf = load_der_x509_certificate(base64.b64decode(header["jwk"]["x5c"][0]))
        point = leaf.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        x, y = (base64.urlsafe_b64decode(header["jwk"][name] + "=") for name in ("x", "y"))
        assert point == b"\x04" + x + y

    def test_item_7_a_key_that_is_not_the_leafs(self, guest: Guest) -> None:
        """A stranger's key and signature under our certificate chain."""
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        from cloister.crypto.jwt import public_jwk

        header, claims = parts_of(guest.token)
        stranger = ECDSAP256Signer.generate()
        header["jwk"] = {**public_jwk(stranger.public_key), "x5c": header["jwk"]["x5c"]}
        signed = f"{encoded(header)}.{encoded(claims)}"
        r, s = decode_dss_signature(stranger.sign(signed.encode()))
        signature = base64.urlsafe_b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).rstrip(b"=").decode()
        refused(guest.resource(token=f"{signed}.{signature}"), 401, "crypto.jwt.unknown_key")

    @pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "RS256", "ES384", ""])
    def test_item_7_another_algorithm(self, guest: Guest, algorithm: str) -> None:
        header, claims = parts_of(guest.token)
        signature = "" if algorithm.lower() == "none" else guest.token.split(".")[2]
        token = f"{encoded({**header, 'alg': algorithm})}.{encoded(claims)}.{signature}"
        refused(guest.resource(token=token), 401, "crypto.jwt.algorithm")

    def test_item_7_another_guests_key_in_a_signed_token(self, guest: Guest) -> None:
        header, claims = parts_of(guest.token)
        evidence = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
        evidence["runtime_data_claims"]["tee-pubkey"] = EphemeralKey.generate().public_jwk()
        token = f"{encoded(header)}.{encoded(claims)}.{guest.token.split('.')[2]}"
        refused(guest.resource(token=token), 401, "crypto.jwt.bad_signature")

    def test_item_7_the_token_of_another_tenant(self, world: World, guest: Guest) -> None:
        from dataclasses import replace

        from cloister.trust.keybroker import Credentials, KeyBroker

        other = KeyBroker(replace(world.service.broker._parts, tenant="acme"))
        answer = other.resource("default/model/one", Credentials(bearer=guest.token), deadline=1e12)
        refused(answer, 401, "trust.token.foreign")


@pytest.mark.parametrize("place", ["primary_evidence", "additional_evidence"])
def test_item_7_oversize_evidence(world: World, place: str) -> None:
    guest = world.guest()
    guest.auth()
    body = guest.attestation()
    long = "x" * KBS_REQUEST_BYTES
    body["tee-evidence"][place] = {"quote": long} if place == "primary_evidence" else long
    refused(guest.send_attestation(body), 413, "protocol.kbs.too_long")
    assert guest.send_attestation().status == 200, "the nonce is not spent by what was never read"


@pytest.mark.parametrize("depth", [33, 200, 5_000, 100_000])
def test_item_7_deep_json(world: World, depth: int) -> None:
    guest = world.guest()
    guest.auth()
    text = json.dumps(guest.attestation(evidence={"here": 1})).replace("1}", '{"a":' * depth + "1" + "}" * depth + "}")
    answer = world.service.broker.attest(text.encode(), credentials_of(guest))
    assert answer.status == 400
    assert answer.code in ("trust.verifier.evidence_shape", "protocol.kbs.malformed")


@pytest.mark.parametrize("depth", [100, 100_000])
def test_item_7_deep_json_of_devices(world: World, depth: int) -> None:
    guest = world.guest()
    guest.auth()
    deep = '{"nvidia":' + '{"a":' * depth + "1" + "}" * depth + "}"
    assert guest.send_attestation(guest.attestation(additional=deep)).status == 400


def credentials_of(guest: Guest) -> Any:
    from cloister.trust.keybroker import Credentials

    return Credentials(cookie=guest.cookie)
