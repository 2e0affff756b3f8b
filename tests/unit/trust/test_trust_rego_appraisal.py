"""Appraisal policies in Rego, stored and applied by the service: their answer counts, and the floors stay ours.

The policy is our own, of the constructs that CoCo's have. `Bare` speaks the sample TEE, a furnished world a vTPM.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cloister.crypto.jwt import TOKEN_BYTES
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.protocol.initdata import InitData, build_initdata
from cloister.trust.keybroker import Credentials
from cloister.trust.verifier.survey import Wanted
from cloister.wire.base64 import decode_b64url
from trust_world import MODEL, Factory, Guest, World, error_of, init_data

from .test_trust_sample import LINE, Bare

pytestmark = pytest.mark.long  # seconds, all together

pytest.importorskip("regopy", reason="the extra `rego` is not installed")

POLICY = b"""package policy

import rego.v1

default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {"executables": executables, "hardware": hardware, "configuration": configuration}

executables := 3 if {
	input.sample.launch_digest in query_reference_value("launch_digest")
}

hardware := 2 if {
	input.sample.svn in query_reference_value("svn")
	input.sample.platform_version.major == query_reference_value("major_version")
	input.sample.platform_version.minor >= query_reference_value("minimum_minor_version")
}

configuration := 2 if {
	input.sample.debug == false
}

executables := 3 if {
	input.tpm.pcr11 in query_reference_value("tpm_pcr11")
}

hardware := 2 if {
	input.tpm
}

configuration := 0 if {
	input.tpm
}

extensions := [{"name": "ear.trustee.identifiers", "key": -18, "value": {"seen": seen}}]

seen := object.get(input, "init_data_claims", {})
"""
SAMPLE = {"launch_digest": ["abcde"], "svn": ["1"], "major_version": 1, "minimum_minor_version": 4}
AGENT = """package agent_policy

default AllowRequestsFailingPolicy := true

