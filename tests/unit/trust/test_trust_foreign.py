"""Tokens of another verifier: off by default, and then by certificates, for one tenant, by rules that name it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import foreign_tokens
from cloister.crypto.jwe import EphemeralKey
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.protocol.kbs import SealedResource
from cloister.rats.claims import Level
from cloister.rats.result import Tier
from cloister.testing.tpm import NOW
from cloister.trust.keybroker import Answer, Credentials
from cloister.trust.keybroker.foreign import is_foreign, level_of, verify_foreign_token
from cloister.trust.service import TrustService
from cloister.trust.settings import TrustSettings
from foreign_tokens import BAD, GOOD, Scenario, claims, scenario
from trust_world import CANARY, MODEL, World, error_of, make_world

DIGEST = "ab" * 32
RULE = f'init_data = ["sha256:{DIGEST}"]\nappraisal_policy = "trustee:default"\n'.encode()


@pytest.fixture(scope="module")
def key() -> EphemeralKey:
    return EphemeralKey.generate()


@pytest.fixture(scope="module")
def good() -> Scenario:
    return scenario(1, NOW)


@pytest.mark.parametrize("url", [False, True])
@pytest.mark.parametrize("number", GOOD)
def test_chains_that_end_at_the_root_are_accepted(key: EphemeralKey, number: int, url: bool) -> None:
    made = scenario(number, NOW)
    token = made.token(claims(key.public_jwk(), NOW, init_data=DIGEST), url=url)
    found = verify_foreign_token(token, [made.trusted], at=NOW)
    assert (found.tier, found.level, found.tee) == (Tier.AFFIRMING, Level.HARDWARE, "snp")
    assert (found.verifier, found.policy_id, found.policy_digest) == ("trustee", "trustee:default", "")
    assert found.init_data == f"sha256:{DIGEST}" and not found.init_data_referenced


@pytest.mark.parametrize("number", BAD)
def test_others_are_refused(key: EphemeralKey, number: int) -> None:
    made = scenario(number, NOW)
    with pytest.raises(Refused) as caught:
        verify_foreign_token(made.token(claims(key.public_jwk(), NOW)), [made.trusted], at=NOW)
    assert caught.value.code in ("trust.token.foreign.key", "crypto.jwt.unknown_key")


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": 1, "exp": "x"},
        {"exp": int(NOW.timestamp())},
        {"exp": int(NOW.timestamp()) + 3600},
        {"iat": int(NOW.timestamp()) + 3600, "exp": int(NOW.timestamp()) + 3700},
        {"eat_profile": "tag:cloister,2026:ear/1"},
        {"submods": {}},
        {"submods": {"gpu0": {}}},
        {"vector": {"hardware": 97}},
        {"vector": {"executables": 33, "hardware": 2}},
        {"vector": {"hardware": 0}},
        {"status": "excellent"},
    ],
)
def test_what_it_says_must_be_whole_and_agree(key: EphemeralKey, good: Scenario, changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        verify_foreign_token(good.token(claims(key.public_jwk(), NOW, **changes)), [good.trusted], at=NOW)
    assert caught.value.code in ("trust.token.foreign.shape", "crypto.jwt.expired", "crypto.jwt.not_yet_valid",
                                 "crypto.jwt.malformed")  # fmt: skip


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "HS256"}, {"typ": "JOSE"}, {"crit": ["x"]}])
def test_the_header_chooses_nothing(key: EphemeralKey, good: Scenario, header: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        verify_foreign_token(good.token(claims(key.public_jwk(), NOW), **header), [good.trusted], at=NOW)


def test_no_key_that_can_be_sealed_to(good: Scenario) -> None:
    for jwk in ({}, {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "AAAA", "y": "BBBB"}):
        with pytest.raises(Refused):
            verify_foreign_token(good.token(claims(jwk, NOW)), [good.trusted], at=NOW)


@pytest.mark.parametrize(
    ("field", "digest"),
    [
        ("ab" * 32, "sha256:" + "ab" * 32),
        ("ab" * 32 + "00" * 16, "sha256:" + "ab" * 32),
        ("ab" * 48, "sha384:" + "ab" * 48),
        ("ab" * 48 + "00" * 16, "sha384:" + "ab" * 48),
        ("ab" * 64, "sha512:" + "ab" * 64),
        ("00" * 32, ""),
        ("ab" * 20, ""),
        ("x", ""),
        ("", ""),
    ],
)
def test_init_data_is_named_as_rules_name_it(key: EphemeralKey, good: Scenario, field: str, digest: str) -> None:
    token = good.token(claims(key.public_jwk(), NOW, init_data=field))
    assert verify_foreign_token(token, [good.trusted], at=NOW).init_data == digest


def test_levels_are_ours() -> None:
    assert level_of("tdx") is Level.HARDWARE and level_of("tpm") is Level.MEASURED
    assert {level_of(name) for name in ("sample", "sampledevice", "", "unheard-of")} == {Level.SIMULATED}


def test_the_sample_tee_is_never_affirmed(key: EphemeralKey, good: Scenario) -> None:
    found = verify_foreign_token(good.token(claims(key.public_jwk(), NOW, tee="sample")), [good.trusted], at=NOW)
    assert (found.level, found.tier) == (Level.SIMULATED, Tier.WARNING)


class TestBroker:
    @pytest.fixture
    def world(self, tmp_path: Path, good: Scenario) -> Any:
        file = tmp_path / "roots.pem"
        file.write_bytes(good.trusted.public_bytes(Encoding.PEM))
        made = make_world(tmp_path / "world", trusted_token_roots=file)
        yield made
        made.close()

    def ask(self, world: World, token: str, tenant: str = "default") -> Answer:
        broker = world.service.broker_of(tenant)
        return broker.resource(str(MODEL), Credentials(bearer=token), deadline=time.monotonic() + 5)

    def test_a_rule_that_names_it_releases(self, world: World, key: EphemeralKey, good: Scenario) -> None:
        world.admin.put_release_rule(str(MODEL), RULE)
        answer = self.ask(world, good.token(claims(key.public_jwk(), NOW, init_data=DIGEST)))
        assert answer.status == 200, answer.body
        assert key.open(SealedResource(**json.loads(answer.body))) == CANARY
        [row] = world.admin.list_audit()
        assert (row.decision, row.level, row.appraisal_policy) == ("released", "hardware", "trustee:default")
        assert row.attestation.startswith("x-")

    @pytest.mark.parametrize(
        ("rule", "changes", "code"),
        [
            (b"insecure_any_init_data = true", {}, "trust.release.verifier"),
            (RULE, {"init_data": "cd" * 32}, "trust.release.init_data"),
            (RULE, {"tee": "tpm"}, "trust.release.level"),
            (RULE, {"tee": "sample"}, "trust.release.level"),
            (RULE, {"status": "warning", "vector": {"executables": 33, "hardware": 2}}, "appraisal.rego.foreign"),
            (None, {}, "trust.release.no_rule"),
        ],
    )
    def test_anything_else_does_not(
        self, world: World, key: EphemeralKey, good: Scenario, rule: bytes | None, changes: Any, code: str
    ) -> None:
        if rule is not None:
            world.admin.put_release_rule(str(MODEL), rule)
        else:
            world.admin.remove_release_rule("default/model/*")
        answer = self.ask(world, good.token(claims(key.public_jwk(), NOW, **{"init_data": DIGEST, **changes})))
        told = error_of(answer)["code"]
        assert (answer.status, told) == (403, code)

    def test_our_own_tokens_go_on(self, world: World) -> None:
        assert world.guest().handshake().resource().status == 200

    def test_another_tenant_takes_none(self, world: World, key: EphemeralKey, good: Scenario) -> None:
        world.admin._office.tenants.create("other", "")
        answer = self.ask(world, good.token(claims(key.public_jwk(), NOW, init_data=DIGEST)), "other")
        assert (answer.status, error_of(answer)["code"]) == (401, "crypto.jwt.unknown_key")

    def test_a_revoked_pod_is_revoked_here_too(self, world: World, key: EphemeralKey, good: Scenario) -> None:
        world.admin.put_release_rule(str(MODEL), RULE)
        world.admin.revoke(f"sha256:{DIGEST}")
        answer = self.ask(world, good.token(claims(key.public_jwk(), NOW, init_data=DIGEST)))
        assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.revoked")


def test_off_by_default(world: World, key: EphemeralKey, good: Scenario) -> None:
    world.admin.put_release_rule(str(MODEL), RULE)
    token = good.token(claims(key.public_jwk(), NOW, init_data=DIGEST))
    answer = world.service.broker.resource(str(MODEL), Credentials(bearer=token), deadline=time.monotonic() + 5)
    assert (answer.status, error_of(answer)["code"]) == (401, "crypto.jwt.unknown_key")
    assert is_foreign(token, {}) and not is_foreign(world.guest().handshake().token, _keys(world))


def _keys(world: World) -> Any:
    return world.service.keys.signing.token_keys()


@pytest.mark.parametrize("content", [None, b"", b"x", "many"])
def test_a_file_that_is_no_list_of_roots_stops_the_start(tmp_path: Path, good: Scenario, content: Any) -> None:
    file = tmp_path / "roots.pem"
    if content is not None:
        file.write_bytes(17 * good.trusted.public_bytes(Encoding.PEM) if content == "many" else content)
    with pytest.raises((FormatRefused, Unavailable)) as caught:
        TrustService(TrustSettings(state=tmp_path / "state", trusted_token_roots=file))
    assert caught.value.code in ("trust.settings.token_roots", "trust.state.io")


def test_the_fixtures_are_seven() -> None:
    assert sorted((*GOOD, *BAD)) == list(range(1, 8)) and foreign_tokens.PROFILE.startswith("tag:")
