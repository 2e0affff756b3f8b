"""Release rules: strict text, one evaluator, the default without a rule, versions kept per prefix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from msgspec.structs import asdict

from cloister.crypto.jwe import EphemeralKey, parse_recipient
from cloister.errors import FormatRefused, Refused
from cloister.protocol.resourceuri import parse_resource_path
from cloister.rats.claims import Level
from cloister.rats.result import Tier
from cloister.testing.tpm import NOW
from cloister.trust.keybroker.decision import RegoAnswer, ReleaseDecision, ReleaseFacts, evaluate_release
from cloister.trust.keybroker.policy import ReleaseRules, encode_release_rule, parse_legacy_policy, parse_release_rule
from cloister.trust.keybroker.token import VerifiedToken
from cloister.trust.store.policies import RELEASE, PolicyStore
from trust_world import MODEL, World, rule

POD = "sha256:" + "1" * 64
OTHER_POD = "sha256:" + "2" * 64
RULE: dict[str, Any] = {"init_data": [POD], "appraisal_policy": "default"}
ANY_POD: dict[str, Any] = {"insecure_any_init_data": True}
HERE = "default/model/*"
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
SAMPLE = replace(TOKEN, tee="sample", tier=Tier.WARNING, level=Level.SIMULATED, init_data="")


def rules(revoked: tuple[str, ...] = (), **by_prefix: Mapping[str, Any]) -> ReleaseRules:
    """Rules by prefix, written as JSON; `__` stands for a slash and `ALL` for a star, as names of arguments go."""
    named = {prefix.replace("__", "/").replace("ALL", "*"): body for prefix, body in by_prefix.items()}
    parsed = {prefix: parse_release_rule(prefix, json.dumps(body).encode()) for prefix, body in named.items()}
    return ReleaseRules(rules=parsed, revoked=frozenset(revoked))


def one(body: Mapping[str, Any]) -> ReleaseRules:
    return rules(default__model__ALL=body)


def decide(
    given: ReleaseRules, token: VerifiedToken = TOKEN, path: str = "default/model/one", **facts: Any
) -> ReleaseDecision:
    known = ReleaseFacts(**{"appraisal_policy_digest": "sha256:p", **facts})
    return evaluate_release(given, parse_resource_path(path), token, known, at=NOW)


def failures(decision: ReleaseDecision) -> list[str]:
    return [finding.code.removeprefix("trust.release.") for finding in decision.failures]


def test_what_a_rule_allows() -> None:
    decision = decide(one({**RULE, "tees": ["snp"]}))
    assert decision.allowed and not decision.failures
    assert [finding.code.removeprefix("trust.release.") for finding in decision.findings] == [
        *("fresh", "no_rule", "revoked", "level", "tier", "init_data", "tees", "appraisal_policy"),
        "appraisal_policy_version",
    ]


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ({"tier": Tier.CONTRAINDICATED}, "tier"),
        ({"tier": Tier.WARNING}, "tier"),
        ({"tier": Tier.NONE}, "tier"),
        ({"expires_at": NOW}, "fresh"),
        ({"init_data": OTHER_POD}, "init_data"),
        ({"init_data": ""}, "init_data"),
        ({"level": Level.MEASURED}, "level"),
        ({"level": Level.SIMULATED}, "level"),
        ({"policy_id": "other"}, "appraisal_policy"),
        ({"policy_digest": "sha256:old"}, "appraisal_policy_version"),
        ({"tee": "tdx"}, "tees"),
    ],
)
def test_what_one_difference_denies(token: dict[str, Any], code: str) -> None:
    decision = decide(one({**RULE, "tees": ["snp"]}), replace(TOKEN, **token))
    assert not decision.allowed and failures(decision) == [code]
    [finding] = decision.failures
    assert finding.expected and finding.origin and finding.hint


@pytest.mark.parametrize(
    "change",
    [
        {"tier": Tier.CONTRAINDICATED},
        {"expires_at": NOW},
        {"init_data": OTHER_POD},
        {"level": Level.MEASURED},
        {"policy_id": "other"},
        {"policy_digest": "sha256:old"},
        {"tee": "tdx"},
    ],
)
def test_an_answer_for_one_guest_is_never_that_for_another(change: dict[str, Any]) -> None:
    """Answers are remembered with the rules: whatever decides must tell them apart."""
    given = one({**RULE, "tees": ["snp"]})
    assert decide(given).allowed
    assert not decide(given, replace(TOKEN, **change)).allowed
    assert decide(given).allowed, "nor the other way round"
    assert not decide(given, appraisal_policy_digest="sha256:new").allowed


def test_answers_that_are_remembered_are_bounded() -> None:
    given = one(RULE)
    for number in range(3000):
        decide(given, replace(TOKEN, init_data=f"sha256:{number:064}"))
    assert len(given.judged) <= 1024


def test_all_findings_are_collected() -> None:
    token = replace(TOKEN, tier=Tier.WARNING, level=Level.SIMULATED, init_data="x", policy_id="y")
    assert len(failures(decide(one(RULE), token))) == 4


class TestWithoutARule:
    @pytest.mark.parametrize("given", [rules(), rules(default__key__ALL=RULE)])
    def test_nothing_is_released(self, given: ReleaseRules) -> None:
        decision = decide(given)
        assert failures(decision) == ["no_rule"]
        assert "cloister refs propose" in decision.failures[0].hint

    def test_but_to_affirmed_hardware_whose_init_data_the_reference_values_name(self) -> None:
        assert decide(rules(), replace(TOKEN, init_data_referenced=True)).allowed

    @pytest.mark.parametrize(
        ("token", "code"),
        [
            ({"level": Level.MEASURED}, "level"),
            ({"level": Level.SIMULATED}, "level"),
            ({"tier": Tier.WARNING}, "tier"),
            ({"tier": Tier.CONTRAINDICATED}, "tier"),
            ({"init_data": ""}, "no_rule"),
            ({"policy_digest": "sha256:old"}, "appraisal_policy_version"),
        ],
    )
    def test_and_never_to_others(self, token: dict[str, Any], code: str) -> None:
        changed = replace(TOKEN, **{"init_data_referenced": True, **token})
        assert failures(decide(rules(), changed)) == [code]

    def test_a_revocation_counts(self) -> None:
        token = replace(TOKEN, init_data_referenced=True)
        assert failures(decide(rules(revoked=(POD,)), token)) == ["revoked"]
        assert decide(rules(revoked=(OTHER_POD,)), token).allowed


class TestInitData:
    @pytest.mark.parametrize("level", [Level.HARDWARE, Level.MEASURED])
    def test_a_rule_that_names_none_releases_nothing_and_says_how_to(self, level: Level) -> None:
        decision = decide(one({"insecure_allow_levels": ["measured"]}), replace(TOKEN, level=level))
        assert failures(decision) == ["init_data"]
        assert "add `init_data" in decision.failures[0].hint and decision.failures[0].actual == POD

    def test_any_is_asked_for_in_words(self) -> None:
        assert decide(one(ANY_POD)).allowed
        assert decide(one(ANY_POD), replace(TOKEN, init_data="")).allowed

    def test_any_is_not_revoked(self) -> None:
        assert failures(decide(rules(revoked=(POD,), default__model__ALL=ANY_POD))) == ["revoked"]
        assert failures(decide(one({**ANY_POD, "revoked": [POD]}))) == ["revoked"]

    def test_revoked_wins_over_named(self) -> None:
        assert failures(decide(one({**RULE, "revoked": [POD]}))) == ["revoked"]


def test_an_unknown_appraisal_policy_is_no_policy_in_force() -> None:
    assert failures(decide(one(RULE), appraisal_policy_digest="")) == ["appraisal_policy_version"]
    unset = replace(TOKEN, policy_digest="")
    assert failures(decide(one(RULE), unset, appraisal_policy_digest="")) == ["appraisal_policy_version"]


@pytest.mark.parametrize("level", [Level.MEASURED, Level.SIMULATED])
def test_a_weaker_level_passes_by_an_insecure_field_only(level: Level) -> None:
    token = replace(TOKEN, level=level)
    assert decide(one({**RULE, "insecure_allow_levels": [level.value]}), token).allowed
    other = Level.SIMULATED if level is Level.MEASURED else Level.MEASURED
    assert failures(decide(one({**RULE, "insecure_allow_levels": [other.value]}), token)) == ["level"]


class TestSample:
    LINE = parse_release_rule("*", b'insecure_allow_levels = ["simulated"]\n')

    def test_one_line_is_enough(self) -> None:
        given = ReleaseRules(rules={"*": self.LINE})
        assert decide(given, SAMPLE).allowed
        assert decide(given, replace(SAMPLE, init_data=POD)).allowed

    def test_nothing_else_is(self) -> None:
        for body in ({}, ANY_POD, {"init_data": [POD]}, {"insecure_allow_levels": ["measured"]}):
            found = failures(decide(rules(ALL=body), replace(SAMPLE, init_data=POD)))
            assert {"level", "tier"} <= set(found), body
        assert {"level", "tier", "no_rule"} <= set(failures(decide(rules(), SAMPLE)))

    def test_rego_is_not_either(self) -> None:
        given = ReleaseRules(rules={"*": parse_release_rule("*", b"package policy\ndefault allow = true\n")})
        decision = decide(given, SAMPLE, rego=RegoAnswer(allowed=True, said="true"))
        assert failures(decision) == ["level"]

    def test_it_makes_nothing_of_other_levels_pass(self) -> None:
        given = ReleaseRules(rules={"*": self.LINE})
        assert failures(decide(given)) == ["init_data"]
        assert failures(decide(given, replace(TOKEN, tier=Tier.WARNING))) == ["tier", "init_data"]
        assert failures(decide(given, replace(TOKEN, level=Level.MEASURED))) == ["level", "init_data"]

    def test_what_refuses_the_evidence_refuses_the_release(self) -> None:
        given = ReleaseRules(rules={"*": self.LINE})
        assert failures(decide(given, replace(SAMPLE, tier=Tier.CONTRAINDICATED))) == ["tier"]

    def test_a_list_of_init_data_is_a_list(self) -> None:
        given = rules(ALL={"insecure_allow_levels": ["simulated"], "init_data": [POD]})
        assert failures(decide(given, SAMPLE)) == ["init_data"]
        assert decide(given, replace(SAMPLE, init_data=POD)).allowed

    def test_an_empty_list_is_not_a_free_one(self) -> None:
        """Or withdrawing the last pod would open the resource to every other guest of this level."""
        given = rules(ALL={"insecure_allow_levels": ["simulated"], "init_data": []})
        assert failures(decide(given, SAMPLE)) == ["init_data"]
        assert failures(decide(given, replace(SAMPLE, init_data="sha256:" + "7" * 64))) == ["init_data"]


class TestRego:
    GIVEN = ReleaseRules(rules={"*": parse_release_rule("*", b"# why\npackage policy\nallow := true\n")})

    def test_it_decides(self) -> None:
        assert decide(self.GIVEN, rego=RegoAnswer(allowed=True, said="true")).allowed
        assert failures(decide(self.GIVEN, rego=RegoAnswer(allowed=False, said="false"))) == ["rego"]
        assert failures(decide(self.GIVEN)) == ["rego"], "nobody asked it"

    @pytest.mark.parametrize(
        ("token", "code"),
        [
            ({"expires_at": NOW}, "fresh"),
            ({"level": Level.MEASURED}, "level"),
            ({"policy_digest": "sha256:old"}, "appraisal_policy_version"),
        ],
    )
    def test_it_cannot_lower_the_floor(self, token: dict[str, Any], code: str) -> None:
        decision = decide(self.GIVEN, replace(TOKEN, **token), rego=RegoAnswer(allowed=True, said="true"))
        assert failures(decision) == [code]

    def test_nor_lift_a_revocation(self) -> None:
        given = replace(self.GIVEN, revoked=frozenset({POD}))
        assert failures(decide(given, rego=RegoAnswer(allowed=True, said="true"))) == ["revoked"]


class TestOthers:
    APPROVED: ClassVar[dict[str, Any]] = {**RULE, "approvals": {"need": 2, "of": ["ann", "ben", "eve@x"]}}

    @pytest.mark.parametrize(
        ("names", "allowed"),
        [((), False), (("ann",), False), (("ann", "mallory"), False), (("ann", "eve@x"), True)],
    )
    def test_approvals(self, names: tuple[str, ...], allowed: bool) -> None:
        decision = decide(one(self.APPROVED), approved_by=frozenset(names))
        assert failures(decision) == ([] if allowed else ["approvals"])

    @pytest.mark.parametrize(("witnesses", "allowed"), [(0, False), (1, False), (2, True), (3, True)])
    def test_witnesses(self, witnesses: int, allowed: bool) -> None:
        decision = decide(one({**RULE, "witnesses": 2}), witnesses=witnesses)
        assert failures(decision) == ([] if allowed else ["witnesses"])


def test_the_most_specific_rule_decides_alone() -> None:
    nothing: dict[str, Any] = {"note": "nothing"}
    given = rules(ALL=nothing, default__ALL__ALL=nothing, default__model__ALL=RULE, default__model__closed=nothing)
    assert decide(given).allowed
    for path in ("default/model/closed", "default/key/x", "other/key/x"):
        decision = decide(given, path=path)
        assert failures(decision) == ["init_data"] and decision.rule is not None and decision.rule.note == "nothing"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" \n",
        b"[]",
        b"{",
        b"x",
        b"init_data = 1",
        b'inti_data = ["%s"]' % POD.encode(),
        b'insecure_accept_levels = ["measured"]',
        b'insecure_allow_levels = ["any"]',
        b'insecure_allow_levels = ["hardware"]',
        b'insecure_allow_levels = "simulated"',
        b"insecure_any_init_data = 1",
        b'insecure_any_init_data = true\ninit_data = ["%s"]' % POD.encode(),
        b"lease_seconds = -1",
        b"lease_seconds = 86401",
        b"lease_seconds = 1.5",
        b"witnesses = 17",
        b"approvals = 2",
        b'approvals = {need = 0, of = ["a"]}',
        b'approvals = {need = 2, of = ["a"]}',
        b'approvals = {need = 1, of = ["a", "a"]}',
        b'approvals = {need = 1, of = [""]}',
        b'prefix = "a/b/c"',
        b'rego = "package policy"',
        b"package policy\n\xff",
        *(
            json.dumps({"init_data": [digest]}).encode()
            for digest in ("*", "", "sha256:", POD.upper(), POD + "0", "md5:00")
        ),
        json.dumps({"init_data": [POD] * 1025}).encode(),
        json.dumps({"revoked": [POD] * 1025}).encode(),
        b"#" * (513 * 1024),
    ],
)
def test_malformed_rules_are_refused(text: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_release_rule(HERE, text)
    assert caught.value.code == "trust.release_policy.malformed"


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "*/*/*", "**", "a", "a/b", "a/*", "a/*/c", "*/b/c", "a/b/c/d", "a/b/c*", "a//c", "a/b/../c", "/a/b"),
        "release",
    ],
)
def test_what_is_no_prefix(prefix: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_release_rule(prefix, b"note = 'x'")
    assert caught.value.code == "trust.release_policy.malformed"


def test_toml_and_json_say_the_same() -> None:
    text = b"""
    init_data = ["%s"]
    insecure_allow_levels = ["measured"]
    lease_seconds = 60
    witnesses = 2
    tees = ["tpm"]
    note = "why"
    [approvals]
    need = 1
    of = ["ann"]
    """ % POD.encode()
    parsed = parse_release_rule(HERE, text)
    again = parse_release_rule(HERE, encode_release_rule(parsed))
    assert again.digest != parsed.digest and again.lease_seconds == 60 and again.approvals is not None
    assert {**asdict(again), "digest": ""} == {**asdict(parsed), "digest": ""}


class TestEarlierReleases:
    DOCUMENT = json.dumps(
        {
            "version": 1,
            "id": "shop",
            "rules": [
                {
                    "path": HERE,
                    "init_data": [POD],
                    "appraisal_policy": "default",
                    "insecure_accept_levels": ["measured", "hardware"],
                    "revoked": [OTHER_POD],
                    "note": "n",
                },
                {"path": "a/b/c", "init_data": [], "appraisal_policy": "default"},
            ],
        }
    ).encode()

    def test_their_document_is_read(self) -> None:
        first, second = parse_legacy_policy(self.DOCUMENT)
        assert (first.prefix, first.init_data, first.insecure_allow_levels) == (HERE, (POD,), (Level.MEASURED,))
        assert (first.revoked, first.note, second.prefix) == ((OTHER_POD,), "n", "a/b/c")

    @pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"version":2,"id":"x","rules":[]}'])
    def test_malformed_ones_are_refused(self, text: bytes) -> None:
        with pytest.raises(FormatRefused):
            parse_legacy_policy(text)

    def test_it_stays_in_force_and_the_first_change_splits_it(self, world: World) -> None:
        store = PolicyStore(world.service.store)
        world.admin.remove_release_rule(HERE)
        document = json.loads(self.DOCUMENT)
        document["rules"][0]["init_data"] = [world.data.digest_text]
        store.put(RELEASE, "release", json.dumps(document).encode(), at=NOW)
        guest = world.guest().handshake()
        assert guest.resource().status == 403, "the newer removal of this prefix counts"
        document["rules"][0]["path"] = "default/*/*"
        store.put(RELEASE, "release", json.dumps(document).encode(), at=NOW)
        assert guest.resource().status == 200
        world.admin.add_release_rule(rule(world.data, "x/y/z"))
        assert guest.resource().status == 200
        assert set(world.admin.release_rules().rules) == {"default/*/*", "a/b/c", "x/y/z"}
        left = store.current(RELEASE, "release")
        assert left is not None and left.text == b"" and left.version == 3
        world.admin.remove_release_rule("default/*/*")
        assert guest.resource().status == 403


class TestVersions:
    def test_each_change_is_kept_by_prefix(self, world: World) -> None:
        stored = world.admin.add_release_rule(rule(world.data, note="new"))
        other = world.admin.add_release_rule(rule(world.data, "a/b/c"))
        assert (stored.version, other.version) == (2, 1)
        history = world.admin.policy_history("release", HERE)
        assert [item.version for item in history] == [2, 1] and history[0].text == stored.text
        assert set(world.admin.release_rules().rules) == {"a/b/c", HERE}

    def test_the_same_text_is_no_new_version(self, world: World) -> None:
        assert world.admin.add_release_rule(rule(world.data)).version == 1

    def test_the_owners_own_text_is_kept(self, world: World) -> None:
        text = b'# mine\ninit_data = ["%s"]\n' % POD.encode()
        stored = world.admin.put_release_rule("a/b/c", text)
        world.admin.add_release_rule(rule(world.data, "d/e/f"))
        assert stored.text == text and world.admin.policy_history("release", "a/b/c")[0].text == text
        assert world.admin.release_rules().rules["a/b/c"].digest == stored.digest

    def test_a_removal_is_a_version(self, world: World) -> None:
        removed = world.admin.remove_release_rule(HERE)
        assert (removed.version, removed.text) == (2, b"")
        assert world.admin.add_release_rule(rule(world.data)).version == 3

    def test_a_malformed_rule_changes_nothing(self, world: World) -> None:
        with pytest.raises(FormatRefused):
            world.admin.add_release_rule(rule(world.data, "a/*/c"))
        with pytest.raises(FormatRefused):
            world.admin.put_release_rule(HERE, b"{}x")
        assert len(world.admin.policy_history("release", HERE)) == 1

    def test_a_missing_rule_cannot_be_removed(self, world: World) -> None:
        with pytest.raises(Refused) as caught:
            world.admin.remove_release_rule("no/such/rule")
        assert caught.value.code == "trust.release_policy.missing_rule"

    def test_approving_where_a_rule_has_no_list(self, world: World) -> None:
        world.admin.put_release_rule(str(MODEL), b"insecure_any_init_data = true")
        with pytest.raises(Refused) as caught:
            world.admin.approve(POD, [MODEL])
        assert caught.value.code == "trust.release_policy.not_a_list"

    def test_concurrent_changes_lose_nothing(self, world: World) -> None:
        from concurrent.futures import ThreadPoolExecutor

        paths = [type(MODEL)("r", "t", f"k{index}") for index in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda index: world.admin.approve(f"sha256:{index:064x}", paths), range(4)))
        found = world.admin.release_rules().rules
        assert {len(found[str(path)].init_data) for path in paths} == {4}

    def test_an_older_version_is_not_put_back_by_a_reader_of_the_past(self, world: World) -> None:
        from cloister.trust.keybroker.rulebook import RuleBook

        world.admin.add_release_rule(rule(world.data, note="new"))
        with pytest.raises(Refused) as caught:
            RuleBook(world.service.store).put(HERE, b"note = 'x'", at=NOW, replaces=1)
        assert caught.value.code == "trust.policy.conflict"


def test_a_running_service_sees_a_change_at_once(world: World) -> None:
    guest = world.guest().handshake()
    assert guest.resource().status == 200
    world.admin.remove_release_rule("default/model/*")
    assert guest.resource().status == 403
    world.admin.add_release_rule(rule(world.data, str(MODEL)))
    assert guest.resource().status == 200
