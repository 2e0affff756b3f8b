"""Credentials as docker, podman and skopeo keep them: which file, which entry, and helpers that misbehave."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError
from cloister.oci.credentials import credential_files, find_credentials
from cloister.oci.reference import parse_reference
from cloister.oci.session import Credentials

APP = parse_reference("images.test/team/app:v1")
SECRET = "hunter2"


def encode(name: str, password: str) -> str:
    return base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}


def docker(environment: dict[str, str], content: Any) -> None:
    path = Path(environment["HOME"]) / ".docker" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def helper(environment: dict[str, str], name: str, script: str) -> None:
    path = Path(environment["HOME"]) / "bin" / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def pair(found: Credentials | None) -> tuple[str, str, str] | None:
    return None if found is None else (found.username, found.password, found.identity_token)


def refused(run: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        run()
    assert SECRET not in str(caught.value.as_dict())
    return caught.value


def test_nobody_logged_in(environment: dict[str, str]) -> None:
    assert find_credentials(APP, environment) is None
    docker(environment, {"auths": {}, "credHelpers": {}, "HttpHeaders": {"User-Agent": "x"}, "psFormat": "table"})
    assert find_credentials(APP, environment) is None
    docker(environment, {})
    assert find_credentials(APP, environment) is None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["images.test"], "images.test"),
        (["https://images.test/v2/"], "https://images.test/v2/"),
        (["images.test", "images.test/team"], "images.test/team"),
        (["images.test/team", "images.test/team/app", "images.test"], "images.test/team/app"),
        (["images.test:5000", "other.test", "test", "images.test/tea"], None),
    ],
)
def test_the_longest_name_decides(environment: dict[str, str], names: list[str], found: str | None) -> None:
    docker(environment, {"auths": {name: {"auth": encode(name.replace(":", "_"), SECRET)} for name in names}})
    expected = None if found is None else (found.replace(":", "_"), SECRET, "")
    assert pair(find_credentials(APP, environment)) == expected


@pytest.mark.parametrize(
    "name", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"]
)
def test_docker_hub_has_many_names(environment: dict[str, str], name: str) -> None:
    docker(environment, {"auths": {name: {"auth": encode("ann", SECRET)}}})
    assert pair(find_credentials(parse_reference("redis:7"), environment)) == ("ann", SECRET, "")


def test_forms_of_an_entry(environment: dict[str, str]) -> None:
    for entry, found in (
        ({"username": "ann", "password": SECRET}, ("ann", SECRET, "")),
        ({"auth": encode("ann", "a:b")}, ("ann", "a:b", "")),
        ({"auth": encode("ann", SECRET + "\0\0")}, ("ann", SECRET, "")),
        ({"auth": encode("<token>", ""), "identitytoken": "id"}, ("<token>", "", "id")),
        ({"identitytoken": "id"}, ("", "", "id")),
        ({}, None),
    ):
        docker(environment, {"auths": {"images.test": entry}})
        assert pair(find_credentials(APP, environment)) == found


def test_which_file_decides(tmp_path: Path, environment: dict[str, str]) -> None:
    environment |= {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "DOCKER_CONFIG": str(tmp_path / "docker")}
    files = credential_files(environment)
    names = ["run/containers/auth.json", ".config/containers/auth.json", "docker/config.json"]
    assert [str(path.relative_to(tmp_path)) for path in files] == names
    for number, path in reversed(list(enumerate(files))):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"auths": {"images.test": {"auth": encode(f"from{number}", "x")}}}))
        assert pair(find_credentials(APP, environment)) == (f"from{number}", "x", "")
    files[0].write_text(json.dumps({"auths": {"other.test": {"auth": encode("a", "x")}}}))
    assert pair(find_credentials(APP, environment)) == ("from1", "x", "")
    (tmp_path / "only.json").write_text("{}")
    assert find_credentials(APP, environment | {"REGISTRY_AUTH_FILE": str(tmp_path / "only.json")}) is None


def test_helpers(environment: dict[str, str]) -> None:
    helper(environment, "one", 'read server; printf \'{"Username":"%s","Secret":"s"}\' "$server"')
    helper(environment, "token", 'echo \'{"Username":"<token>","Secret":"id"}\'')
    helper(environment, "none", "echo credentials not found in native keychain; exit 1")
    docker(environment, {"auths": {"images.test": {}}, "credsStore": "one"})
    assert pair(find_credentials(APP, environment)) == ("images.test", "s", "")
    assert pair(find_credentials(parse_reference("redis"), environment)) == ("https://index.docker.io/v1/", "s", "")
    docker(environment, {"credHelpers": {"images.test": "token"}, "credsStore": "one"})
    assert pair(find_credentials(APP, environment)) == ("<token>", "", "id")
    docker(environment, {"credsStore": "none"})
    assert find_credentials(APP, environment) is None
    docker(environment, {"auths": {"images.test": {"auth": encode("file", "x")}}, "credsStore": "one"})
    assert pair(find_credentials(APP, environment)) == ("file", "x", "")


@pytest.mark.parametrize(
    "script",
    [
        f"echo {SECRET}; exit 3",
        f"echo {SECRET}",
        "exit 0",
        'echo \'{"Username":"a"}\'',
        "exec sleep 30",
        "sleep 30 & echo x; exit 0",  # a child keeps the pipe open
        "exec yes",
        "exec >&-; exec sleep 30",
    ],
)
def test_helpers_that_misbehave_are_ended(environment: dict[str, str], script: str) -> None:
    helper(environment, "bad", script)
    docker(environment, {"credsStore": "bad"})
    begun = time.monotonic()
    error = refused(lambda: find_credentials(APP, environment, helper_seconds=0.5))
    assert error.code == "oci.credentials.helper"
    assert time.monotonic() - begun < 5


def test_a_helper_is_a_name_and_no_command(environment: dict[str, str]) -> None:
    for name in ("../x", "a b", "a;b", "", "-x", "x" * 65):
        docker(environment, {"credHelpers": {"images.test": name or "/"}})
        assert refused(lambda: find_credentials(APP, environment)).code == "oci.credentials.helper_name"
    docker(environment, {"credsStore": "absent"})
    assert refused(lambda: find_credentials(APP, environment)).code == "oci.credentials.helper"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("x", "not_json"),
        ('{"auths":[]}', "wrong_type"),
        ('{"auths":{"images.test":3}}', "wrong_type"),
        ('{"auths":{"images.test":{"auth":"%%"}}}', "malformed"),
        (json.dumps({"auths": {"images.test": {"auth": base64.b64encode(SECRET.encode()).decode()}}}), "malformed"),
        ('{"auths":{"images.test":{"auth":7}}}', "wrong_type"),
        ('{"auths":{},"auths":{}}', "duplicate_key"),
        (" " * ((1 << 20) + 1), "too_long"),
    ],
)
def test_files_that_are_none_are_refused(environment: dict[str, str], content: str, code: str) -> None:
    docker(environment, content)
    assert refused(lambda: find_credentials(APP, environment)).code == f"oci.credentials.{code}"


def test_a_file_that_cannot_be_read_is_unavailable(environment: dict[str, str]) -> None:
    (Path(environment["HOME"]) / ".docker" / "config.json").mkdir(parents=True)
    assert refused(lambda: find_credentials(APP, environment)).code == "oci.credentials.unreadable"
