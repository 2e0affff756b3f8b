"""The key-release policy: strict text, one evaluator, versions kept."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from cloister.crypto.jwe import EphemeralKey, parse_recipient
from cloister.errors import FormatRefused, Refused
from cloister.protocol.resourceuri import parse_resource_path
from cloister.rats.claims import Level
from cloister.rats.result import Tier
from cloister.testing.tpm import NOW
from cloister.trust.keybroker.policy import (
    ReleaseDecision,
    ReleasePolicy,
    encode_release_policy,
    evaluate_release,
    parse_release_policy,
)
from cloister.trust.keybroker.token import VerifiedToken
from trust_world import MODEL, World, rule

POD = "sha256:" + "1" * 64
RULE = {"path": "default/model/*", "init_data": [POD], "appraisal_policy": "default"}
TOKEN = VerifiedToken(
    attestation="a-2222222222",
    tee="snp",
    tier=Tier.AFFIRMING,
    level=Level.HARDWARE,
    instance="chip",
    init_data=POD,
    policy_id="default",
    policy_digest="sha256:p",
    pcr00="",
    guest_key=parse_recipient(EphemeralKey.generate().public_jwk()),
    guest_key_id="k",
    failures=(),
    issued_at=NOW,
    expires_at=NOW + timedelta(minutes=5),
)


def policy(*rules: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({"version": 1, "id": "test", "rules": list(rules), **changes}).encode()


def decide(
    text: bytes | None, token: VerifiedToken = TOKEN, path: str = "default/model/one", **changes: Any
) -> ReleaseDecision:
    parsed = parse_release_policy(text) if text is not None else None
    arguments: dict[str, Any] = {"appraisal_policy_digest": "sha256:p", "at": NOW, **changes}
    return evaluate_release(parsed, parse_resource_path(path), token, **arguments)


def failures(decision: ReleaseDecision) -> list[str]:
    return [finding.code for finding in decision.failures]


def test_what_a_rule_allows() -> None:
    decision = decide(policy(RULE))
    assert decision.allowed and not decision.failures
    assert {finding.code for finding in decision.findings} == {
        "trust.release.tier",
        "trust.release.fresh",
        "trust.release.no_rule",
        "trust.release.revoked",
        "trust.release.init_data",
        "trust.release.level",
        "trust.release.appraisal_policy",
        "trust.release.appraisal_policy_version",
    }


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ({"tier": Tier.CONTRAINDICATED}, "trust.release.tier"),
        ({"tier": Tier.WARNING}, "trust.release.tier"),
        ({"tier": Tier.NONE}, "trust.release.tier"),
        ({"expires_at": NOW}, "trust.release.fresh"),
        ({"init_data": "sha256:" + "2" * 64}, "trust.release.init_data"),
        ({"init_data": ""}, "trust.release.init_data"),
        ({"level": Level.MEASURED}, "trust.release.level"),
        ({"level": Level.SIMULATED}, "trust.release.level"),
        ({"policy_id": "other"}, "trust.release.appraisal_policy"),
        ({"policy_digest": "sha256:old"}, "trust.release.appraisal_policy_version"),
    ],
)
def test_what_one_difference_denies(token: dict[str, Any], code: str) -> None:
    decision = decide(policy(RULE), replace(TOKEN, **token))
    assert not decision.allowed and failures(decision) == [code]
    [finding] = decision.failures
    assert finding.expected and finding.origin and finding.hint


def test_all_findings_are_collected() -> None:
    token = replace(TOKEN, tier=Tier.WARNING, level=Level.SIMULATED, init_data="x", policy_id="y")
    assert len(failures(decide(policy(RULE), token))) == 4


@pytest.mark.parametrize("text", [None, policy(), policy({**RULE, "path": "default/key/*"})])
def test_without_a_rule_nothing_is_released(text: bytes | None) -> None:
    assert failures(decide(text)) == ["trust.release.no_rule"]


def test_an_empty_list_of_init_data_releases_nothing() -> None:
    assert failures(decide(policy({**RULE, "init_data": []}))) == ["trust.release.init_data"]


def test_an_unknown_appraisal_policy_is_no_policy_in_force() -> None:
    assert failures(decide(policy(RULE), appraisal_policy_digest="")) == ["trust.release.appraisal_policy_version"]


@pytest.mark.parametrize("level", [Level.MEASURED, Level.SIMULATED])
def test_a_weaker_level_passes_by_an_insecure_field_only(level: Level) -> None:
    token = replace(TOKEN, level=level)
    assert decide(policy({**RULE, "insecure_accept_levels": [level.value]}), token).allowed
    other = Level.SIMULATED if level is Level.MEASURED else Level.MEASURED
    assert not decide(policy({**RULE, "insecure_accept_levels": [other.value]}), token).allowed


@pytest.mark.parametrize("order", [1, -1])
def test_the_most_specific_rule_wins_in_any_order(order: int) -> None:
    empty = {"init_data": []}
    rules = [{**RULE, "path": "default/*/*", **empty}, RULE, {**RULE, "path": "default/model/closed", **empty}][::order]
    assert decide(policy(*rules)).allowed
    assert not decide(policy(*rules), path="default/model/closed").allowed
    assert not decide(policy(*rules), path="default/key/x").allowed


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        policy(version=2),
        policy(id=""),
        policy(RULE, RULE),
        policy(RULE, comment="x"),
        policy({**RULE, "pth": "x"}),
        policy({**RULE, "accept_levels": ["measured"]}),
        policy({**RULE, "insecure_accept_levels": ["any"]}),
        policy({"path": "a/b/c", "init_data": [POD]}),
        policy({"path": "a/b/c", "appraisal_policy": "default"}),
        policy({**RULE, "appraisal_policy": ""}),
        *(policy({**RULE, "init_data": [digest]}) for digest in ("*", "", "sha256:", POD.upper(), POD + "0", "md5:00")),
        *(
            policy({**RULE, "path": path})
            for path in (
                "*",
                "*/*/*",
                "a",
                "a/b",
                "a/*",
                "a/*/c",
                "*/b/c",
                "a/b/c/d",
                "a/b/c*",
                "a//c",
                "a/b/../c",
                "/a/b",
            )
        ),
        b" " * (513 * 1024),
        policy(*({**RULE, "path": f"a/b/c{index}"} for index in range(1025))),
        policy({**RULE, "init_data": [POD] * 1025}),
    ],
)
def test_malformed_policies_are_refused(text: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_release_policy(text)
    assert caught.value.code == "trust.release_policy.malformed"


def test_a_policy_reads_back() -> None:
    parsed = parse_release_policy(
        policy({**RULE, "insecure_accept_levels": ["measured"], "note": "why"}, {**RULE, "path": "a/*/*"})
    )
    again = parse_release_policy(encode_release_policy(parsed.id, parsed.rules))
    assert isinstance(again, ReleasePolicy) and set(again.rules) == set(parsed.rules)


class TestVersions:
    def test_each_change_is_kept(self, world: World) -> None:
        before = world.admin.policy_history("release", "release")
        stored = world.admin.add_release_rule(rule(world.data, "a/b/c"))
        assert [item.version for item in before] == [1] and stored.version == 2
        history = world.admin.policy_history("release", "release")
        assert [item.version for item in history] == [2, 1] and history[1].text == before[0].text
        parsed = world.admin.release_policy()
        assert parsed is not None and sorted(item.path for item in parsed.rules) == ["a/b/c", "default/model/*"]

    def test_the_same_text_is_no_new_version(self, world: World) -> None:
        stored = world.admin.add_release_rule(rule(world.data))
        assert stored.version == 1

    def test_a_rule_replaces_the_one_of_its_path(self, world: World) -> None:
        world.admin.add_release_rule(rule(world.data, note="new"))
        parsed = world.admin.release_policy()
        assert parsed is not None and [item.note for item in parsed.rules] == ["new"]

    def test_a_malformed_rule_changes_nothing(self, world: World) -> None:
        with pytest.raises(FormatRefused):
            world.admin.add_release_rule(rule(world.data, "a/*/c"))
        with pytest.raises(FormatRefused):
            world.admin.put_release_policy(b"{}")
        assert len(world.admin.policy_history("release", "release")) == 1

    def test_a_missing_rule_cannot_be_removed(self, world: World) -> None:
        with pytest.raises(Refused) as caught:
            world.admin.remove_release_rule("no/such/rule")
        assert caught.value.code == "trust.release_policy.missing_rule"

    def test_concurrent_changes_lose_nothing(self, world: World) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda index: world.admin.add_release_rule(rule(world.data, f"r/t/k{index}")), range(4)))
        parsed = world.admin.release_policy()
        assert parsed is not None and len(parsed.rules) == 5

    def test_an_older_version_is_not_put_back_by_a_reader_of_the_past(self, world: World) -> None:
        from cloister.trust.store.policies import RELEASE, PolicyStore

        policies = PolicyStore(world.service.store)
        world.admin.add_release_rule(rule(world.data, "a/b/c"))
        with pytest.raises(Refused) as caught:
            policies.put(RELEASE, "release", policy(), at=NOW, replaces=1)
        assert caught.value.code == "trust.policy.conflict"


def test_a_running_service_sees_a_change_at_once(world: World) -> None:
    guest = world.guest().handshake()
    assert guest.resource().status == 200
    world.admin.remove_release_rule("default/model/*")
    assert guest.resource().status == 403
    world.admin.add_release_rule(rule(world.data, str(MODEL)))
    assert guest.resource().status == 200
