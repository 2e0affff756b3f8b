"""The registry client: against the embedded registry in process, and against registries that misbehave."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from cloister.oci.reference import parse_reference
from cloister.oci.session import Credentials
from cloister.oci.store import checked_blob, read_manifest
from cloister.oci.transport import Response, split_origin
from tampering import flipped
from unit.oci.builders import InProcessTransport, client_over, registry_client

BLOB = os.urandom(100_000)
LAYER = Descriptor(media_type="x", digest=Digest.of(BLOB), size=len(BLOB))
INDEX = b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_INDEX.encode()


class Answer:
    """One scripted answer; a body that ends early, as a broken connection does, has `breaks`."""

    def __init__(self, status: int, body: bytes = b"", *, breaks: bool = False, **headers: str) -> None:
        self.status = status
        self._headers = {key.replace("_", "-").lower(): value for key, value in headers.items()}
        self._body = body
        self._breaks = breaks

    def header(self, name: str) -> str:
        return self._headers.get(name.lower(), "")

    def read(self, count: int) -> bytes:
        piece, self._body = self._body[:count], self._body[count:]
        if not piece and self._breaks:
            raise Unavailable("oci.transport.interrupted", "connection broke")
        return piece

    def close(self) -> None:
        return None


class Script:
    """A transport that gives scripted answers and keeps what was asked."""

    def __init__(self, *answers: Answer | Unavailable | Callable[[str, str, Mapping[str, str]], Answer]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, str, Mapping[str, str]]] = []

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        self.asked.append((method, url, dict(headers)))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Unavailable):
            raise answer
        return answer(method, url, headers) if callable(answer) else answer


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code.removeprefix("oci.distribution.")


def down() -> Unavailable:
    return Unavailable("oci.transport.unreachable", "registry does not answer")


# -- push and pull ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4 << 20, (4 << 20) + 1, 9 << 20])
def test_what_is_pushed_comes_back(tmp_path: Path, size: int) -> None:
    client, transport = registry_client(tmp_path)
    content = os.urandom(size)
    digest, count = client.write_blob(content[i : i + 300_000] for i in range(0, size, 300_000))
    assert (digest, count) == (Digest.of(content), size)
    assert client.has_blob(digest)
    layer = Descriptor(media_type="x", digest=digest, size=size)
    assert b"".join(checked_blob(client, layer)) == content
    patches = sum(line.startswith("PATCH") for line in transport.log)
    assert patches == (0 if size <= 4 << 20 else -(-size // (4 << 20)))


def test_manifests_by_tag_and_digest(tmp_path: Path) -> None:
    client, _ = registry_client(tmp_path)
    digest = client.write_manifest(INDEX, OCI_INDEX, "v1")
    assert digest == Digest.of(INDEX)
    assert read_manifest(client, "v1").raw == INDEX
    assert read_manifest(client, digest).media_type == OCI_INDEX
    assert client.get_manifest("v2") is None


def test_an_upload_whose_source_fails_is_abandoned(tmp_path: Path) -> None:
    client, transport = registry_client(tmp_path)

    def chunks() -> Any:
        yield BLOB
        raise ImageRefused("test.broken", "source broke")

    with pytest.raises(ImageRefused):
        client.write_blob(chunks())
    assert transport.log[-1].startswith("DELETE")
    assert list((tmp_path / "uploads").iterdir()) == []


def test_docker_hub_has_another_address() -> None:
    script = Script(Answer(404))
    client = RegistryClient(script, parse_reference("redis"), plain_http=False, other_origins=True)
    client.get_manifest("7")
    assert script.asked[0][1] == "https://registry-1.docker.io/v2/library/redis/manifests/7"


# -- registries that lie ----------------------------------------------------------------------------------------


def test_other_bytes_for_a_digest_are_refused() -> None:
    client = client_over(Script(Answer(200, INDEX + b" ")))
    assert refused(lambda: read_manifest(client, Digest.of(INDEX))) == "digest_mismatch"
    client = client_over(Script(Answer(200, flipped(BLOB))))
    assert refused(lambda: list(checked_blob(client, LAYER))) == "digest_mismatch"


@pytest.mark.parametrize("body", [BLOB + b"x", BLOB[:-1], b""])
def test_blobs_of_another_size_are_refused(body: bytes) -> None:
    client = client_over(Script(Answer(200, body, content_length=str(len(body)))))
    assert refused(lambda: list(checked_blob(client, LAYER))) == "size_mismatch"


def test_an_endless_blob_is_read_no_further_than_its_size() -> None:
    class Endless(Answer):
        given = 0

        def read(self, count: int) -> bytes:
            self.given += count
            return bytes(count)

    answer = Endless(200)
    assert refused(lambda: list(checked_blob(client_over(Script(answer)), LAYER))) == "size_mismatch"
    assert answer.given <= LAYER.size + 1


def test_an_endless_manifest_is_refused() -> None:
    client = client_over(Script(Answer(200, bytes((4 << 20) + 1))))
    assert refused(lambda: client.get_manifest("v1")) == "manifest_too_long"


def test_a_registry_that_stored_other_bytes_is_refused() -> None:
    client = client_over(Script(Answer(201, docker_content_digest=str(Digest.of(b"other")))))
    assert refused(lambda: client.write_manifest(INDEX, OCI_INDEX, "v1")) == "digest_mismatch"


# -- registries that fail ---------------------------------------------------------------------------------------


def test_a_pull_goes_on_where_it_broke_off() -> None:
    def rest(method: str, url: str, headers: Mapping[str, str]) -> Answer:
        start = int(headers["Range"].removeprefix("bytes=").removesuffix("-"))
        return Answer(206, BLOB[start:], content_range=f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}")

    script = Script(Answer(200, BLOB[:30_000], breaks=True), down(), rest)
    assert b"".join(checked_blob(client_over(script), LAYER)) == BLOB
    assert [headers.get("Range") for _, _, headers in script.asked] == [None, "bytes=30000-", "bytes=30000-"]


def test_a_short_answer_is_taken_up_again() -> None:
    length = str(len(BLOB))
    script = Script(Answer(200, BLOB[:50_000], content_length=length), Answer(200, BLOB, content_length=length))
    assert b"".join(checked_blob(client_over(script), LAYER)) == BLOB


def test_a_wrong_range_is_refused() -> None:
    script = Script(Answer(200, BLOB[:30_000], breaks=True), Answer(206, BLOB, content_range="bytes 0-99999/100000"))
    assert refused(lambda: list(checked_blob(client_over(script), LAYER))) == "wrong_range"


@pytest.mark.parametrize("answer", [down(), Answer(503), Answer(429), Answer(500)])
def test_passing_faults_are_repeated_a_bounded_number_of_times(answer: Answer | Unavailable) -> None:
    script = Script(answer)
    pauses: list[float] = []
    code = refused(lambda: client_over(script, sleep=pauses.append).get_manifest("v1"))
    assert code in ("oci.transport.unreachable", "busy")
    assert len(script.asked) == 4
    assert pauses == [0.2, 0.4, 0.8]
    script = Script(answer)
    refused(lambda: list(client_over(script).stream_blob(LAYER)))
    assert len(script.asked) == 4


def test_a_passing_fault_passes() -> None:
    script = Script(Answer(503), down(), Answer(200, INDEX, content_type=f"{OCI_INDEX}; charset=utf-8"))
    stored = client_over(script).get_manifest("v1")
    assert stored is not None
    assert (stored.raw, stored.media_type) == (INDEX, OCI_INDEX)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "denied"),
        (403, "denied"),
        (400, "unexpected_status"),
        (302, "unexpected_status"),
        (204, "unexpected_status"),
    ],
)
def test_lasting_faults_are_not_repeated(status: int, code: str) -> None:
    script = Script(Answer(status, b'{"errors":[{"code":"SOME_CODE"}]}'))
    assert refused(lambda: client_over(script).write_manifest(INDEX, OCI_INDEX)) == code
    assert len(script.asked) == 1


def test_the_registrys_error_code_is_passed_on_but_not_its_text() -> None:
    script = Script(Answer(400, b'{"errors":[{"code":"NAME_INVALID","message":"<script>"}]}'))
    with pytest.raises(Unavailable) as caught:
        client_over(script).write_manifest(INDEX, OCI_INDEX)
    assert caught.value.actual == "400 NAME_INVALID"


class Flaky(InProcessTransport):
    """Loses the answer to, or half of, some PATCH requests."""

    faults: list[str]

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        if method != "PATCH" or not self.faults:
            return super().open(method, url, headers, body)
        fault = self.faults.pop(0)
        if fault == "half" and body:
            super().open(method, url, headers, body[: len(body) // 2])
        if fault in ("answer", "twice"):
            super().open(method, url, headers, body)
        if fault == "twice":  # as a transport does that finds its kept connection closed
            return super().open(method, url, headers, body)
        raise Unavailable("oci.transport.interrupted", "connection broke")


@pytest.mark.parametrize(
    "faults",
    [
        ["request"],
        ["half"],
        ["answer"],
        ["twice"],
        ["twice", "half", "twice"],
        ["half", "half", "request"],
        ["request", "answer", "half"],
    ],
)
def test_a_push_goes_on_where_it_broke_off(tmp_path: Path, faults: list[str]) -> None:
    _, plain = registry_client(tmp_path)
    transport = Flaky(plain._app)
    transport.faults = list(faults)
    content = os.urandom(9 << 20)
    client = client_over(transport)
    digest, _ = client.write_blob([content])
    assert b"".join(checked_blob(client, Descriptor(media_type="x", digest=digest, size=len(content)))) == content


def test_a_registry_that_forgot_part_of_an_upload_is_unavailable(tmp_path: Path) -> None:
    _, plain = registry_client(tmp_path)

    class Forgetful(Flaky):
        def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
            if method == "GET" and "/uploads/" in url:
                return Answer(204, range="0-999999999")
            return super().open(method, url, headers, body)

    transport = Forgetful(plain._app)
    transport.faults = ["half"]
    assert refused(lambda: client_over(transport).write_blob([bytes(9 << 20)])) == "upload_lost"


# -- other servers ----------------------------------------------------------------------------------------------


def redirect(to: str) -> Answer:
    return Answer(307, location=to)


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:8006/cdh/resource/default/key/1",
        "https://images.test/x",
        "//evil.test/",
        "http://images.test:81/",
    ],
)
def test_a_guest_is_not_sent_elsewhere(to: str) -> None:
    for status in (301, 302, 303, 307, 308):
        script = Script(Answer(status, location=to))
        assert refused(lambda script=script: list(client_over(script).stream_blob(LAYER))) == "other_origin"
        assert len(script.asked) == 1
    upload = Script(Answer(202, location=to))
    assert refused(lambda: client_over(upload).write_blob([b"x"])) == "other_origin"
    assert len(upload.asked) == 1


def test_an_owner_may_be_sent_elsewhere_without_credentials() -> None:
    script = Script(
        Answer(401, www_authenticate='Basic realm="x"'), redirect("https://storage.test/blob?sig=1"), Answer(200, BLOB)
    )
    client = client_over(script, plain_http=False, other_origins=True, credentials=Credentials("user", "word"))
    assert b"".join(checked_blob(client, LAYER)) == BLOB
    assert [("Authorization" in headers) for _, _, headers in script.asked] == [False, True, False]


def test_nobody_is_sent_from_tls_to_plain_http() -> None:
    script = Script(redirect("http://storage.test/blob"))
    client = client_over(script, plain_http=False, other_origins=True)
    assert refused(lambda: list(client.stream_blob(LAYER))) == "other_origin"


def test_circles_end() -> None:
    script = Script(redirect("/v2/again"))
    assert refused(lambda: list(client_over(script).stream_blob(LAYER))) == "redirects"
    assert len(script.asked) == 6


@pytest.mark.parametrize("location", ["", "ftp://images.test/", "http://user@images.test/", "http://[x"])
def test_addresses_that_are_none_are_refused(location: str) -> None:
    assert refused(lambda: client_over(Script(Answer(202, location=location))).write_blob([b"x"])) in (
        "no_location",
        "other_origin",
        "oci.transport.bad_url",
    )


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://Host.TEST:80/a?b", "http://host.test"),
        ("https://host:443", "https://host"),
        ("https://host:80/", "https://host:80"),
        ("HTTP://[::1]:5000/x", "http://[::1]:5000"),
    ],
)
def test_origins_are_compared_in_one_form(url: str, origin: str) -> None:
    assert split_origin(url)[0] == origin


# -- authentication ---------------------------------------------------------------------------------------------

CHALLENGE = 'Bearer realm="https://auth.images.test/token",service="images.test",scope="repository:team/app:pull"'


def test_anonymous_token() -> None:
    script = Script(Answer(401, www_authenticate=CHALLENGE), Answer(200, b'{"token":"abc"}'), Answer(200, INDEX))
    client = client_over(script, plain_http=False, other_origins=True)
    assert client.get_manifest("v1") is not None
    _, token_url, token_headers = script.asked[1]
    assert token_url == "https://auth.images.test/token?service=images.test&scope=repository%3Ateam%2Fapp%3Apull"
    assert token_headers == {}
    assert script.asked[2][2]["Authorization"] == "Bearer abc"


def test_the_token_is_used_again_and_renewed_when_it_is_refused() -> None:
    script = Script(
        Answer(401, www_authenticate=CHALLENGE),
        Answer(200, b'{"access_token":"one"}'),
        Answer(200, INDEX),
        Answer(401, www_authenticate=CHALLENGE),
        Answer(200, b'{"token":"two"}'),
        Answer(200, INDEX),
    )
    client = client_over(script, plain_http=False, other_origins=True, credentials=Credentials("user", "word"))
    client.get_manifest("v1")
    client.get_manifest("v1")
    sent = [headers.get("Authorization") for _, _, headers in script.asked]
    basic = "Basic " + base64.b64encode(b"user:word").decode()
    assert sent == [None, basic, "Bearer one", "Bearer one", basic, "Bearer two"]


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([Answer(401)], "denied"),
        ([Answer(401, www_authenticate="Negotiate")], "denied"),
        ([Answer(401, www_authenticate='Basic realm="x"')], "denied"),
        ([Answer(401, www_authenticate="Bearer service=x")], "bad_challenge"),
        ([Answer(401, www_authenticate=CHALLENGE), Answer(403)], "denied"),
        ([Answer(401, www_authenticate=CHALLENGE), Answer(200, b"{}")], "bad_token"),
        ([Answer(401, www_authenticate=CHALLENGE), Answer(200, b'{"token":"a\\nb"}')], "bad_token"),
        ([Answer(401, www_authenticate=CHALLENGE), Answer(200, b'{"token":3}')], "bad_token"),
        ([Answer(401, www_authenticate=CHALLENGE), Answer(200, b"x" * 70_000)], "bad_token"),
        ([Answer(401, www_authenticate=CHALLENGE), Answer(200, b'{"token":"a"}'), Answer(401)], "denied"),
        ([Answer(401, www_authenticate=CHALLENGE.replace("https", "http"))], "other_origin"),
    ],
)
def test_failed_authentication(answers: list[Answer], code: str) -> None:
    client = client_over(Script(*answers), plain_http=False, other_origins=True)
    assert refused(lambda: client.get_manifest("v1")) == code


def test_a_guest_asks_no_other_server_for_a_token() -> None:
    realm = 'Bearer realm="http://127.0.0.1:8006/aa/token?token_type=kbs"'
    script = Script(Answer(401, www_authenticate=realm), Answer(200, b'{"token":"stolen"}'))
    assert refused(lambda: client_over(script).get_manifest("v1")) == "other_origin"
    assert len(script.asked) == 1


def test_passwords_are_not_shown() -> None:
    assert "hunter2" not in repr(Credentials("user", "hunter2"))


def test_manifest_types_are_asked_for() -> None:
    script = Script(Answer(404))
    client_over(script).get_manifest("v1")
    assert OCI_MANIFEST in script.asked[0][2]["Accept"]
