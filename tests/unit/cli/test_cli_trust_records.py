"""`cloister audit reappraise` and `cloister identity` over a state directory: words, JSON and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.errors import CloisterError, FormatRefused, Refused
from cloister.protocol.admin.reappraisal import SurveyRequest
from cloister.sdk.administration import AdministrationTarget, open_administration
from evidence_world import Site, snp_machine
from identity_world import DOMAIN, grant, policy
from trust_world import quick_directory

pytestmark = pytest.mark.long  # seconds, all together

AT = ("--at", "2026-01-01T12:00:00+00:00")


@pytest.fixture
def site() -> Iterator[Site]:
    with quick_directory() as directory:
        made = Site(directory, snp_machine()).fetch()
        guest = made.guest()
        assert guest.attest().status == 200
        guest.open(guest.resource())
        yield made
        made.close()


def run(site: Site, *arguments: str) -> tuple[int, str]:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    done = CliRunner().invoke(app, [*arguments[:cut], "--state", str(site.state), *arguments[cut:]])
    if isinstance(done.exception, CloisterError):
        raise done.exception
    return done.exit_code, done.stdout


def test_what_is_in_force_fails_nobody(site: Site) -> None:
    code, text = run(site, "audit", "reappraise", *AT)
    assert (code, text) == (0, "1 judged again for 2026-01-01T12:00+00:00: 0 would fail that were accepted\n")


def test_a_policy_that_fails_a_pod_says_which_and_why(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "tomorrow.toml"
    file.write_text('version = 1\nid = "tomorrow"\ntees = ["snp"]\n[snp]\nminimum_tcb = {microcode = 255}\n')
    code, text = run(site, "audit", "reappraise", *AT, "--policy", str(file))
    assert code == 1
    for words in (
        "1 would fail",
        "accepted -> refused",
        "at least microcode 255",
        "holds      default/model/one",
        "CLS-A-",
    ):
        assert words in text
    code, text = run(site, "audit", "reappraise", *AT, "--policy", str(file), "--output", "json")
    result = json.loads(text)
    assert code == 1 and (result["schema"], result["judged"], result["failing"], result["changed"]) == (1, 1, 1, 1)
    [item] = result["results"]
    assert item["fails"] and item["releases"][0]["resource"] == "default/model/one"
    assert {change["code"] for change in item["changes"]} == {"appraisal.snp.minimum_tcb"}


def test_reference_values_of_a_file_and_another_date(site: Site, tmp_path: Path) -> None:
    from cloister.rats.reference import encode_reference_entry

    [entry] = site.admin.list_reference_entries()
    file = tmp_path / "refs.json"
    file.write_bytes(encode_reference_entry(replace(entry, not_after=site.clock.now + timedelta(days=1))))
    assert run(site, "audit", "reappraise", *AT, "--refs", str(file))[0] == 0
    code, text = run(site, "audit", "reappraise", "--at", "2026-01-03", "--refs", str(file))
    assert code == 1 and "expired" in text
    code, text = run(site, "audit", "reappraise", "--at", "2027-06-01")
    assert code == 1 and "accepted -> refused" in text


def test_a_survey_comes_in_pages(site: Site) -> None:
    """Over the network as here: each kept result once, the oldest first, whatever the length of a page."""
    assert site.guest().attest().status == 200
    target = AdministrationTarget(server="", token_file=None, ca_file=None, tenant="", state=site.state)
    with open_administration(target) as client:
        whole = client.survey(SurveyRequest(every=True))
        first = client.survey(SurveyRequest(every=True, limit=1))
        second = client.survey(SurveyRequest(every=True, limit=1, after=first.next))
        assert [*first.results, *second.results] == whole.results and len(whole.results) == whole.kept == 2
        assert client.survey(SurveyRequest(every=True, limit=1, after=second.next)).results == []
        assert whole.next == 0 and first.next and second.next
        for wrong in (
            SurveyRequest(policy="no policy"),
            SurveyRequest(references="[]["),
            SurveyRequest(at=datetime.now()),
        ):
            with pytest.raises(FormatRefused):
                client.survey(wrong)


def test_collateral_is_not_given_to_a_server(site: Site, tmp_path: Path) -> None:
    words = ["audit", "reappraise", "--server", "https://127.0.0.1:1", "--token-file", str(tmp_path / "t")]
    done = CliRunner().invoke(app, [*words, "--collateral", str(tmp_path)])
    assert isinstance(done.exception, Refused)
    assert done.exception.code == "sdk.administration.collateral"


@pytest.mark.parametrize("text", ["tomorrow", "+7", "+xd", "7d", "+99999999999d"])
def test_a_moment_that_is_none_is_a_usage_error(site: Site, text: str) -> None:
    assert run(site, "audit", "reappraise", "--at", text)[0] == 2


def test_identity_policies_and_keys(site: Site, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refusal:
        run(site, "identity", "show")
    assert refusal.value.code == "trust.policy.missing"
    file = tmp_path / "identity.json"
    file.write_bytes(policy(grant(site.data)))
    assert run(site, "identity", "set", str(file))[1].startswith("identity policy version 1  sha256:")
    assert json.loads(run(site, "identity", "set", str(file), "--output", "json")[1])["version"] == 1
    assert run(site, "identity", "show")[1].encode() == file.read_bytes()
    file.write_bytes(b"version = 1\nid = 'x'\ngrant = []\n")
    with pytest.raises(Refused) as refusal:
        run(site, "identity", "set", str(file))
    assert refusal.value.code == "trust.identity.policy"
    assert run(site, "identity", "keys", DOMAIN)[1] == ""
    assert run(site, "identity", "rotate", DOMAIN)[0] == 0
    keys = json.loads(run(site, "identity", "keys", DOMAIN, "--output", "json")[1])["keys"]
    assert sorted(key["use"] for key in keys) == ["jwt-svid", "x509-svid"]
    assert run(site, "identity", "withdraw", DOMAIN, keys[0]["id"])[0] == 0
    assert run(site, "identity", "keys", DOMAIN)[1].count("withdrawn") == 1
    none = [("withdraw", DOMAIN, key) for key in (keys[0]["id"], "-oX", "-hX", "--X")]
    for arguments in (*none, ("keys", "Not/A/Domain")):
        with pytest.raises(Refused):
            run(site, "identity", *arguments)
