"""The administering verbs on a state directory of this machine: results, JSON, files of secrets, exit codes."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

from cloister.cli.administered import administered, parse_moment
from cloister.cli.app import app
from cloister.crypto.sealedsecret import EnvelopeSecret, verify_sealed_secret
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError
from cloister.trust.access import is_token

SECRET = b"canary-31ab-secret-of-the-command-line"
SHARED = {"--server", "--token-file", "--ca", "--tenant", "--state"}


class Shell:
    """Runs verbs on one state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runner = CliRunner()

    def __call__(self, *words: str, input: str = "") -> Result:
        result = self.runner.invoke(app, [*words, "--state", str(self.directory / "state")], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            assert isinstance(result.exception, CloisterError), result.exception
        return result

    def json(self, *words: str) -> Any:
        result = self(*words, "--output", "json")
        assert result.exit_code == 0, (result.output, result.exception)
        found = json.loads(result.stdout)
        assert found["schema"] == 1
        return found

    def file(self, name: str, content: bytes) -> str:
        (self.directory / name).write_bytes(content)
        return str(self.directory / name)


@pytest.fixture
def shell(tmp_path: Path, quick_administration: None) -> Shell:
    return Shell(tmp_path)


def code_of(result: Result) -> str:
    assert isinstance(result.exception, CloisterError), result.output
    return result.exception.code


def test_a_secret_is_shown_only_when_asked_for(shell: Shell, tmp_path: Path) -> None:
    put = shell("secret", "put", "kbs:///a/b/c", "--file", shell.file("secret", SECRET))
    assert put.exit_code == 0 and "version 1" in put.stdout
    assert shell.json("secret", "get", "kbs:///a/b/c")["version"] == 1
    shown = [shell("secret", "list").output, shell("secret", "get", "kbs:///a/b/c").output, put.output]
    shown.append(shell("audit", "--calls", "--output", "json").output)
    assert all(SECRET.decode() not in text for text in shown)
    assert shell("secret", "get", "kbs:///a/b/c", "--stdout").stdout_bytes == SECRET
    out = tmp_path / "out"
    assert shell("secret", "get", "kbs:///a/b/c", "--out", str(out)).exit_code == 0
    assert out.read_bytes() == SECRET and stat.S_IMODE(out.stat().st_mode) == 0o600
    assert code_of(shell("secret", "get", "kbs:///a/b/c", "--out", str(out))) == "cli.file.exists"
    assert shell("secret", "get", "kbs:///a/b/c", "--out", "x", "--stdout").exit_code == 2
    assert shell("secret", "rm", "kbs:///a/b/c").exit_code == 0
    assert code_of(shell("secret", "rm", "kbs:///a/b/c")) == "trust.resource.missing"


def test_a_sealed_secret_is_a_reference_or_carries_the_secret(shell: Shell) -> None:
    signer = ECDSAP256Signer.generate()
    key, kek = shell.file("key.pem", signer.private_pem()), shell.file("kek", bytes(32))
    words = ("secret", "seal", "kbs:///a/b/c", "--signing-key", key, "--kid", "own")

    def seal(*more: str) -> Result:  # needs no trust service, so it takes none
        return shell.runner.invoke(app, [*words, *more, "--output", "json"])

    carrying = ("--file", shell.file("secret", SECRET), "--key-file", kek)
    texts = [json.loads(seal(*more).stdout)["sealed"] for more in ((), carrying)]
    found = [verify_sealed_secret(text, {"own": signer.public_key}) for text in texts]
    assert [item.resource.uri for item in found] == ["kbs:///a/b/c"] * 2
    assert isinstance(found[1], EnvelopeSecret) and found[1].open(bytes(32)) == SECRET
    assert seal(*carrying[:2]).exit_code == 2
    assert code_of(seal(*carrying[:3], shell.file("short", b"x"))) == "crypto.sealed.kek_length"


@pytest.mark.parametrize("uri", ["a/b/c", "kbs://host/a/b/c", "kbs:///a/b", "kbs:///../a/b"])
def test_what_names_no_secret_is_refused(shell: Shell, uri: str) -> None:
    assert code_of(shell("secret", "put", uri, "--file", shell.file("secret", SECRET))) == "cli.secret.uri"


def test_policies(shell: Shell) -> None:
    rule = shell.file("rule.toml", b"insecure_any_init_data = true\n")
    made = shell.json("policy", "release", "set", "a/b/*", "--file", rule)
    assert made["applied"]["version"] == 1 and made["proposal"] is None
    assert shell("policy", "release", "get", "a/b/*").stdout == "insecure_any_init_data = true\n"
    shell.file("rule.toml", b"lease_seconds = 9\n")
    assert "version 2" in shell("policy", "release", "set", "a/b/*", "--file", rule, "--replaces", "1").stdout
    assert code_of(shell("policy", "release", "set", "a/b/*", "--file", rule, "--replaces", "1")) == (
        "trust.policy.conflict"
    )
    assert shell("policy", "release", "rollback", "a/b/*", "1").exit_code == 0
    assert [item["version"] for item in shell.json("policy", "release", "history", "a/b/*")["policies"]] == [3, 2, 1]
    assert shell("policy", "release", "rm", "a/b/*").exit_code == 0
    assert shell.json("policy", "release", "list")["policies"] == []
    assert shell("policy", "what-if", "a/b/*", "--file", rule).exit_code == 0
    policy = shell.file("appraisal.json", b'{"version":1,"id":"default","tees":["snp"]}')
    assert shell.json("policy", "appraisal", "set", "--file", policy)["version"] == 1
    assert shell.json("policy", "appraisal", "get")["text"].startswith('{"version":1')
    assert shell("policy", "appraisal", "history").exit_code == shell("policy", "appraisal", "list").exit_code == 0


def test_approvals(shell: Shell) -> None:
    demand = shell.file("demand.toml", b'need = 1\nof = ["state.directory"]\n')
    rule = shell.file("rule.toml", b"insecure_any_init_data = true\n")
    assert shell("policy", "approvals", "set", "a/*/*", "--file", demand).exit_code == 0
    proposed = shell("policy", "release", "set", "a/b/c", "--file", rule)
    assert "proposed as p-" in proposed.stdout and "insecure_any_init_data" in proposed.stdout
    [waiting] = shell.json("approve")["proposals"]
    assert shell("approve", waiting["id"], input="n\n").exit_code == 1
    assert code_of(shell("approve", waiting["id"], "--digest", waiting["digest"])) == "trust.approval.not_an_approver"
    assert shell.json("approve", waiting["id"], "--reject")["state"] == "rejected"
    assert shell.json("policy", "approvals", "list")["policies"][0]["name"] == "a/*/*"


def test_tokens_go_into_private_files_only(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "token"
    made = shell("token", "create", "ci", "--role", "publisher", "--out", str(out), "--output", "json")
    text = out.read_text().strip()
    assert is_token(text) and stat.S_IMODE(out.stat().st_mode) == 0o600 and text not in made.output
    identity = json.loads(made.stdout)["id"]
    assert text not in shell("token", "list").output
    assert shell.json("token", "revoke", identity)["revoked_at"]
    assert code_of(shell("token", "create", "x", "--role", "publisher", "--out", str(out))) == "cli.file.exists"


def test_tenants_and_audit(shell: Shell) -> None:
    assert shell("tenant", "create", "acme", "--note", "a customer").exit_code == 0
    secret = shell.file("secret", SECRET)
    assert shell("secret", "put", "kbs:///a/b/c", "--file", secret, "--tenant", "acme").exit_code == 0
    assert shell.json("secret", "list")["resources"] == []
    assert [item["path"] for item in shell.json("secret", "list", "--tenant", "acme")["resources"]] == ["a/b/c"]
    assert code_of(shell("secret", "list", "--tenant", "none")) == "trust.tenant.missing"
    assert shell.json("tenant", "disable", "acme")["disabled"] is True
    assert shell.json("tenant", "enable", "acme")["disabled"] is False
    assert [item["id"] for item in shell.json("tenant", "list")["tenants"]] == ["acme", "default"]
    assert shell.json("audit", "--since", "2020-01-01")["rows"] == []
    assert shell("audit", "--since", "yesterday").exit_code == 2


def test_every_administering_verb_takes_the_same_options() -> None:
    command: Any = typer.main.get_command(app)
    for noun in ("secret", "policy", "token", "tenant"):
        found = list(verbs(command.commands[noun]))
        assert found
        for verb in found:
            if verb.name == "seal":
                continue  # works on words alone
            options = {name for parameter in verb.params for name in parameter.opts}
            assert SHARED | {"--output"} <= options, verb.name
    for name in ("approve", "audit"):
        assert {item for parameter in command.commands[name].params for item in parameter.opts} >= SHARED
    named = {item.envvar for item in command.commands["audit"].params if item.envvar}
    assert named == {"CLOISTER_SERVER", "CLOISTER_TOKEN_FILE", "CLOISTER_CA"}


def verbs(command: Any) -> Any:
    children = getattr(command, "commands", None)
    if children is None:
        yield command
        return
    for child in children.values():
        yield from verbs(child)


def test_a_server_needs_a_token(shell: Shell) -> None:
    result = shell("secret", "list", "--server", "https://127.0.0.1:1")
    assert code_of(result) == "sdk.administration.token"
    missing = shell("secret", "list", "--server", "https://127.0.0.1:1", "--token-file", "/none")
    assert code_of(missing) == "sdk.administration.file"


def test_moments() -> None:
    assert parse_moment("", "--since") is None
    assert str(parse_moment("2030-01-31", "--since")) == "2030-01-31 00:00:00+00:00"


def test_the_decorator_keeps_what_a_verb_says() -> None:
    def verb(client: object, word: str = "x") -> None:
        """Say it."""

    command = administered(verb)
    assert command.__doc__ == "Say it." and command.__name__ == "verb"
