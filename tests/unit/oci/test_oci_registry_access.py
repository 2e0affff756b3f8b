"""The embedded registry with accounts: Basic, tokens, what a token is good for, and what it is not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import urlencode

import pytest

from cloister.errors import RequestRefused
from cloister.host.registry.app import RegistryApp
from cloister.host.registry.auth import AccessControl, parse_accounts
from cloister.host.registry.store import RegistryStore
from cloister.oci.digest import Digest
from unit.oci.builders import InProcessResponse, InProcessTransport

CONTENT = b"0123456789"
DIGEST = str(Digest.of(CONTENT))


def basic(name: str = "ann", word: str = "word") -> str:
    return "Basic " + base64.b64encode(f"{name}:{word}".encode()).decode()


class Registry:
    """Sends requests to a registry with one account."""

    def __init__(self, root: Path, *, tokens: bool, anonymous_pull: bool = False) -> None:
        self.now = 0.0
        access = AccessControl(
            {"ann": "word"}, tokens=tokens, anonymous_pull=anonymous_pull, token_seconds=60, clock=lambda: self.now
        )
        self._transport = InProcessTransport(RegistryApp(RegistryStore(root), access))

    def __call__(self, method: str, path: str, authorization: str = "", body: bytes | None = None) -> InProcessResponse:
        headers = {"Host": "images.test"} | ({"Authorization": authorization} if authorization else {})
        answer = self._transport.open(method, f"http://images.test{path}", headers, body)
        assert isinstance(answer, InProcessResponse)
        return answer

    def token(self, scope: str, authorization: str = basic()) -> str:
        answer = self("GET", "/token?" + urlencode({"service": "images.test", "scope": scope}), authorization)
        assert answer.status == 200
        return "Bearer " + json.loads(answer.read(10_000))["token"]

    def push(self, name: str, authorization: str) -> int:
        return self("POST", f"/v2/{name}/blobs/uploads/?digest={DIGEST}", authorization, CONTENT).status


@pytest.mark.parametrize(
    "wrong", ["", basic("ann", "other"), basic("bob"), "Basic !!", "Bearer x", "Basic " + "A" * 9000]
)
def test_passwords(tmp_path: Path, wrong: str) -> None:
    registry = Registry(tmp_path, tokens=False)
    for path in ("/v2/", f"/v2/a/blobs/{DIGEST}"):
        refused = registry("GET", path, wrong)
        assert (refused.status, refused.header("www-authenticate")) == (401, 'Basic realm="cloister registry"')
    assert registry.push("a", wrong) == 401
    assert registry("GET", "/v2/", basic()).status == 200
    assert registry.push("a", basic()) == 201


def test_everybody_reads_and_nobody_writes(tmp_path: Path) -> None:
    registry = Registry(tmp_path, tokens=False, anonymous_pull=True)
    registry.push("a", basic())
    assert registry("GET", f"/v2/a/blobs/{DIGEST}").status == 200
    assert registry.push("a", "") == 401
    assert registry("DELETE", f"/v2/a/blobs/{DIGEST}").status == 401


def test_a_token_is_good_for_its_scopes_and_its_time(tmp_path: Path) -> None:
    registry = Registry(tmp_path, tokens=True)
    refused = registry("POST", "/v2/a/b/blobs/uploads/")
    assert refused.status == 401
    assert refused.header("www-authenticate") == (
        'Bearer realm="http://images.test/token",service="images.test",scope="repository:a/b:pull,push"'
    )
    token = registry.token("repository:a/b:pull,push repository:c:pull")
    assert registry.push("a/b", token) == 201
    assert registry("GET", "/v2/", token).status == 200
    assert registry.push("c", token) == 401
    assert registry("DELETE", f"/v2/a/b/blobs/{DIGEST}", token).status == 401
    assert registry.push("a/b", basic()) == 401
    registry.now = 60
    assert registry.push("a/b", token) == 401


def test_no_token_without_an_account(tmp_path: Path) -> None:
    registry = Registry(tmp_path, tokens=True)
    for authorization in ("", basic("ann", "x"), "Bearer x"):
        assert registry("GET", "/token?scope=repository:a:pull", authorization).status == 401
    assert registry("PUT", "/token").status == 405


def test_everybodys_token_reads_only(tmp_path: Path) -> None:
    registry = Registry(tmp_path, tokens=True, anonymous_pull=True)
    registry.push("a", registry.token("repository:a:pull,push"))
    token = registry.token("repository:a:pull,push", "")
    assert registry("GET", f"/v2/a/blobs/{DIGEST}", token).status == 200
    assert registry.push("a", token) == 401
    assert registry("GET", "/token?scope=repository:a:pull", basic("ann", "wrong")).status == 401


def test_oauth2_by_password_and_by_refresh_token(tmp_path: Path) -> None:
    registry = Registry(tmp_path, tokens=True)

    def ask(**form: str) -> InProcessResponse:
        body = {"service": "images.test", "scope": "repository:a:pull,push", "client_id": "c", **form}
        return registry("POST", "/token", "", urlencode(body).encode())

    first = ask(grant_type="password", username="ann", password="word", access_type="offline")
    assert first.status == 200
    refresh = json.loads(first.read(10_000))["refresh_token"]
    again = ask(grant_type="refresh_token", refresh_token=refresh)
    assert registry.push("a", "Bearer " + json.loads(again.read(10_000))["access_token"]) == 201
    for wrong in (
        {"grant_type": "refresh_token", "refresh_token": "x"},
        {"grant_type": "password", "username": "ann", "password": "x"},
        {},
    ):
        assert ask(**wrong).status == 401


def test_a_blob_is_mounted_only_from_where_it_may_be_read(tmp_path: Path) -> None:
    registry = Registry(tmp_path, tokens=True)
    registry.push("a", registry.token("repository:a:pull,push"))
    where = f"/v2/b/blobs/uploads/?mount={DIGEST}&from=a"
    assert registry("POST", where, registry.token("repository:b:pull,push")).status == 202
    assert registry("POST", where, registry.token("repository:b:pull,push repository:a:pull")).status == 201


def test_accounts_are_lines(tmp_path: Path) -> None:
    assert parse_accounts("# people\n\nann:a:b\nbob:x\n") == {"ann": "a:b", "bob": "x"}
    for text in ("", "# none\n", "ann\n", ":x\n", "a b:x\n", "ann:\n"):
        with pytest.raises(RequestRefused) as caught:
            parse_accounts(text)
        assert caught.value.code == "host.registry.accounts"
