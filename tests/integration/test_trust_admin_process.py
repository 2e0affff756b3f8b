"""Administration over the network: the service as its own process, the commands as their own processes, real TLS."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.client.admin import AdminClient
from cloister.errors import Refused, Unavailable
from cloister.protocol.resourceuri import parse_resource_path
from trust_process import Owner, Running, make_owner, running
from trust_world import quick_directory

SECRET = b"canary-5d2c-secret-put-over-the-network"


@pytest.fixture(scope="module")
def owner() -> Iterator[Owner]:
    with quick_directory() as directory:
        yield make_owner(directory)


@pytest.fixture(scope="module")
def service(owner: Owner) -> Iterator[Running]:
    with running(owner.state) as made:
        yield made


def cloister(service: Running, owner: Owner, *words: str, tenant: str = "") -> subprocess.CompletedProcess[bytes]:
    place = ["--server", service.report["url"], "--token-file", str(owner.state / "admin-token")]
    ca = ["--ca", str(owner.state / "ca.pem")]
    scope = ["--tenant", tenant] if tenant else []
    command = [sys.executable, "-m", "cloister", *words, *place, *ca, *scope]
    return subprocess.run(command, capture_output=True, check=False, timeout=60)


def test_the_first_start_leaves_a_private_token(service: Running, owner: Owner) -> None:
    file = owner.state / "admin-token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().strip() not in service.log.read_text()


def test_a_secret_goes_in_by_command_and_out_to_a_guest(service: Running, owner: Owner, tmp_path: Path) -> None:
    secret, rule = tmp_path / "secret", tmp_path / "rule.toml"
    secret.write_bytes(SECRET)
    rule.write_text(f'init_data = ["{owner.data.digest_text}"]\ninsecure_allow_levels = ["measured"]\n')
    put = cloister(service, owner, "secret", "put", "kbs:///net/key/one", "--file", str(secret), "--output", "json")
    assert put.returncode == 0, put.stderr
    assert json.loads(put.stdout) | {"updated_at": ""} == {
        "schema": 1, "path": "net/key/one", "version": 1, "updated_at": ""
    }  # fmt: skip
    path = parse_resource_path("net/key/one")
    guest = service.client(owner)
    with pytest.raises(Refused):
        guest.get_resource(path)
    assert cloister(service, owner, "policy", "release", "set", "net/key/*", "--file", str(rule)).returncode == 0
    assert guest.get_resource(path) == SECRET
    guest.wipe()
    audit = cloister(service, owner, "audit", "--resource", "net/*", "--output", "json")
    rows = json.loads(audit.stdout)["rows"]
    assert [row["decision"] for row in rows] == ["denied", "released"]
    explained = cloister(service, owner, "explain", rows[0]["denial"])
    assert explained.returncode == 0 and b"net/key/one" in explained.stdout, explained.stderr
    assert SECRET not in service.log.read_bytes() + put.stdout + audit.stdout


def test_a_client_that_pins_another_ca_gives_no_token_away(service: Running, owner: Owner) -> None:
    with running(owner.state.parent / "other") as other:
        token = (owner.state / "admin-token").read_text().strip()
        with (
            AdminClient(service.report["url"], token, ca_pem=other.ca_pem) as client,
            pytest.raises(Refused) as caught,
        ):
            client.status()
    assert caught.value.code == "client.server_untrusted" and token not in str(caught.value)


def test_no_service_is_unavailable_and_a_wrong_token_refused(service: Running, owner: Owner, tmp_path: Path) -> None:
    with AdminClient("http://127.0.0.1:9", "cat_x") as client, pytest.raises(Unavailable):
        client.status()
    wrong = tmp_path / "token"
    wrong.write_text("cat_" + "A" * 43)
    environment = {
        **os.environ,
        "CLOISTER_SERVER": service.report["url"],
        "CLOISTER_TOKEN_FILE": str(wrong),
        "CLOISTER_CA": str(owner.state / "ca.pem"),
    }
    command = [sys.executable, "-m", "cloister", "secret", "list"]
    run = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=60)
    assert run.returncode == 1 and b"no valid access token" in run.stderr


def test_a_tenants_guests_are_answered_while_it_is_live(service: Running, owner: Owner) -> None:
    path = "/t/acme/kbs/v0/auth"
    assert service.request("POST", path, b"{}")[0] == 404
    assert cloister(service, owner, "tenant", "create", "acme").returncode == 0
    assert service.request("POST", path, b"{}")[0] != 404
    assert cloister(service, owner, "tenant", "disable", "acme").returncode == 0
    assert service.request("POST", path, b"{}")[0] == 404
