"""The fixed interface for scripts, by processes alone: start, wait, put, set a rule, and a guest gets the secret.

    cloister serve --data DIR [--listen HOST:PORT] [--config FILE] [--insecure-http]
    cloister secret put kbs:///repo/type/tag --file F --server URL --token-file T [--ca F]
    cloister policy release set PREFIX --file POLICY
    cloister refs add FILE

What a script may write in more than one way is written in each. The client is `conformance.rcar`, plain sockets.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance.rcar import Client, Denied, ec_key
from e2e.conftest import CLI

SECRET = b"what only a guest may have"
RULE = 'insecure_allow_levels = ["simulated"]\n'
URI = "kbs:///repo/type/tag"
VALUES = {
    "schema": 1,
    "id": "images",
    "version": 1,
    "issued_at": "2026-01-01T00:00:00Z",
    "not_after": "2099-01-01T00:00:00Z",
    "entries": [
        {
            "id": "image-1",
            "tee": "tpm",
            "registers": {"pcr0": "9a" * 32},
            "origin": "a script",
            "not_after": "2099-01-01T00:00:00Z",
        }
    ],
}


@dataclass(frozen=True)
class Service:
    """A running service: where scripts stand, and how they reach it."""

    place: Path
    url: str
    data: str
    ca: bool

    @property
    def options(self) -> list[str]:
        words = ["--server", self.url, "--token-file", f"{self.data}/admin-token"]
        return [*words, "--ca", f"{self.data}/ca.pem"] if self.ca else words

    @property
    def variables(self) -> dict[str, str]:
        named = {"CLOISTER_SERVER": self.url, "CLOISTER_TOKEN_FILE": f"{self.data}/admin-token"}
        return named | ({"CLOISTER_CA": f"{self.data}/ca.pem"} if self.ca else {})

    def cloister(self, *words: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command where a stranger has no home: all it needs is in its words and variables."""
        environment = {"PATH": os.environ["PATH"], "HOME": "/proc/nonexistent", **(variables or {})}
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            environment |= {name: os.environ[name]} if name in os.environ else {}
        return subprocess.run(
            [*CLI, *words], capture_output=True, text=True, timeout=60, cwd=self.place, env=environment, check=False
        )

    def does(self, *words: str, variables: Mapping[str, str] | None = None) -> str:
        done = self.cloister(*words, variables=variables)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def ask(self, path: str = "repo/type/tag", *, by: str = "cookie") -> bytes:
        """Get a resource as a guest of CoCo's sample TEE, with no init data."""
        ca_pem = (self.place / self.data / "ca.pem").read_text() if self.ca else ""
        client = Client(self.url, ca_pem, ec_key())
        client.auth("sample")
        report_data = base64.b64encode(client.report_data()).decode()
        client.attest({"svn": "1", "report_data": report_data}, None)
        return client.resource(path, by=by)


@contextmanager
def serving(place: Path, data: str, *more: str, insecure: bool = False) -> Iterator[Service]:
    """Start `cloister serve` in `place` and wait as a script does: until `/healthz` is 200."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [*CLI, "serve", "--data", data, "--listen", f"127.0.0.1:{port}", *more]
    words += ["--insecure-http"] if insecure else []
    service = Service(place, f"{'http' if insecure else 'https'}://127.0.0.1:{port}", data, ca=not insecure)
    homeless = {**os.environ, "HOME": "/proc/nonexistent"}
    homeless.pop("CLOISTER_HOME", None)
    with (
        (place / "serve.log").open("wb") as log,
        subprocess.Popen(words, cwd=place, stdout=log, stderr=log, env=homeless) as process,
    ):
        try:
            _wait(service, process)
            yield service
        finally:
            process.terminate()
            process.wait(20)


def _wait(service: Service, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while True:
        log = (service.place / "serve.log").read_text()
        assert process.poll() is None and time.monotonic() < until, log
        try:
            context = ssl.create_default_context(cafile=service.place / service.data / "ca.pem") if service.ca else None
            with urllib.request.urlopen(f"{service.url}/healthz", context=context, timeout=5) as answer:
                assert answer.status == 200
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)


def files(place: Path) -> None:
    (place / "secret").write_bytes(SECRET)
    (place / "rule.toml").write_text(RULE)
    (place / "values.json").write_text(json.dumps(VALUES))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for what does not look at a first start; its data directory is relative, as scripts write it."""
    place = tmp_path_factory.mktemp("fixed")
    files(place)
    with serving(place, "state/trust") as running:
        running.does("secret", "put", URI, "--file", "secret", *running.options)
        yield running


