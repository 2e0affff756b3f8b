"""CoCo's sample TEE against a service that was told one line, and against one that was told nothing."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.jwe import EphemeralKey
from cloister.protocol.initdata import InitData
from cloister.protocol.kbs import SealedResource
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry
from cloister.testing.tpm import NOW
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker import Answer, Credentials
from cloister.trust.service import TrustService
from cloister.trust.settings import TrustSettings
from trust_world import CANARY, MODEL, Clock, Factory, error_of, init_data, report_data, rule

LINE = b'insecure_allow_levels = ["simulated"]\n'


class Bare:
    """A service of which nobody has done anything but store one resource."""

    def __init__(self, state: Path) -> None:
        self.clock = Clock()
        self.admin = TrustAdmin(state, clock=self.clock)
        self.service = TrustService(TrustSettings(state=state), clock=self.clock)
        self.admin.put_resource(MODEL, CANARY)
        self.key = EphemeralKey.generate()

    def attest(self, data: InitData | None = None, **evidence: Any) -> str:
        """Do the handshake as CoCo's guest does; return the token."""
        body = {"version": "0.4.0", "tee": "sample", "extra-params": ""}
        answer = self.service.broker.auth(json.dumps(body).encode())
        assert answer.status == 200, answer.body
        nonce, key = json.loads(answer.body)["nonce"], self.key.public_jwk()
        bound = base64.b64encode(report_data(nonce, key)).decode()
        message = {
            "init-data": {"format": "toml", "body": data.text.decode()} if data else None,
            "runtime-data": {"nonce": nonce, "tee-pubkey": key},
            "tee-evidence": {
                "primary_evidence": {"svn": "1", "report_data": bound, **evidence},
                "additional_evidence": "",
            },
        }
        done = self.service.broker.attest(json.dumps(message).encode(), Credentials(cookie=answer.cookie))
        assert done.status == 200, done.body
        token: str = json.loads(done.body)["token"]
        return token

    def ask(self, token: str) -> Answer:
        return self.service.broker.resource(str(MODEL), Credentials(bearer=token), deadline=time.monotonic() + 5)


@pytest.fixture
def bare(quick: Path) -> Iterator[Bare]:
    made = Bare(quick / "bare")
    yield made
    made.service.close()
    made.admin.close()


@pytest.mark.parametrize("prefix", ["*", "default/*/*", "default/model/*", "default/model/one"])
@pytest.mark.parametrize("data", [None, init_data()])
def test_one_line_serves_it_whatever_its_init_data(bare: Bare, prefix: str, data: InitData | None) -> None:
    bare.admin.put_release_rule(prefix, LINE)
    answer = bare.ask(bare.attest(data))
    assert answer.status == 200, answer.body
    assert bare.key.open(SealedResource(**json.loads(answer.body))) == CANARY
    [row] = bare.admin.list_audit()
    assert (row.decision, row.level, row.tee) == ("released", "simulated", "sample")
    assert row.init_data == (data.digest_text if data else "")
    record = bare.admin.get_appraisal(row.attestation)
    assert record is not None and record.tier == "warning" and "unsigned" in record.unchecked[0]


def test_without_a_rule_it_gets_nothing(bare: Bare) -> None:
    answer = bare.ask(bare.attest(init_data()))
    assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.no_rule")


@pytest.mark.parametrize(
    "text",
    [
        b"insecure_any_init_data = true",
        b'insecure_allow_levels = ["measured"]',
        b'init_data = ["%s"]' % init_data().digest_text.encode(),
        b'tees = ["sample"]',
    ],
)
def test_nothing_else_serves_it(bare: Bare, text: bytes) -> None:
    bare.admin.put_release_rule("*", text)
    answer = bare.ask(bare.attest(init_data()))
    assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.level")


def test_an_appraisal_policy_that_accepts_it_changes_nothing(bare: Bare) -> None:
    bare.admin.put_appraisal_policy(
        b'{"version":1,"id":"default","tees":["sample"],"insecure_accept_levels":["simulated"]}'
    )
    assert bare.ask(bare.attest(init_data())).status == 403
    bare.admin.put_release_rule("*", LINE)
    assert bare.ask(bare.attest(init_data())).status == 200


def test_an_appraisal_policy_that_does_not_name_it_changes_nothing(new_world: Factory, bare: Bare) -> None:
    bare.admin.put_appraisal_policy(b'{"version":1,"id":"default","tees":["tpm"]}')
    bare.admin.put_release_rule("*", LINE)
    assert bare.ask(bare.attest()).status == 200


def test_the_line_serves_no_measured_guest(new_world: Factory) -> None:
    world = new_world()
    world.admin.put_release_rule("default/model/*", LINE)
    answer = world.guest().handshake().resource()
    assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.level")


def test_a_revoked_init_data_is_revoked_here_too(bare: Bare) -> None:
    bare.admin.put_release_rule("*", LINE)
    bare.admin.revoke(init_data().digest_text)
    answer = bare.ask(bare.attest(init_data()))
    assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.revoked")


