"""The client of the administration API: addresses, trust, errors of a server that answers anything."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from cloister.client.admin import AdminClient
from cloister.errors import CloisterError, FormatRefused, Refused, Unavailable

TOKEN = "cat_" + "t" * 43


def client(answer: Callable[[httpx.Request], httpx.Response], **options: str) -> AdminClient:
    return AdminClient("https://trust.example", TOKEN, transport=httpx.MockTransport(answer), **options)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "trust.example",
        "http://trust.example",
        "http://192.0.2.1:7070",
        "http://127.0.0.1.example",
        "https://user:word@trust.example",
        "https://trust.example?x=1",
        "ftp://127.0.0.1",
        "https://[::1",
    ],
)
def test_addresses_that_a_token_is_not_sent_to(url: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        AdminClient(url, TOKEN)
    assert caught.value.code == "client.admin.address" and TOKEN not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:7070", "http://[::1]:7070", "http://localhost", "https://a.example"])
def test_addresses_that_it_is(url: str) -> None:
    with AdminClient(url, TOKEN) as made:
        assert TOKEN not in repr(made)


def test_a_ca_that_is_none() -> None:
    with pytest.raises(FormatRefused) as caught:
        AdminClient("https://trust.example", TOKEN, ca_pem="nonsense")
    assert caught.value.code == "client.ca"


def problem(status: int, **members: object) -> httpx.Response:
    body = {"title": "t", "status": status, "detail": "the words", "code": "trust.policy.conflict", **members}
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json"})


@pytest.mark.parametrize(
    ("status", "family"),
    [(400, FormatRefused), (401, Refused), (403, Refused), (404, Refused), (409, Refused), (503, Unavailable)],
)
def test_problems_are_typed_errors_again(status: int, family: type[CloisterError]) -> None:
    answer = problem(status, path="text", expected="version 1", actual="version 2", hint="read it", denial="d-x")
    with client(lambda _: answer) as made, pytest.raises(family) as caught:
        made.status()
    error = caught.value
    assert type(error) is family and error.code == "trust.policy.conflict"
    assert (error.message, error.path, error.expected, error.actual) == ("the words", "text", "version 1", "version 2")
    assert error.hint.startswith("read it") and "cloister explain d-x" in error.hint


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b""),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, content=b"[]"),
        httpx.Response(200, content=b'{"version":1}'),
        httpx.Response(500, content=b"oops"),
        httpx.Response(404, content=b'{"detail":"other"}'),
        httpx.Response(302, headers={"location": "https://elsewhere.example"}),
        httpx.Response(200, content=b"\xff"),
    ],
)
def test_what_is_no_answer(answer: httpx.Response) -> None:
    with client(lambda _: answer) as made, pytest.raises(Refused) as caught:
        made.status()
    assert caught.value.code == "client.admin.answer"


def test_a_server_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.client.admin.ANSWER_BYTES", 1000)
    with client(lambda _: httpx.Response(200, content=b"x" * 1001)) as made, pytest.raises(Refused) as caught:
        made.status()
    assert caught.value.code == "client.answer_too_long"


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"subject": "x"})

    with client(answer, tenant="acme") as made:
        made.delete_publisher("a/../b?c")
        made.delete_reference_value("a&b=c")
    assert seen[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert seen[0].url.raw_path == b"/admin/v1/publishers/a%2F..%2Fb%3Fc?tenant=acme"
    assert seen[1].url.params["id"] == "a&b=c" and seen[1].url.params["tenant"] == "acme"


def test_prefixes_are_three_segments() -> None:
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(200, json={"policies": []})

    with client(answer) as made:
        for prefix in ("*", "a/*/*", "a/b/c"):
            made.list_release_rule_history(prefix)
    assert [path.decode() for path in seen] == [
        f"/admin/v1/release-rules/{prefix}/history" for prefix in ("*/*/*", "a/*/*", "a/b/c")
    ]


def test_silence_is_unavailable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with client(answer) as made, pytest.raises(Unavailable) as caught:
        made.status()
    assert caught.value.code == "client.unreachable"