@pytest.mark.parametrize("insecure", [False, True], ids=["https", "insecure-http"])
def test_from_nothing_to_a_secret(tmp_path: Path, insecure: bool) -> None:
    files(tmp_path)
    absolute = insecure  # the directory of the other one is relative
    with serving(tmp_path, str(tmp_path / "data") if absolute else "data", insecure=insecure) as service:
        token, ca = tmp_path / "data" / "admin-token", tmp_path / "data" / "ca.pem"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600 and token.read_text().strip()
        assert ca.read_text().startswith("-----BEGIN CERTIFICATE-----")
        service.does("secret", "put", URI, "--file", "secret", *service.options)
        with pytest.raises(Denied) as denied:  # without a rule nobody below hardware has it
            service.ask()
        assert denied.value.status == 403
        service.does("policy", "release", "set", "repo/type/tag", "--file", "rule.toml", *service.options)
        assert service.ask(by="cookie") == service.ask(by="bearer") == SECRET


def test_a_second_start_keeps_what_there_was(tmp_path: Path) -> None:
    files(tmp_path)
    (tmp_path / "serve.toml").write_text("store_seconds = 3\n")
    with serving(tmp_path, "data", "--config", "serve.toml") as service:
        service.does("secret", "put", URI, "--file", "secret", *service.options)
        service.does("policy", "release", "set", "repo", "--file", "rule.toml", *service.options)
        before = [(tmp_path / "data" / name).read_bytes() for name in ("admin-token", "ca.pem")]
    with serving(tmp_path, f"../{tmp_path.name}/data", "--config", "serve.toml") as service:
        assert [(tmp_path / "data" / name).read_bytes() for name in ("admin-token", "ca.pem")] == before
        assert service.ask() == SECRET


@pytest.mark.parametrize("written", ["kbs:///repo/type/tag", "repo/type", "kbs:///repo/", "*"])
def test_a_prefix_as_a_script_may_write_it(service: Service, written: str) -> None:
    """All spellings are in `tests/unit/protocol/test_resource_uri.py`."""
    try:
        service.does("policy", "release", "set", written, "--file", "rule.toml", *service.options)
        assert service.ask() == SECRET
    finally:
        service.does("policy", "release", "rm", written, *service.options)
    with pytest.raises(Denied):  # it was this rule that let it go, and under this name it is gone
        service.ask()


@pytest.mark.parametrize("written", ["", "repo/*/tag"])
def test_a_prefix_that_could_mean_something_else_is_refused(service: Service, written: str) -> None:
    done = service.cloister("policy", "release", "set", written, "--file", "rule.toml", *service.options)
    assert done.returncode == 1 and "repository/type/tag" in done.stderr
    with pytest.raises(Denied):
        service.ask()


PUT = ["secret", "put", URI, "--file", "secret"]
RELEASE = ["policy", "release", "set", "other", "--file", "rule.toml"]
REFS = ["refs", "add", "values.json"]


class TestWhereTheOptionsStand:
    def test_before_what_they_are_about(self, service: Service) -> None:
        service.does(*PUT[:2], *service.options, *PUT[2:])
        service.does(*RELEASE[:3], *service.options, *RELEASE[3:])

    def test_in_the_environment(self, service: Service) -> None:
        for verb in (PUT, RELEASE, REFS):
            service.does(*verb, variables=service.variables)

    def test_with_equals_signs_and_a_slash_behind_the_address(self, service: Service) -> None:
        pairs = zip(service.options[::2], [f"{service.url}/", *service.options[3::2]], strict=True)
        service.does(*PUT, *(f"{name}={value}" for name, value in pairs))

    def test_an_option_wins_over_the_environment(self, service: Service) -> None:
        wrong = {"CLOISTER_SERVER": "https://127.0.0.1:1", "CLOISTER_TOKEN_FILE": "/nonexistent"}
        service.does(*REFS, *service.options, variables=wrong)


def test_without_a_server_and_a_home_it_says_what_is_missing(service: Service) -> None:
    done = service.cloister("secret", "list")
    assert done.returncode == 3 and "CLS-H-0091" in done.stderr and "--server" in done.stderr


def test_without_the_token_or_the_ca_nothing_happens(service: Service) -> None:
    (service.place / "wrong-token").write_text("cls_0000000000\n")
    done = service.cloister(*PUT, *service.options, "--token-file", "wrong-token")
    assert done.returncode == 1 and "cloister: hint: " in done.stderr
    done = service.cloister(*PUT, *service.options[:4])  # the CAs of the system did not sign this one
    assert done.returncode == 1 and "--ca" in done.stderr


def test_every_result_is_json_on_demand(service: Service) -> None:
    for verb in (PUT, RELEASE, REFS):
        told = json.loads(service.does(*verb, *service.options, "--output", "json"))
        assert told["schema"] == 1 and SECRET.decode() not in json.dumps(told)
