"""The key broker, message by message: for each acceptance the refusals beside it."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cloister.crypto.jwe import EphemeralKey
from cloister.errors import Refused, Unavailable
from cloister.testing.tpm import EndorsementCA
from cloister.trust.keybroker import Answer
from cloister.trust.store.records import DENIED, RELEASED
from cloister.wire.base64 import decode_b64url, encode_b64url
from trust_world import CANARY, MODEL, Factory, World, all_bytes, b64, error_of, init_data, rule


def test_a_guest_gets_its_resource_by_bearer_and_by_cookie(world: World) -> None:
    guest = world.guest().handshake()
    assert guest.open(guest.resource()) == CANARY
    assert guest.open(guest.resource(cookie=guest.cookie)) == CANARY
    rows = world.admin.list_audit()
    assert [row.decision for row in rows] == [RELEASED, RELEASED]
    row = rows[0]
    assert (row.resource, row.resource_version, row.tee, row.level) == (str(MODEL), 1, "tpm", "measured")
    assert row.init_data == world.data.digest_text
    assert row.pcr00 == guest.tpm.read_pcrs()[0].hex()
    assert row.appraisal_policy == "default"
    policy = world.admin.appraisal_policy()
    assert policy is not None and row.appraisal_policy_digest == policy.digest
    assert row.release_policy_digest == world.admin.release_rules().rules["default/model/*"].digest
    assert len(row.instance) == 64 and len(row.guest_key) == 64 and row.at == world.clock.now
    appraisal = world.admin.get_appraisal(row.attestation)
    assert appraisal is not None and appraisal.tier == "affirming" and appraisal.registers["pcr00"] == row.pcr00


@pytest.mark.parametrize("version", ["0.3.0", "0.1.0", "0.4.1", "0.5.0", "", "=0.4.0", "9" * 400])
def test_other_versions_are_refused_in_the_words_clients_look_for(world: World, version: str) -> None:
    body = {"version": version, "tee": "tpm", "extra-params": "", "something-newer": 1}
    answer = world.service.broker.auth(json.dumps(body).encode())
    assert answer.status == 401
    expected = f"KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is {version[:20]}"
    assert error_of(answer)["detail"].startswith(expected)
    assert error_of(answer)["code"] == "trust.auth.version"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "protocol.kbs.malformed"),
        (b"[]", 400, "protocol.kbs.malformed"),
        (b'{"version":"0.4.0"}', 400, "protocol.kbs.malformed"),
        (b'{"version":"0.4.0","tee":"tpm","extra":1}', 400, "protocol.kbs.malformed"),
        (b'{"version":"0.4.0","tee":"sev","extra-params":""}', 403, "tee.unknown"),
        (b'{"version":"0.4.0","tee":"tpm","extra-params":{"cloister-tpm":{}}}', 400, "protocol.kbs.malformed"),
        (b" " * (2 * 1024 * 1024 + 1), 413, "protocol.kbs.too_long"),
    ],
)
def test_malformed_requests_are_refused(world: World, body: bytes, status: int, code: str) -> None:
    answer = world.service.broker.auth(body)
    assert (answer.status, error_of(answer)["code"]) == (status, code)


def test_every_refusal_names_a_denial_that_the_owner_can_read(world: World) -> None:
    answer = world.guest().resource(token="nonsense")
    body = error_of(answer)
    assert set(body) == {"type", "detail", "code", "denial-id", "hint"}
    assert body["code"] in body["detail"] and body["denial-id"] in body["detail"]
    record = world.admin.get_denial(body["denial-id"])
    assert (record.code, record.stage, record.resource) == (body["code"], "resource", str(MODEL))
    [row] = world.admin.list_audit()
    assert (row.decision, row.denial, row.code) == (DENIED, record.id, record.code)


class TestSession:
    def test_without_a_session(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        assert code_of(guest.send_attestation(cookie=""), 401) == "trust.session.none"
        assert code_of(guest.send_attestation(cookie="0" * 32), 401) == "trust.session.unknown"

    def test_with_another_nonce(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        body = guest.attestation(nonce=b64(bytes(32)))
        assert code_of(guest.send_attestation(body), 401) == "trust.session.nonce_mismatch"
        assert guest.send_attestation().status == 200, "the right nonce is still good"

    def test_with_the_nonce_of_another_session(self, world: World) -> None:
        guest, other = world.guest(), world.guest()
        guest.auth()
        other.auth()
        body = guest.attestation(nonce=other.nonce)
        assert code_of(guest.send_attestation(body), 401) == "trust.session.nonce_mismatch"

    def test_after_it_expired(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        world.clock.advance(seconds=300)
        assert code_of(guest.send_attestation(), 401) == "trust.session.expired"

    def test_just_before_it_expires(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        world.clock.advance(seconds=299)
        assert guest.send_attestation().status == 200

    def test_a_clock_set_back_does_not_lengthen_it(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        world.clock.advance(hours=-1)
        assert code_of(guest.send_attestation(), 401) == "trust.session.expired"

    def test_a_second_attestation_is_refused_whatever_it_holds(self, world: World) -> None:
        guest = world.guest().handshake()
        assert code_of(guest.send_attestation(), 401) == "trust.session.nonce_used"

    def test_a_refused_attestation_has_spent_the_nonce(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        assert guest.send_attestation(guest.attestation(evidence={"not": "evidence"})).status == 400
        assert code_of(guest.send_attestation(), 401) == "trust.session.nonce_used"

    @pytest.mark.parametrize("hours", [0, 1, -1])
    def test_a_second_use_after_a_restart_and_a_clock_jump(self, world: World, hours: int) -> None:
        guest = world.guest().handshake()
        world.restart()
        world.clock.advance(hours=hours)
        expected = "trust.session.expired" if hours else "trust.session.nonce_used"
        assert code_of(guest.send_attestation(), 401) == expected

    def test_a_session_survives_a_restart(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        world.restart()
        assert guest.send_attestation().status == 200
        world.restart()
        assert guest.open(guest.resource(cookie=guest.cookie)) == CANARY

    def test_twenty_threads_with_one_nonce_get_one_token(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        body = guest.attestation()
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: guest.send_attestation(body), range(20)))
        assert sorted(answer.status for answer in answers) == [200, *([401] * 19)]
        assert {answer.code for answer in answers} == {"", "trust.session.nonce_used"}

    def test_resource_by_a_cookie_that_has_not_attested(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        assert code_of(guest.resource(cookie=guest.cookie), 401) == "trust.session.not_attested"

    def test_resource_by_an_expired_cookie(self, world: World) -> None:
        guest = world.guest().handshake()
        world.clock.advance(seconds=301)
        assert code_of(guest.resource(cookie=guest.cookie), 401) == "trust.session.expired"

    def test_beginning_a_session_writes_nothing(self, world: World) -> None:
        world.guest().handshake()
        before = all_bytes(world.state)
        for _ in range(20):
            assert world.guest().auth().status == 200
        assert all_bytes(world.state) == before

    @pytest.mark.parametrize("place", [0, 1, 9, 30, 40, 60])
    def test_a_cookie_with_any_byte_changed_is_none_of_ours(self, world: World, place: int) -> None:
        guest = world.guest()
        guest.auth()
        data = bytearray(decode_b64url(guest.cookie, path="", ceiling=200))
        data[place] ^= 1
        assert code_of(guest.send_attestation(cookie=encode_b64url(bytes(data))), 401) == "trust.session.unknown"
        for cut in (1, 20, 60):
            assert code_of(guest.send_attestation(cookie=guest.cookie[:-cut]), 401) == "trust.session.unknown"
        assert guest.send_attestation().status == 200

    def test_a_session_outlives_a_change_of_the_data_key(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        world.admin.keys.rotate_data_key()
        assert guest.send_attestation().status == 200
        world.restart()
        assert code_of(guest.send_attestation(), 401) == "trust.session.nonce_used"

    def test_a_store_that_fails_leaves_the_nonce_as_it_was(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        write = world.service.store.write

        def fail(*_arguments: object, **_options: object) -> None:
            raise Unavailable("trust.store.failed", "no")

        world.service.store.write = fail  # type: ignore[method-assign,assignment]  # a store that cannot write
        with pytest.raises(Unavailable):
            guest.send_attestation()
        world.service.store.write = write  # type: ignore[method-assign]  # and one that can
        assert guest.send_attestation().status == 200, "nothing came of the first attempt, so nothing was spent"

    def test_cookie_nonce_and_secret_are_not_in_the_database(self, world: World) -> None:
        guest = world.guest().handshake()
        stored = all_bytes(world.state)
        for secret in (guest.cookie.encode(), guest.nonce.encode(), base64.b64decode(guest.nonce), guest.secret):
            assert secret not in stored


class TestEvidence:
    def test_a_replayed_attestation_is_refused(self, world: World) -> None:
        """Yesterday's quote under today's nonce."""
        old = world.guest().handshake()
        guest = world.guest()
        guest.tpm, guest.key = old.tpm, old.key
        guest.auth()
        stale = old.attestation()["tee-evidence"]["primary_evidence"]
        stale["activation"] = b64(guest.secret)
        answer = guest.send_attestation(guest.attestation(evidence=stale))
        assert answer.status == 403 and answer.code.startswith(("tee.tpm.", "evidence."))

    def test_a_swapped_key_is_refused(self, world: World) -> None:
        """Somebody in the middle puts in a key of his own beside genuine evidence."""
        guest = world.guest()
        guest.auth()
        body = guest.attestation()
        body["runtime-data"]["tee-pubkey"] = EphemeralKey.generate().public_jwk()
        answer = guest.send_attestation(body)
        assert answer.status == 403 and answer.code.startswith(("tee.tpm.", "evidence."))

    def test_other_init_data_is_refused(self, world: World) -> None:
        guest = world.guest(init_data(more="x"))
        guest.auth()
        answer = guest.send_attestation(guest.attestation(data=world.data))
        assert code_of(answer, 403) == "evidence.init_data"

    def test_without_init_data_the_token_names_none_and_no_rule_names_it(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        body = guest.attestation()
        body["init-data"] = None
        assert guest.send_attestation(body).status == 200
        answer = guest.resource()
        assert code_of(answer, 403) == "trust.release.init_data"
        assert "without init data" in error_of(answer)["hint"]
        world.admin.add_release_rule(rule(world.data, init_data=(), insecure_any_init_data=True))
        assert guest.open(guest.resource()) == CANARY

    @pytest.mark.parametrize(
        ("member", "code"),
        [
            ({"format": "json", "body": "{}"}, "trust.attest.init_data_format"),
            ({"format": "toml", "body": "{"}, "protocol.initdata.malformed"),
            ({"format": "toml", "body": 'version="9"\nalgorithm="sha256"\n[data]'}, "protocol.initdata.version"),
        ],
    )
    def test_malformed_init_data_is_refused(self, world: World, member: dict[str, str], code: str) -> None:
        guest = world.guest()
        guest.auth()
        body = guest.attestation()
        body["init-data"] = member
        assert code_of(guest.send_attestation(body), 400) == code

    @pytest.mark.parametrize(
        ("additional", "code"),
        [
            ('{"toaster":{}}', "trust.verifier.additional_evidence"),
            ("[]", "trust.verifier.additional_evidence.not_json"),
            (" ", "trust.verifier.additional_evidence.not_json"),
            ('{"nvidia":[]}', "trust.verifier.additional_evidence.not_json"),
        ],
    )
    def test_further_devices_that_cannot_be_verified_are_refused(
        self, world: World, additional: str, code: str
    ) -> None:
        guest = world.guest()
        guest.auth()
        answer = guest.send_attestation(guest.attestation(additional=additional))
        assert code_of(answer, 403 if code.endswith("evidence") else 400) == code

    def test_an_empty_device_map_is_no_device(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        assert guest.send_attestation(guest.attestation(additional="{}")).status == 200

    @pytest.mark.parametrize("evidence", [[], "text", 3, True])
    def test_evidence_that_is_no_object_is_refused(self, world: World, evidence: Any) -> None:
        guest = world.guest()
        guest.auth()
        assert code_of(guest.send_attestation(guest.attestation(evidence=evidence)), 400).startswith("trust.verifier.")

    def test_deeply_nested_evidence_is_refused(self, world: World) -> None:
        guest = world.guest()
        guest.auth()
        deep: Any = {}
        for _ in range(200):
            deep = {"a": deep}
        answer = guest.send_attestation(guest.attestation(evidence=deep))
        assert code_of(answer, 400) == "trust.verifier.evidence_shape"

    @pytest.mark.parametrize(
        "change",
        [
            {"alg": "none"},
            {"alg": "RSA1_5"},
            {"crv": "P-384"},
            {"kty": "oct"},
            {"x": "AAAA"},
            {"d": "AAAA"},
        ],
    )
    def test_a_key_that_cannot_be_sealed_to_is_refused(self, world: World, change: dict[str, str]) -> None:
        guest = world.guest()
        guest.auth()
        answer = guest.send_attestation(guest.attestation(key={**guest.key.public_jwk(), **change}))
        assert answer.status == 400

    def test_another_tpm_than_the_one_enrolled_is_refused(self, world: World) -> None:
        guest, other = world.guest(), world.guest()
        guest.auth()
        guest.tpm = other.tpm
        assert code_of(guest.send_attestation(), 403) == "tee.tpm.activation_mismatch"

    def test_a_tpm_of_a_foreign_maker_is_refused(self, world: World) -> None:
        world.ca = EndorsementCA("someone-else")
        guest = world.guest()
        guest.auth()
        assert guest.send_attestation().status == 403

    def test_without_enrolment_evidence_is_refused(self, world: World) -> None:
        guest = world.guest()
        answer = world.service.broker.auth(b'{"version":"0.4.0","tee":"tpm","extra-params":""}')
        guest.secret = bytes(32)
        guest.cookie, guest.nonce = answer.cookie, json.loads(answer.body)["nonce"]
        assert json.loads(answer.body)["extra-params"] == ""
        assert code_of(guest.send_attestation(), 403) == "tee.tpm.no_session_secret"

    def test_a_denied_attestation_is_recorded_with_what_is_known(self, world: World) -> None:
        guest = world.guest(init_data(more="x"))
        guest.auth()
        answer = guest.send_attestation(guest.attestation(data=world.data))
        record = world.admin.get_denial(error_of(answer)["denial-id"])
        assert (record.stage, record.tee, record.init_data) == ("attest", "tpm", world.data.digest_text)
        assert record.expected and record.actual, "the owner sees both values"
        assert record.expected not in answer.body.decode() and record.actual not in answer.body.decode()


class TestRelease:
    def test_unacceptable_evidence_gets_a_token_but_no_resource(self, world: World) -> None:
        guest = world.guest(launch=b"another launch").handshake()
        answer = guest.resource()
        assert code_of(answer, 403) == "appraisal.reference_values.pcr00"
        record = world.admin.get_denial(error_of(answer)["denial-id"])
        failed = [finding for finding in record.findings if not finding.ok]
        assert [finding.code for finding in failed] == ["appraisal.reference_values.pcr00", "trust.release.tier"]
        reference = world.guest().tpm.read_pcrs()[0].hex()[:16]
        assert failed[0].expected.startswith(reference) and failed[0].origin == "podvm (test)"
        assert failed[0].actual.startswith(guest.tpm.read_pcrs()[0].hex()[:16])

    def test_the_guest_never_sees_a_reference_value(self, world: World) -> None:
        guest = world.guest(launch=b"another launch").handshake()
        seen = guest.resource().body + base64.urlsafe_b64decode(guest.token.split(".")[1] + "==")
        assert world.guest().tpm.read_pcrs()[0].hex()[:16].encode() not in seen
        assert b"podvm" not in seen

    def test_a_missing_resource_is_404(self, world: World) -> None:
        guest = world.guest().handshake()
        assert code_of(guest.resource("default/model/two"), 404) == "trust.resource.missing"
        assert code_of(guest.resource("other/model/two"), 404) == "trust.resource.missing"

    def test_an_unacceptable_guest_does_not_learn_which_names_exist(self, world: World) -> None:
        guest = world.guest(launch=b"another launch").handshake()
        answers = [guest.resource(path) for path in (str(MODEL), "default/model/two")]
        assert [answer.status for answer in answers] == [403, 403]
        assert answers[0].code == answers[1].code

    def test_a_resource_without_a_rule_is_never_released(self, world: World) -> None:
        world.admin.put_resource(type(MODEL)("other", "key", "x"), CANARY)
        guest = world.guest().handshake()
        assert code_of(guest.resource("other/key/x"), 403) == "trust.release.no_rule"

    def test_a_rule_without_init_data_releases_nothing(self, world: World) -> None:
        world.admin.add_release_rule(rule(world.data, init_data=()))
        assert code_of(world.guest().handshake().resource(), 403) == "trust.release.init_data"

    def test_the_most_specific_rule_decides_alone(self, world: World) -> None:
        guest = world.guest().handshake()
        world.admin.add_release_rule(rule(world.data, str(MODEL), init_data=()))
        assert code_of(guest.resource(), 403) == "trust.release.init_data"
        world.admin.add_release_rule(rule(world.data, str(MODEL)))
        world.admin.add_release_rule(rule(world.data, init_data=()))
        assert guest.open(guest.resource()) == CANARY

    def test_another_pod_gets_nothing(self, world: World) -> None:
        guest = world.guest(init_data(more="x")).handshake()
        answer = guest.resource()
        assert code_of(answer, 403) == "trust.release.init_data"
        assert world.data.digest_text[7:23] not in answer.body.decode()

    def test_a_level_the_rule_does_not_accept(self, world: World) -> None:
        world.admin.add_release_rule(rule(world.data, insecure_allow_levels=()))
        assert code_of(world.guest().handshake().resource(), 403) == "trust.release.level"

    def test_a_level_the_appraisal_policy_does_not_accept(self, world: World) -> None:
        world.admin.put_appraisal_policy(b'{"version":1,"id":"default","tees":["tpm"]}')
        assert code_of(world.guest().handshake().resource(), 403) == "appraisal.level"

    def test_another_appraisal_policy_than_the_rule_asks_for(self, world: World) -> None:
        world.admin.add_release_rule(rule(world.data, appraisal_policy="strict"))
        assert code_of(world.guest().handshake().resource(), 403) == "trust.release.appraisal_policy"

    def test_a_policy_that_changed_since_the_guest_attested(self, world: World) -> None:
        guest = world.guest().handshake()
        world.admin.put_appraisal_policy(
            b'{"version":1,"id":"default","tees":["tpm"],"insecure_accept_levels":["measured","simulated"]}'
        )
        assert code_of(guest.resource(), 403) == "trust.release.appraisal_policy_version"

    def test_no_release_policy_at_all(self, world: World) -> None:
        world.admin.remove_release_rule("default/model/*")
        assert code_of(world.guest().handshake().resource(), 403) == "trust.release.no_rule"

    @pytest.mark.parametrize("path", ["", "a", "a/b", "a/b/c/d", "a/b/..", "../b/c", "a//c", "a/b/%2e", "a/b/c?x"])
    def test_malformed_paths(self, world: World, path: str) -> None:
        assert code_of(world.guest().handshake().resource(path), 400) == "protocol.resource.malformed"

    def test_a_stolen_cookie_or_token_gives_ciphertext_only(self, world: World) -> None:
        victim, thief = world.guest().handshake(), world.guest().handshake()
        for answer in (thief.resource(token=victim.token), thief.resource(cookie=victim.cookie)):
            assert answer.status == 200 and CANARY not in answer.body
            with pytest.raises(Refused) as caught:
                thief.open(answer)
            assert caught.value.code == "crypto.jwe.not_authentic"

    def test_a_token_of_another_pod_is_good_for_that_pods_paths_only(self, world: World) -> None:
        other = init_data(pod="two")
        world.admin.put_resource(type(MODEL)("two", "key", "x"), b"second secret")
        world.admin.add_release_rule(rule(other, "two/key/x"))
        first, second = world.guest().handshake(), world.guest(other).handshake()
        assert code_of(first.resource("two/key/x"), 403) == "trust.release.init_data"
        assert code_of(second.resource(), 403) == "trust.release.init_data"
        assert second.open(second.resource("two/key/x")) == b"second secret"

    def test_an_expired_token(self, world: World) -> None:
        guest = world.guest().handshake()
        world.clock.advance(minutes=5)
        assert code_of(guest.resource(), 401) == "crypto.jwt.expired"

    def test_past_the_deadline_nothing_is_released(self, world: World) -> None:
        guest = world.guest().handshake()
        with pytest.raises(Unavailable) as caught:
            guest.resource(seconds=0)
        assert caught.value.code == "trust.request.timeout"
        assert world.admin.list_audit() == ()

    def test_a_deleted_resource(self, world: World) -> None:
        guest = world.guest().handshake()
        world.admin.delete_resource(MODEL)
        assert code_of(guest.resource(), 404) == "trust.resource.missing"

    def test_an_expired_reference_value(self, world: World) -> None:
        world.clock.advance(days=31)
        assert code_of(world.guest().handshake().resource(), 403) == "appraisal.reference_values.expired"

    def test_an_empty_reference_set(self, world: World) -> None:
        world.admin.remove_reference_entry("podvm")
        assert code_of(world.guest().handshake().resource(), 403) == "appraisal.reference_values.empty"

    def test_without_an_appraisal_policy_nothing_is_attested(self, new_world: Factory) -> None:
        world = new_world(appraisal_policy="never-stored")
        guest = world.guest()
        guest.auth()
        assert code_of(guest.send_attestation(), 403) == "trust.verifier.no_policy"

    def test_a_removed_root_ends_it_for_the_next_handshake(self, world: World) -> None:
        from cloister.trust.store.endorsers import root_id

        for root in world.admin.list_roots():
            world.admin.remove_root(root_id(root))
        guest = world.guest()
        guest.auth()
        assert guest.send_attestation().status == 403


def code_of(answer: Answer, status: int) -> str:
    assert answer.status == status, answer.body
    code: str = error_of(answer)["code"]
    assert code == answer.code
    return code
