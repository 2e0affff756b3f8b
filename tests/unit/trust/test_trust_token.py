"""Attestation Results at the key broker: verified like a stranger's, typed, consistent."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cloister.crypto.jwt import key_id, public_jwk, sign_jwt, verify_jwt
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import Refused
from cloister.rats.claims import Level
from cloister.rats.result import Tier
from cloister.trust.keybroker import Credentials
from cloister.trust.keybroker.token import verify_token
from trust_world import MODEL, World, error_of


def pinned(world: World) -> dict[str, Any]:
    key = world.service.keys.token_issuer().signer.public_key
    return {key_id(key): key}


def resigned(world: World, token: str, change: Callable[[dict[str, Any]], object]) -> str:
    """Change claims and sign again with the verifier's own key: what is refused then is refused for its content."""
    claims = copy.deepcopy(verify_jwt(token, pinned(world), at=world.clock.now))
    change(claims)
    return sign_jwt(claims, world.service.keys.token_issuer().signer)


def cpu(claims: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = claims["submods"]["cpu0"]
    return result


def test_what_a_token_says(world: World) -> None:
    guest = world.guest().handshake()
    token = verify_token(guest.token, pinned(world), at=world.clock.now)
    assert (token.tee, token.tier, token.level) == ("tpm", Tier.AFFIRMING, Level.MEASURED)
    assert token.init_data == world.data.digest_text
    assert token.pcr00 == guest.tpm.read_pcrs()[0].hex()
    assert token.attestation.startswith("a-") and not token.failures
    assert token.expires_at - token.issued_at == timedelta(minutes=5)


def with_device(world: World, **changes: Any) -> str:
    """Return a token of a guest with a second device, which says the same but for `changes`."""
    guest = world.guest().handshake()

    def change(claims: dict[str, Any]) -> None:
        device = copy.deepcopy(cpu(claims))
        device.update(changes)
        claims["submods"]["gpu0"] = device

    return resigned(world, guest.token, change)


def test_the_least_level_of_all_devices_is_the_guests(world: World) -> None:
    token = verify_token(with_device(world), pinned(world), at=world.clock.now)
    assert (token.level, token.tier) == (Level.MEASURED, Tier.AFFIRMING)
    text = with_device(world, **{"ear.cloister.level": "simulated"})
    assert verify_token(text, pinned(world), at=world.clock.now).level is Level.SIMULATED
    text = with_device(world, **{"ear.cloister.level": "hardware"})
    assert verify_token(text, pinned(world), at=world.clock.now).level is Level.MEASURED


def test_the_worst_device_decides_and_is_named(world: World) -> None:
    failed = {"code": "appraisal.debug", "question": "acceptable", "ok": False, "message": "debug access is on"}
    text = with_device(world, **{"ear.status": "contraindicated", "ear.cloister.findings": [failed]})
    token = verify_token(text, pinned(world), at=world.clock.now)
    assert token.tier is Tier.CONTRAINDICATED
    assert [item.message for item in token.failures] == ["gpu0: debug access is on"]


def test_a_device_whose_answer_is_open_leaves_the_guests_open(world: World) -> None:
    still_open = {"code": "x.revocation", "question": "authentic", "ok": False, "severity": "unavailable"}
    text = with_device(world, **{"ear.status": "none", "ear.cloister.findings": [still_open]})
    assert verify_token(text, pinned(world), at=world.clock.now).tier is Tier.NONE


@pytest.mark.parametrize(
    "changes", [{"ear.cloister.policy-digest": "sha256:" + "0" * 64}, {"ear.appraisal-policy-id": "lax"}]
)
def test_devices_judged_by_different_policies_are_refused(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        verify_token(with_device(world, **changes), pinned(world), at=world.clock.now)
    assert caught.value.code == "trust.token.malformed"


def test_what_cocos_relying_parties_read(world: World) -> None:
    """Header and claims under CoCo's names (its client reads `exp`; its broker the key at this pointer)."""
    guest = world.guest().handshake()
    claims = verify_jwt(guest.token, pinned(world), at=world.clock.now)
    evidence = cpu(claims)["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"]["tee-pubkey"] == guest.key.public_jwk()
    assert evidence["tpm"]["pcr00"] == guest.tpm.read_pcrs()[0].hex()
    assert cpu(claims)["ear.status"] == "affirming" and isinstance(claims["exp"], int)


def test_the_published_key_verifies_tokens(world: World) -> None:
    [key] = world.admin.token_verification_keys()["keys"]
    signer = world.service.keys.token_issuer().signer.public_key
    assert key == {**public_jwk(signer), "use": "sig", "kid": key_id(signer)}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda claims: claims.update(iss="somebody"), "trust.token.foreign"),
        (lambda claims: claims.update(eat_profile="tag:github.com,2024:x"), "rats.ear.malformed"),
        (lambda claims: claims.update(exp=claims["iat"] + 16 * 60), "trust.token.foreign"),
        (lambda claims: claims["submods"].update(gpu0={}), "rats.ear.malformed"),
        (lambda claims: claims["submods"].clear(), "rats.ear.malformed"),
        (lambda claims: claims.pop("jti"), "rats.ear.malformed"),
        (lambda claims: cpu(claims).update({"ear.status": "splendid"}), "rats.ear.malformed"),
        (lambda claims: cpu(claims).update({"ear.cloister.level": "best"}), "rats.ear.malformed"),
        (lambda claims: cpu(claims).pop("ear.cloister.level"), "rats.ear.malformed"),
        (lambda claims: cpu(claims).update({"ear.status": "contraindicated"}), "rats.ear.inconsistent"),
        (lambda claims: cpu(claims).update({"ear.cloister.findings": []}), "rats.ear.inconsistent"),
        (lambda claims: cpu(claims)["ear.cloister.findings"][0].update(ok=False), "rats.ear.inconsistent"),
        (
            lambda claims: cpu(claims)["ear.veraison.annotated-evidence"].pop("runtime_data_claims"),
            "trust.token.malformed",
        ),
        (lambda claims: cpu(claims)["ear.veraison.annotated-evidence"].pop("tpm"), "rats.ear.malformed"),
        (lambda claims: cpu(claims)["ear.veraison.annotated-evidence"].update(init_data=None), "rats.ear.malformed"),
        (
            lambda claims: cpu(claims)["ear.veraison.annotated-evidence"]["runtime_data_claims"]["tee-pubkey"].update(
                alg="none"
            ),
            "crypto.jwe.key",
        ),
    ],
)
def test_a_signed_token_that_says_something_else(
    world: World, change: Callable[[dict[str, Any]], object], code: str
) -> None:
    token = resigned(world, world.guest().handshake().token, change)
    with pytest.raises(Refused) as caught:
        verify_token(token, pinned(world), at=world.clock.now)
    assert caught.value.code == code
    answer = world.guest().resource(token=token)
    assert answer.status == (400 if code == "crypto.jwe.key" else 401)
    assert error_of(answer)["code"] == code


