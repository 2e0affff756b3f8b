"""Protocol versions side by side: what each sends and binds, the floor, and what a session may not become."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from itertools import cycle
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.crypto.jwe import EphemeralKey, KeyKind
from cloister.protocol.kbs import SealedResource
from cloister.trust.keybroker import Answer, Credentials
from cloister.trust.store.evidence import EvidenceStore
from cloister.trust.verifier.collateral import CollateralSource
from cloister.trust.verifier.survey import Wanted
from trust_world import CANARY, MODEL, Factory, World, error_of, init_data, report_data

LINE = b'insecure_allow_levels = ["simulated"]'
OLD = ["0.1.1", "0.2.0"]


# Guests of one test have different keys, and those of the next test the same ones: making one is slow.
_KEYS = cycle([rsa.generate_private_key(65537, 2048) for _ in range(4)])


class Guest:
    """A guest of any version, by hand, with the sample TEE; `RSA1_5` is what 0.1.1 has, others are for trying."""

    def __init__(self, world: World, version: str, *, alg: str = "") -> None:
        self.world, self.version = world, version
        self.rsa = next(_KEYS)
        numbers = self.rsa.public_key().public_numbers()
        self.key = EphemeralKey(self.rsa)
        self.jwk = {"kty": "RSA", "alg": alg or "RSA-OAEP-256", "n": b64url(numbers.n, 256), "e": b64url(numbers.e, 3)}
        self.cookie = self.nonce = self.token = ""

    def auth(self) -> Answer:
        body = {"version": self.version, "tee": "sample", "extra-params": ""}
        answer = self.world.service.broker.auth(json.dumps(body).encode())
        if answer.status == 200:
            self.cookie, self.nonce = answer.cookie, json.loads(answer.body)["nonce"]
        return answer

    def bound(self) -> bytes:
        if self.version == "0.4.0":
            return report_data(self.nonce, self.jwk)
        text = json.dumps({"nonce": self.nonce, "tee-pubkey": self.jwk}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha384(text.encode()).digest()

    def body(self, bound: bytes | None = None) -> dict[str, Any]:
        evidence: Any = {"svn": "1", "report_data": base64.b64encode(bound or self.bound()).decode()}
        if self.version == "0.4.0":
            return {
                "init-data": None,
                "runtime-data": {"nonce": self.nonce, "tee-pubkey": self.jwk},
                "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
            }
        return {"tee-pubkey": self.jwk, "tee-evidence": json.dumps(evidence) if self.version == "0.1.1" else evidence}

    def attest(self, body: Any = None) -> Answer:
        text = json.dumps(self.body() if body is None else body).encode()
        answer = self.world.service.broker.attest(text, Credentials(cookie=self.cookie))
        if answer.status == 200:
            self.token = json.loads(answer.body)["token"]
        return answer

    def resource(self, *, by_cookie: bool = False) -> Answer:
        credentials = Credentials(cookie=self.cookie) if by_cookie else Credentials(bearer=self.token)
        return self.world.service.broker.resource(str(MODEL), credentials, deadline=time.monotonic() + 5)


def b64url(number: int, width: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(width, "big")).rstrip(b"=").decode()


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def code(answer: Answer, status: int) -> str:
    assert answer.status == status, answer.body
    text: str = error_of(answer)["code"]
    return text


@pytest.fixture
def open_world(new_world: Factory) -> World:
    """A service that serves the sample TEE."""
    world = new_world(insecure_rsa1_5=True)
    world.admin.put_release_rule("default/model/*", LINE)
    return world


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0"])
@pytest.mark.parametrize("by_cookie", [False, True])
def test_versions_with_whole_jwe(open_world: World, version: str, by_cookie: bool) -> None:
    guest = Guest(open_world, version)
    assert guest.auth().status == 200 and guest.attest().status == 200
    answer = guest.resource(by_cookie=by_cookie)
    assert answer.status == 200, answer.body
    assert guest.key.open(SealedResource(**json.loads(answer.body))) == CANARY


@pytest.mark.parametrize("by_cookie", [False, True])
def test_011_gets_the_old_form(open_world: World, by_cookie: bool) -> None:
    guest = Guest(open_world, "0.1.1", alg="RSA1_5")
    assert guest.auth().status == 200 and guest.attest().status == 200
    sealed = json.loads(guest.resource(by_cookie=by_cookie).body)
    assert (sealed["protected"], sealed["tag"]) == ('{"alg":"RSA1_5","enc":"A256GCM"}', "")
    cek = guest.rsa.decrypt(unpadded(sealed["encrypted_key"]), padding.PKCS1v15())
    assert AESGCM(cek).decrypt(unpadded(sealed["iv"]), unpadded(sealed["ciphertext"]), None) == CANARY


def test_011_gets_nothing_unless_the_owner_asked_for_rsa15(new_world: Factory) -> None:
    world = new_world()
    world.admin.put_release_rule("default/model/*", LINE)
    guest = Guest(world, "0.1.1", alg="RSA1_5")
    assert guest.auth().status == 200
    assert code(guest.attest(), 400) == "crypto.jwe.key"
    other = Guest(world, "0.1.1")
    assert other.auth().status == 200 and other.attest().status == 200
    assert code(other.resource(), 400) == "crypto.jwe.key", "a key that no guest of that version has"


@pytest.mark.parametrize("kind", list(KeyKind))
def test_item_1_sample_by_every_kind_of_key(open_world: World, kind: KeyKind) -> None:
    guest = Guest(open_world, "0.4.0")
    guest.key = EphemeralKey.generate(kind)
    guest.jwk = guest.key.public_jwk()
    assert guest.auth().status == 200 and guest.attest().status == 200
    for by_cookie in (False, True):
        answer = guest.resource(by_cookie=by_cookie)
        assert guest.key.open(SealedResource(**json.loads(answer.body))) == CANARY


@pytest.mark.parametrize("version", OLD)
class TestOldVersions:
    def test_the_token_names_no_init_data(self, open_world: World, version: str) -> None:
        guest = Guest(open_world, version)
        guest.auth()
        guest.attest()
        claims = json.loads(unpadded(guest.token.split(".")[1]))
        assert claims["ear.cloister.protocol"] == version
        assert claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["init_data"] == ""

    def test_evidence_must_bind_nonce_and_key(self, open_world: World, version: str) -> None:
        guest = Guest(open_world, version)
        guest.auth()
        assert code(guest.attest(guest.body(report_data(guest.nonce, guest.jwk))), 403) == "evidence.freshness"

    def test_another_key_than_the_bound_one(self, open_world: World, version: str) -> None:
        guest, other = Guest(open_world, version), Guest(open_world, version)
        guest.auth()
        body = {**guest.body(), "tee-pubkey": other.jwk}
        assert code(guest.attest(body), 403) == "evidence.freshness"

    def test_the_nonce_is_of_this_session(self, open_world: World, version: str) -> None:
        guest, other = Guest(open_world, version), Guest(open_world, version)
        guest.auth()
        other.auth()
        guest.nonce = other.nonce
        assert code(guest.attest(), 403) == "evidence.freshness"

    def test_a_session_is_attested_once(self, open_world: World, version: str) -> None:
        guest = Guest(open_world, version)
        guest.auth()
        assert guest.attest().status == 200
        assert code(guest.attest(), 401) == "trust.session.nonce_used"

    def test_a_session_does_not_change_its_version(self, open_world: World, version: str) -> None:
        guest = Guest(open_world, version)
        guest.auth()
        newer = Guest(open_world, "0.4.0")
        newer.cookie, newer.nonce = guest.cookie, guest.nonce
        assert code(newer.attest(), 401) == "trust.session.version"
        guest.version = "0.4.0"
        guest.auth()
        guest.version = version
        assert code(guest.attest(), 401) == "trust.session.version"

    def test_survives_a_restart_and_the_nonce_is_not_in_the_clear(self, open_world: World, version: str) -> None:
        guest = Guest(open_world, version)
        guest.auth()
        stored = b"".join(path.read_bytes() for path in open_world.state.iterdir() if path.is_file())
        assert base64.b64decode(guest.nonce) not in stored and guest.nonce.encode() not in stored
        open_world.restart()
        assert guest.attest().status == 200

    @pytest.mark.parametrize(
        "change",
        [{"init-data": None}, {"nonce": "x"}, {"tee-evidence": None}, {"tee-evidence": []}, {"tee-evidence": "[]"}],
    )
    def test_malformed_messages(self, open_world: World, version: str, change: dict[str, Any]) -> None:
        guest = Guest(open_world, version)
        guest.auth()
        assert guest.attest({**guest.body(), **change}).status == 400

    def test_measured_evidence_needs_a_rule_for_any_init_data(self, open_world: World, version: str) -> None:
        """The protocol of that time sends no init data, so nothing could name the pod."""
        guest = Guest(open_world, version)
        open_world.admin.put_release_rule(
            "default/model/*", LINE + b'\ninit_data = ["%s"]' % init_data().digest_text.encode()
        )
        guest.auth()
        guest.attest()
        assert code(guest.resource(), 403) == "trust.release.init_data"


@pytest.mark.parametrize(("floor", "refused"), [("0.1.1", []), ("0.2.0", ["0.1.1"]), ("0.4.0", ["0.1.1", "0.2.0"])])
def test_nothing_is_spoken_below_the_floor(new_world: Factory, floor: str, refused: list[str]) -> None:
    world = new_world(minimum_protocol=floor)
    for version in ("0.1.1", "0.2.0", "0.4.0"):
        answer = Guest(world, version).auth()
        if version in refused:
            assert code(answer, 401) == "trust.auth.version"
            assert error_of(answer)["detail"].startswith(
                f"KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is {version}"
            )
        else:
            assert answer.status == 200


def test_a_floor_that_was_raised_ends_sessions_below_it(open_world: World) -> None:
    from dataclasses import replace

    guest = Guest(open_world, "0.2.0")
    guest.auth()
    open_world.settings = replace(open_world.settings, minimum_protocol="0.4.0")
    open_world.restart()
    assert code(guest.attest(), 401) == "trust.auth.version"


def test_old_names_of_technologies(open_world: World) -> None:
    for old in ("azsnpvtpm", "aztdxvtpm"):
        body = {"version": "0.2.0", "tee": old, "extra-params": ""}
        assert open_world.service.broker.auth(json.dumps(body).encode()).status == 200


@pytest.mark.parametrize("version", [*OLD, "0.4.0"])
def test_kept_evidence_of_any_version_can_be_judged_again(open_world: World, version: str) -> None:
    """Each version binds nonce and key in its own way; none of these guests sent init data."""
    guest = Guest(open_world, version)
    assert guest.auth().status == 200 and guest.attest().status == 200
    wanted = Wanted(source=CollateralSource(open_world.state), at=open_world.clock.now)
    [item] = open_world.admin.survey().run(wanted)
    assert item.result.after is item.result.before and item.result.changes == (), item.result.changes
    [stored] = EvidenceStore(open_world.service.store, open_world.service.keys.ring).list()
    assert stored.binding is not None and (stored.binding.version, stored.binding.init_data) == (version, "")