class TestTwoTenants:
    """Two brokers over one store: nothing that one did is seen, counted or honoured by the other."""

    @pytest.fixture
    def other(self, bare: Bare) -> Iterator[Bare]:
        """The same service as tenant `acme` sees it."""
        from dataclasses import replace

        from cloister.trust.keybroker import KeyBroker
        from cloister.trust.keybroker.rulebook import RuleBook
        from cloister.trust.verifier import CollateralSource, VerifierService

        parts, service = bare.service.broker._parts, bare.service
        verifier = VerifierService(
            service.store,
            service.keys.token_issuer,
            policy_id="default",
            collateral=CollateralSource(service.settings.state),
            tenant="acme",
        )
        RuleBook(service.store, tenant="acme").put("*", LINE, at=NOW)
        kept = service.broker
        bare.key = EphemeralKey.generate()
        service._brokers["default"] = KeyBroker(replace(parts, tenant="acme", verifier=verifier))
        yield bare
        service._brokers["default"] = kept

    def test_evidence_and_decisions_are_kept_apart(self, other: Bare) -> None:
        from cloister.trust.store.records import RecordStore

        token = other.attest()
        answer = other.ask(token)
        assert (answer.status, error_of(answer)["code"]) == (404, "trust.resource.missing")
        mine, theirs = RecordStore(other.service.store), RecordStore(other.service.store, tenant="acme")
        [row] = theirs.list_audit()
        assert mine.list_audit() == () and row.denial
        assert theirs.appraisal(row.attestation) is not None and mine.appraisal(row.attestation) is None
        assert theirs.evidence(row.attestation) is not None and mine.evidence(row.attestation) is None
        assert row.attestation in {item.id for item in [theirs.appraisal(row.attestation)] if item}

    def test_rules_and_tokens_are_not_shared(self, other: Bare, bare: Bare) -> None:
        from dataclasses import replace

        from cloister.trust.keybroker import KeyBroker

        token = other.attest()
        default = KeyBroker(replace(other.service.broker._parts, tenant="default"))
        answer = default.resource(str(MODEL), Credentials(bearer=token), deadline=time.monotonic() + 5)
        assert (answer.status, error_of(answer)["code"]) == (401, "trust.token.foreign")
        assert bare.admin.release_rules().rules == {}


class TestBuiltInPolicy:
    """What applies while no appraisal policy is stored."""

    def test_hardware_without_reference_values_is_told_how_to_begin(self, quick: Path) -> None:
        from evidence_world import Site, nitro_machine

        site = Site(quick / "site", nitro_machine())
        PolicyEraser(site.admin).erase()
        site.admin.remove_reference_entry("image")
        guest = site.guest()
        assert guest.attest().status == 200
        answer = guest.resource()
        assert (answer.status, error_of(answer)["code"]) == (403, "appraisal.reference_values.empty")
        assert "cloister refs propose" in error_of(answer)["hint"]
        site.close()

    def test_hardware_whose_init_data_reference_values_name_needs_no_rule(self, quick: Path) -> None:
        from dataclasses import replace

        from evidence_world import Site, nitro_machine

        site = Site(quick / "site", nitro_machine())
        PolicyEraser(site.admin).erase()
        site.admin.remove_release_rule("default/model/*")
        guest = site.guest()
        guest.attest()
        assert error_of(guest.resource())["code"] == "trust.release.no_rule"
        [entry] = site.admin.list_reference_entries()
        site.admin.add_reference_entries([replace(entry, init_data=(site.data.digest_text,))])
        guest = site.guest()
        guest.attest()
        assert guest.open(guest.resource()) == CANARY
        site.admin.revoke(site.data.digest_text)
        assert error_of(guest.resource())["code"] == "trust.release.revoked"
        site.close()

    def test_measured_guests_are_not_acceptable(self, new_world: Factory) -> None:
        world = new_world()
        PolicyEraser(world.admin).erase()
        answer = world.guest().handshake().resource()
        assert (answer.status, error_of(answer)["code"]) == (403, "appraisal.level")


class PolicyEraser:
    """Puts a service into the state before its first appraisal policy, which its owner cannot do any more."""

    def __init__(self, admin: TrustAdmin) -> None:
        self._admin = admin

    def erase(self) -> None:
        from sqlalchemy import delete

        from cloister.trust.store.database import bump_configuration
        from cloister.trust.store.schema import policies

        def work(connection: Any) -> None:
            connection.execute(delete(policies).where(policies.c.kind == "appraisal"))
            bump_configuration(connection)

        self._admin._store.write(work)


def test_the_world_of_these_tests_can_tell(new_world: Factory) -> None:
    """The measured guest of the other tests is served by its own rule."""
    world = new_world()
    world.admin.add_release_rule(rule(world.data))
    assert world.guest().handshake().resource().status == 200
    assert isinstance(world.admin.list_reference_entries()[0], ReferenceEntry) and NOW


@pytest.mark.parametrize("withdraw", ["revoke", "forget"])
@pytest.mark.parametrize("owned", [b"", b'insecure_allow_levels = ["simulated"]\ninit_data = []\nwitnesses = 1\n'])
def test_to_withdraw_the_last_pod_opens_nothing_to_others(bare: Bare, withdraw: str, owned: bytes) -> None:
    """A list that became empty is nobody, also in a rule that stays for what else its owner asked for."""
    pod = init_data()
    if owned:
        bare.admin.put_release_rule(str(MODEL), owned)
    bare.admin.approve(pod.digest_text, [MODEL], insecure_accept_levels=[Level.SIMULATED])
    getattr(bare.admin, withdraw)(pod.digest_text)
    denied = error_of(bare.ask(bare.attest()))
    record = bare.admin.get_denial(denied["denial-id"])
    codes = {finding.code for finding in record.findings if finding.refuses}
    assert codes & {"trust.release.init_data", "trust.release.no_rule"}