policy_data := {
  "containers": [
    {"OCI": {"Annotations": {"io.kubernetes.cri.image-name": "example.org/app:1"},
             "Process": {"User": {"UID": 65534}}}},
    {"OCI": {"Annotations": {}, "Process": {"User": {"UID": 0}}}}
  ]
}
"""


def register(admin: Any, **values: Any) -> None:
    payload = base64.b64encode(json.dumps(values).encode()).decode()
    message = {"version": "0.1.0", "type": "sample", "payload": payload}
    admin._office.references.add_named(json.dumps(message).encode())


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(decode_b64url(token.split(".")[1], path="", ceiling=TOKEN_BYTES))
    return claims


def cpu(token: str) -> dict[str, Any]:
    submodule: dict[str, Any] = claims_of(token)["submods"]["cpu0"]
    return submodule


def rego_findings(submodule: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    found = submodule["ear.cloister.findings"]
    return {item["code"]: (item["ok"], item["actual"]) for item in found if ".rego." in item["code"]}


@pytest.fixture
def bare(quick: Any) -> Iterator[Bare]:
    made = Bare(quick / "bare")
    made.admin.put_appraisal_policy(POLICY, name="default")
    yield made
    made.service.close()
    made.admin.close()


class TestSample:
    def test_without_values_the_policy_contraindicates_and_says_by_which_claim(self, bare: Bare) -> None:
        submodule = cpu(bare.attest())
        assert submodule["ear.status"] == "contraindicated"
        assert rego_findings(submodule) == {
            "appraisal.rego.executables": (False, "33"),
            "appraisal.rego.hardware": (False, "97"),
            "appraisal.rego.configuration": (True, "2"),
        }
        assert submodule["ear.trustworthiness-vector"]["hardware"] == 97
        bare.admin.put_release_rule("*", LINE)
        answer = bare.ask(bare.attest())
        assert (answer.status, error_of(answer)["code"]) == (403, "appraisal.rego.hardware")

    def test_with_values_it_is_a_warning_never_more(self, bare: Bare) -> None:
        register(bare.admin, **SAMPLE)
        submodule = cpu(bare.attest())
        assert submodule["ear.status"] == "warning"
        assert {ok for ok, _ in rego_findings(submodule).values()} == {True}
        vector = submodule["ear.trustworthiness-vector"]
        assert (vector["executables"], vector["hardware"], vector["configuration"]) == (3, 32, 32)

    def test_only_a_release_rule_lets_it_pass(self, bare: Bare) -> None:
        register(bare.admin, **SAMPLE)
        for text in (b"insecure_any_init_data = true", b"package policy\ndefault allow = true\n"):
            bare.admin.put_release_rule("*", text)
            answer = bare.ask(bare.attest(init_data()))
            assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.level")
        bare.admin.put_release_rule("*", LINE)
        assert bare.ask(bare.attest(init_data())).status == 200

    @pytest.mark.parametrize(
        ("changed", "code"),
        [
            ({"launch_digest": ["other"]}, "executables"),
            ({"svn": ["2"]}, "hardware"),
            ({"major_version": 2}, "hardware"),
            ({"minimum_minor_version": 5}, "hardware"),
        ],
    )
    def test_every_value_is_compared(self, bare: Bare, changed: dict[str, Any], code: str) -> None:
        register(bare.admin, **{**SAMPLE, **changed})
        failed = [name for name, (ok, _) in rego_findings(cpu(bare.attest())).items() if not ok]
        assert failed == [f"appraisal.rego.{code}"]

    def test_values_end(self, bare: Bare) -> None:
        register(bare.admin, **SAMPLE)
        bare.clock.advance(days=366)
        assert cpu(bare.attest())["ear.status"] == "contraindicated"


def test_it_is_a_version_of_the_policy_like_any_other(bare: Bare) -> None:
    stored = bare.admin.appraisal_policy()
    assert stored is not None and (stored.version, stored.text) == (1, POLICY)
    token = bare.attest()
    assert cpu(token)["ear.cloister.policy-digest"] == stored.digest
    bare.admin.put_release_rule("*", LINE)
    bare.admin.put_appraisal_policy(b'{"version":1,"id":"default","tees":["sample"]}')
    answer = bare.ask(token)
    assert answer.status == 403
    bare.admin._office.appraisal.roll_back("default", 1)
    assert cpu(bare.attest())["ear.status"] == "contraindicated"


@pytest.mark.parametrize(
    "text", [b"package policy\n", b"package policy\ntrust_claims := 1\n", b"package other\nx := 1\n"]
)
def test_a_policy_that_gives_no_vector_is_not_stored(bare: Bare, text: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        bare.admin.put_appraisal_policy(text, name="default")
    assert caught.value.code == "rats.rego.malformed"
    with pytest.raises(FormatRefused) as caught:
        bare.admin.put_appraisal_policy(POLICY)
    assert caught.value.code == "trust.policy.name"


@pytest.mark.parametrize(
    "body",
    [
        "trust_claims := {\"hardware\": h} if { input.sample; h := numbers.range(1, 100000000)[_]; h < 0 }\n"
        "default trust_claims := {}",
        "trust_claims := {\"hardware\": \"2\"} if { input.sample }\ndefault trust_claims := {}",
        "trust_claims := {\"nonsense\": 2} if { input.sample }\ndefault trust_claims := {}",
        "trust_claims := {\"hardware\": 2, \"executables\": 2}\n"
        "extensions := [{\"name\": \"ear.status\", \"value\": 1}] if { input.sample }",
        "trust_claims := {\"hardware\": 2, \"executables\": 2}\n"
        "extensions := [{\"name\": \"ear.cloister.level\", \"value\": \"hardware\"}] if { input.sample }",
    ],
)  # fmt: skip
def test_a_policy_that_fails_on_claims_accepts_nothing(bare: Bare, body: str) -> None:
    bare.admin.put_appraisal_policy(f"package policy\nimport rego.v1\n{body}\n".encode(), name="default")
    bare.admin.put_release_rule("*", LINE)
    token = bare.attest()
    assert cpu(token)["ear.status"] == "contraindicated"
    assert bare.ask(token).status == 403 and cpu(token)["ear.cloister.level"] == "simulated"


class TestMeasured:
    """A vTPM: level measured, which no Rego can accept."""

    @pytest.fixture
    def world(self, new_world: Factory) -> World:
        return new_world()

    def token(self, world: World, guest: Guest | None = None) -> str:
        guest = guest or world.guest()
        return guest.handshake().token

    def test_rego_alone_accepts_no_lower_level(self, world: World) -> None:
        world.admin.put_appraisal_policy(POLICY, name="default")
        register(world.admin, tpm_pcr11=[self.pcr11(world)])
        submodule = cpu(self.token(world))
        assert submodule["ear.status"] == "contraindicated"
        failed = {item["code"] for item in submodule["ear.cloister.findings"] if not item["ok"]}
        assert failed == {"appraisal.level"}
        assert {ok for ok, _ in rego_findings(submodule).values()} == {True}

    def typed(self) -> bytes:
        text = json.dumps(POLICY.decode())
        levels = 'insecure_accept_levels = ["measured"]'
        return f'version = 1\nid = "default"\ntees = ["tpm"]\n{levels}\nrego = {text}\n'.encode()

    def pcr11(self, world: World) -> str:
        value: str = cpu(self.token(world))["ear.veraison.annotated-evidence"]["tpm"]["pcr11"]
        return value

    def test_a_typed_policy_with_rego_in_it_does(self, world: World) -> None:
        world.admin.put_appraisal_policy(self.typed())
        assert cpu(self.token(world))["ear.status"] == "warning"  # executables 33
        guest = world.guest().handshake()
        answer = guest.resource()
        assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.tier")
        register(world.admin, tpm_pcr11=[self.pcr11(world)])
        guest = world.guest().handshake()
        assert cpu(guest.token)["ear.status"] == "affirming" and guest.resource().status == 200
        assert cpu(guest.token)["ear.trustworthiness-vector"]["hardware"] == 32

    def test_evidence_is_judged_again_by_it(self, world: World) -> None:
        world.admin.put_appraisal_policy(self.typed())
        self.token(world)
        register(world.admin, tpm_pcr11=[self.pcr11(world)])
        wanted = Wanted(source=world.admin.collateral(), at=world.clock())
        outcomes = {str(item.result.after) for item in world.admin.survey().run(wanted, every=True)}
        assert outcomes == {"accepted"}

    def test_without_an_engine_nothing_is_judged(self, world: World) -> None:
        from cloister.trust.verifier.inputs import AppraisalInputSource

        world.admin.put_appraisal_policy(self.typed())
        survey = world.admin.survey()
        survey._inputs = AppraisalInputSource(world.admin._store, "default")
        self.token(world)
        wanted = Wanted(source=world.admin.collateral(), at=world.clock())
        outcomes = {str(item.result.after) for item in survey.run(wanted, every=True)}
        assert outcomes == {"undecided"}


class TestInitDataClaims:
    DATA = build_initdata(
        {
            "aa.toml": '[token_configs.kbs]\nurl = "https://kbs.example"\n',
            "cdh.toml": "[image]\nmax = 3\n",
            "policy.rego": AGENT,
            "note": "a text",
            "long": "x" * 20_000,
        }
    )

    def test_entries_are_shown_under_cocos_names(self, bare: Bare) -> None:
        shown = cpu(bare.attest(self.DATA))["ear.veraison.annotated-evidence"]["init_data_claims"]
        assert shown["aa.toml"] == {"token_configs": {"kbs": {"url": "https://kbs.example"}}}
        assert shown["cdh.toml"] == {"image": {"max": 3}} and shown["note"] == "a text"
        assert len(shown["agent_policy_claims"]["containers"]) == 2
        assert "policy.rego" not in shown and "long" not in shown

    def test_a_policy_sees_them_and_adds_to_the_result(self, bare: Bare) -> None:
        submodule = cpu(bare.attest(self.DATA))
        assert submodule["ear.trustee.identifiers"]["seen"]["cdh.toml"] == {"image": {"max": 3}}

    def test_identifiers_without_rego(self, bare: Bare) -> None:
        bare.admin.put_appraisal_policy(b'{"version":1,"id":"default","tees":["sample"]}')
        submodule = cpu(bare.attest(self.DATA))
        assert submodule["ear.trustee.identifiers"] == {
            "validated": {"container_images": ["example.org/app:1"], "container_uids": [65534, 0]}
        }

    @pytest.mark.parametrize(
        "data", [None, build_initdata({"aa.toml": "= no toml", "policy.rego": "policy_data := {"})]
    )
    def test_what_is_not_there_or_does_not_parse_is_left_out(self, bare: Bare, data: InitData | None) -> None:
        bare.admin.put_appraisal_policy(b'{"version":1,"id":"default","tees":["sample"]}')
        submodule = cpu(bare.attest(data))
        annotated = submodule["ear.veraison.annotated-evidence"]
        assert annotated.get("init_data_claims") == (None if data is None else {})
        assert "ear.trustee.identifiers" not in submodule


def test_a_token_with_all_of_this_is_accepted_back(bare: Bare) -> None:
    """The strict reader of our own tokens knows the new members."""
    register(bare.admin, **SAMPLE)
    bare.admin.put_release_rule("*", LINE)
    token = bare.attest(TestInitDataClaims.DATA)
    assert bare.ask(token).status == 200
    with pytest.raises(Refused):
        from cloister.rats.ear import decode_ear

        decode_ear({**claims_of(token), "eat_profile": "other"})


def test_it_takes_turns_with_nobody(bare: Bare) -> None:
    """Appraisal has a process of its own; a request that gets no turn is told to come again, and gets no token."""
    service = bare.service
    service.settings = replace(service.settings, request_seconds=0.05)
    with service.rego._turn:
        assert cpu(bare.attest())["ear.status"] == "contraindicated"
    with service.appraisal_rego._turn, pytest.raises(Unavailable) as caught:
        bare.attest()
    assert caught.value.code == "trust.rego.busy"
    assert bare.service.broker.resource(str(MODEL), Credentials(), deadline=0).status == 401