def test_a_resigned_token_without_changes_is_good(world: World) -> None:
    guest = world.guest().handshake()
    assert guest.resource(token=resigned(world, guest.token, lambda claims: None)).status == 200


@pytest.mark.parametrize("attack", ["none", "hs256", "stranger", "cut"])
def test_forged_tokens_are_refused_and_recorded(world: World, attack: str) -> None:
    import base64
    import hmac

    guest = world.guest().handshake()
    head, body, signature = guest.token.split(".")

    def encoded(header: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()

    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    if attack == "none":
        token = f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{body}."
    elif attack == "hs256":
        text = f"{encoded({**header, 'alg': 'HS256'})}.{body}"
        mac = hmac.digest(world.service.keys.token_issuer().signer.public_key.pem(), text.encode(), "sha256")
        token = f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    elif attack == "stranger":
        token = sign_jwt(json.loads(base64.urlsafe_b64decode(body + "==")), ECDSAP256Signer.generate())
    else:
        token = f"{head}.{body}.{signature[:-4]}"
    answer = guest.resource(token=token)
    assert answer.status == 401 and answer.code.startswith("crypto.jwt.")
    assert world.admin.get_denial(answer.denial).code == answer.code
    assert [row.decision for row in world.admin.list_audit()] == ["denied"]


def test_a_new_token_key_does_not_honour_old_tokens(world: World) -> None:
    guest = world.guest().handshake()
    world.admin.keys.rotate_token_key(revoke=True)
    world.restart()
    assert guest.resource().code == "crypto.jwt.unknown_key"
    assert guest.handshake().resource().status == 200


def test_what_the_verifier_hands_over_is_what_its_token_says(world: World) -> None:
    """The broker takes the claims of a token that its own verifier made without reading the token again."""
    guest = world.guest().handshake()
    held = world.service.broker._held
    claims = held.verify(guest.token, pinned(world), at=world.clock.now)
    assert json.dumps(claims, sort_keys=True) == json.dumps(
        verify_jwt(guest.token, pinned(world), at=world.clock.now), sort_keys=True
    )
    assert held.verify(guest.token, pinned(world), at=world.clock.now) is claims, "it was handed over"


def test_a_token_made_by_nobody_else_is_still_verified(world: World) -> None:
    """A copy of an issued token with other claims, signed by a stranger, gets nothing from a broker that knows both."""
    guest = world.guest().handshake()
    stranger = ECDSAP256Signer.generate()
    claims = verify_jwt(guest.token, pinned(world), at=world.clock.now)
    forged = sign_jwt(claims, stranger)
    answer = world.service.broker.resource(str(MODEL), Credentials(bearer=forged), deadline=time.monotonic() + 5)
    assert answer.code == "crypto.jwt.unknown_key"
