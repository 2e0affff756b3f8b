"""The release log between processes: a service, two witnesses, a guest that asks for both, a monitor, an old backup."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.errors import Refused, Unavailable
from cloister.tlog.checkpoint import verify_checkpoint
from cloister.tlog.note import ED25519, parse_note, parse_verifier_key, verify_cosignature
from cloister.trust.admin import TrustAdmin
from cloister.trust.releaselog import parse_witnesses
from trust_process import Owner, Running, make_owner, running
from trust_world import CANARY, MODEL


@contextmanager
def witness(directory: Path, vkey: str) -> Iterator[str]:
    """A witness process; gives `KEY@URL`, as it prints it."""
    command = [sys.executable, "-m", "cloister", "log", "witness", "--data", str(directory), "--allow", vkey]
    process = subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Owner:
    return make_owner(tmp_path_factory.mktemp("log"))


def log_key(owner: Owner) -> str:
    with owner.admin() as admin:
        return admin.release_log_pins().key


def fetched(service: Running, owner: Owner) -> bytes:
    """What a guest gets."""
    client = service.client(owner)
    try:
        return client.get_resource(MODEL)
    finally:
        client.wipe()


def monitor(service: Running, owner: Owner, state: Path, *words: str) -> BaseException | None:
    command = ["log", "monitor", f"{service.report['url']}/log", "--vkey", log_key(owner), "--once"]
    command += ["--ca", service.report["ca_file"], "--state", str(state), *words]
    return CliRunner().invoke(app, command).exception


def test_a_release_is_witnessed_watched_and_not_undone(owner: Owner, tmp_path: Path) -> None:
    vkey = log_key(owner)
    with witness(tmp_path / "w1", vkey) as one, witness(tmp_path / "w2", vkey) as two:
        flags = ["--log-witnesses", f"{one},{two}", "--log-cosignatures", "2"]
        backup = tmp_path / "backup"
        with running(owner.state, *flags) as service:
            assert fetched(service, owner) == CANARY
            pins = service.log_pins
            assert (len(pins.witnesses), pins.cosignatures) == (2, 2)
            status, headers, body = service.request("GET", "/log/checkpoint")
            assert (status, headers["cache-control"]) == (200, "no-cache")
            note = parse_note(body.decode())
            size = verify_checkpoint(note, parse_verifier_key(vkey, kind=ED25519)).size
            for known in parse_witnesses([one, two]):
                verify_cosignature(note, known.key)
            status, headers, _ = service.request("GET", f"/log/tile/0/000.p/{size}")
            assert (status, "immutable" in headers["cache-control"]) == (200, True)
            assert service.request("GET", "/log/tile/0/001")[0] == 404
            assert service.request("GET", "/log/../root.key")[0] == 404
            assert monitor(service, owner, tmp_path / "state") is None
        shutil.copytree(owner.state, backup)
        with running(owner.state, *flags) as service:
            assert fetched(service, owner) == CANARY
            assert monitor(service, owner, tmp_path / "state") is None
        shutil.rmtree(owner.state)
        shutil.copytree(backup, owner.state)
        with running(owner.state, *flags) as service:
            with pytest.raises(Unavailable) as caught:
                fetched(service, owner)
            assert caught.value.code == "trust.releaselog.rolled_back"
            assert service.request("GET", "/healthz")[0] == 503
            error = monitor(service, owner, tmp_path / "state")
            assert isinstance(error, Refused)
            assert error.code == "sdk.releaselog.rolled_back"


def test_without_its_witnesses_nothing_is_released(tmp_path: Path) -> None:
    owner = make_owner(tmp_path)
    with witness(tmp_path / "w", log_key(owner)) as one:
        pass
    with running(owner.state, "--log-witnesses", one, "--log-cosignatures", "1") as service:
        with pytest.raises(Unavailable) as caught:
            fetched(service, owner)
        assert caught.value.code == "trust.releaselog.unconfirmed"


def test_the_log_key_of_a_state_directory(owner: Owner) -> None:
    result = CliRunner().invoke(app, ["log", "key", "--state", str(owner.state)])
    assert re.match(r"cloister/release-log/[0-9a-f]{32}\+[0-9a-f]{8}\+", result.stdout)
    with TrustAdmin(owner.state) as admin:
        assert admin.release_log_pins().key == result.stdout.split()[0]
