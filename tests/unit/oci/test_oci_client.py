"""What users of registries expect of a client: mounts, scopes, identity tokens, patience, tags, parallel transfers."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from cloister.errors import ImageRefused, Unavailable
from cloister.host.registry.app import RegistryApp
from cloister.host.registry.auth import AccessControl
from cloister.host.registry.store import RegistryStore
from cloister.oci.digest import Digest
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, parse_manifest
from cloister.oci.session import Credentials, is_neighbour
from cloister.oci.store import checked_blob, choose_platform, copy_blob, read_manifest
from cloister.oci.transfer import copy_blobs, copy_image
from cloister.oci.transport import Response, is_inside_address
from unit.oci.builders import InProcessTransport, archive, build_layout, client_over, file
from unit.oci.test_oci_distribution import BLOB, INDEX, LAYER, Answer, Script, down, redirect, refused

ANN = Credentials("ann", "word")


class Guarded(InProcessTransport):
    """A registry that asks for tokens; `now` is its clock."""

    def __init__(self, root: Path) -> None:
        self.now = 0.0
        access = AccessControl({"ann": "word"}, tokens=True, token_seconds=60, clock=lambda: self.now)
        super().__init__(RegistryApp(RegistryStore(root), access))

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        return super().open(method, url, {"Host": "images.test", **headers}, body)


# -- tokens -----------------------------------------------------------------------------------------------------


def test_a_token_is_made_for_pulling_then_for_pushing_and_renewed_when_it_ran_out(tmp_path: Path) -> None:
    transport = Guarded(tmp_path)
    client = client_over(transport, credentials=ANN)
    assert client.get_manifest("v1") is None
    digest, _ = client.write_blob([BLOB])
    client.write_manifest(INDEX, OCI_INDEX, "v1")
    assert sum(line == "GET /token" for line in transport.log) == 2
    transport.now = 61
    assert b"".join(checked_blob(client, LAYER)) == BLOB
    assert client.has_blob(digest)
    assert sum(line == "GET /token" for line in transport.log) == 3
    for wrong in (Credentials("ann", "other"), None):
        assert refused(lambda wrong=wrong: client_over(transport, credentials=wrong).get_manifest("v1")) == "denied"


def test_a_long_upload_goes_on_with_a_new_token(tmp_path: Path) -> None:
    transport = Guarded(tmp_path)
    content = os.urandom(9 << 20)

    def chunks() -> Any:
        for start in range(0, len(content), 1 << 20):
            yield content[start : start + (1 << 20)]
            transport.now += 30

    assert client_over(transport, credentials=ANN).write_blob(chunks()) == (Digest.of(content), len(content))


def test_a_blob_is_mounted_with_a_token_for_both_repositories(tmp_path: Path) -> None:
    transport = Guarded(tmp_path)
    first, second = (client_over(transport, name, credentials=ANN) for name in ("team/app", "other/app"))
    first.write_blob([BLOB])
    transport.log.clear()
    assert second.mount_blob(first, LAYER.digest)
    assert [line.partition(" ")[0] for line in transport.log] == ["POST", "GET", "POST"]
    assert not second.mount_blob(first, Digest.of(b"nowhere"))
    assert transport.log[-1].startswith("DELETE")


def test_copying_between_repositories_moves_no_bytes(tmp_path: Path) -> None:
    transport = InProcessTransport(RegistryApp(RegistryStore(tmp_path)))
    first, second = (client_over(transport, name) for name in ("a", "b"))
    first.write_blob([BLOB])
    transport.log.clear()

    class Elsewhere:
        """Blobs are listed per repository by most registries; the embedded one shares them."""

        def has_blob(self, _: Digest) -> bool:
            return False

        def __getattr__(self, name: str) -> Any:
            return getattr(second, name)

    copy_blob(first, Elsewhere(), LAYER)  # type: ignore[arg-type]  # a sink by its attributes
    assert [line.partition(" ")[0] for line in transport.log] == ["POST"]


def test_nothing_is_mounted_from_another_server_or_a_layout(tmp_path: Path) -> None:
    client = client_over(Script(Answer(500)))
    assert not client.mount_blob(OCILayout(tmp_path, create=True), LAYER.digest)
    assert not client.mount_blob(client_over(Script(Answer(500)), plain_http=False), LAYER.digest)


CHALLENGE = (
    'Bearer realm="https://auth.images.test/token",service="images.test",scope="repository:a:pull repository:b:pull"'
)


def test_every_scope_is_asked_for_by_itself() -> None:
    script = Script(Answer(401, www_authenticate=CHALLENGE), Answer(200, b'{"token":"t"}'), Answer(404))
    client_over(script, plain_http=False, other_origins=True).get_manifest("v1")
    query = parse_qs(script.asked[1][1].partition("?")[2])
    assert query == {"service": ["images.test"], "scope": ["repository:a:pull", "repository:b:pull"]}


class Recorded(Script):
    """Keeps bodies, too."""

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        self.bodies = [*getattr(self, "bodies", []), body]
        return super().open(method, url, headers, body)


def test_an_identity_token_is_given_to_the_token_service_by_post() -> None:
    script = Recorded(Answer(401, www_authenticate=CHALLENGE), Answer(200, b'{"access_token":"t"}'), Answer(404))
    identity = Credentials("<token>", "", identity_token="i&d")
    assert "i&d" not in repr(identity)
    client_over(script, plain_http=False, other_origins=True, credentials=identity).get_manifest("v1")
    method, url, headers = script.asked[1]
    assert (method, url, "Authorization" in headers) == ("POST", "https://auth.images.test/token", False)
    form = parse_qs((script.bodies[1] or b"").decode())
    assert (form["grant_type"], form["refresh_token"], form["service"]) == (["refresh_token"], ["i&d"], ["images.test"])
    assert form["scope"] == ["repository:a:pull repository:b:pull"]
    assert script.asked[2][2]["Authorization"] == "Bearer t"


def test_an_identity_token_is_no_password() -> None:
    identity = Credentials("<token>", "", identity_token="id")
    script = Script(Answer(401, www_authenticate='Basic realm="x"'))
    assert refused(lambda: client_over(script, credentials=identity).get_manifest("v1")) == "denied"
    script = Script(Answer(401, www_authenticate=CHALLENGE), Answer(404))
    client = client_over(script, plain_http=False, other_origins=True, credentials=identity)
    assert refused(lambda: client.get_manifest("v1")) == "denied"
    assert len(script.asked) == 2


# -- credentials stay with who they are for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("realm", "taken"),
    [
        ("https://images.test/token", True),
        ("https://images.test:5001/token", True),
        ("https://auth.images.test/token", True),
        ("https://login.corp.test/token", True),  # named by the owner
        ("https://evil.test/token", False),
        ("https://images.test.evil.test/token", False),
        ("https://notimages.test/token", False),
        ("https://10.0.0.1/token", False),
    ],
)
def test_credentials_are_shown_to_the_registrys_own_token_service_only(realm: str, taken: bool) -> None:
    script = Script(Answer(401, www_authenticate=f'Bearer realm="{realm}"'), Answer(200, b'{"token":"t"}'), Answer(404))
    client = client_over(
        script, plain_http=False, other_origins=True, credentials=ANN, token_services=["https://login.corp.test"]
    )
    if taken:
        assert client.get_manifest("v1") is None
        assert script.asked[1][2]["Authorization"] == ANN.basic
    else:
        assert refused(lambda: client.get_manifest("v1")) == "token_service"
        assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("host", "registry", "neighbours"),
    [
        ("auth.docker.io", "registry-1.docker.io", True),
        ("gitlab.com", "registry.gitlab.com", True),
        ("auth.registry.corp.test", "registry.corp.test", True),
        ("evil.io", "registry-1.docker.io", False),
        ("evil.io", "docker.io", False),
        ("evildocker.io", "registry-1.docker.io", False),
        ("10.0.0.2", "10.0.0.1", False),
        ("0.0.1", "10.0.0.1", False),
        ("", "registry.corp.test", False),
    ],
)
def test_neighbours(host: str, registry: str, neighbours: bool) -> None:
    assert is_neighbour(host, registry) is neighbours


def test_a_token_is_not_sent_to_where_a_redirect_leads() -> None:
    script = Script(
        Answer(401, www_authenticate=CHALLENGE),
        Answer(200, b'{"token":"t"}'),
        redirect("https://storage.test/blob"),
        redirect("https://images.test/back"),
        Answer(200, BLOB),
    )
    client = client_over(script, plain_http=False, other_origins=True, credentials=ANN)
    assert b"".join(checked_blob(client, LAYER)) == BLOB
    sent = {url: headers.get("Authorization") for _, url, headers in script.asked[2:]}
    assert sent["https://storage.test/blob"] is None
    assert sent["https://images.test/back"] == "Bearer t"


@pytest.mark.parametrize(
    "place",
    ["127.0.0.1:8006", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "localhost", "a.localhost.",
     "169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "0.0.0.1", "[::]"],
)  # fmt: skip
def test_an_owner_is_not_sent_inside_their_own_machine(place: str) -> None:
    for other in (f"http://{place}/x", f"https://{place}/x"):
        script = Script(redirect(other))
        client = client_over(script, plain_http=other.startswith("http:"), other_origins=True)
        assert refused(lambda client=client: list(client.stream_blob(LAYER))) == "inside_address"
        assert len(script.asked) == 1
        script = Script(Answer(401, www_authenticate=f'Bearer realm="{other}"'))
        client = client_over(script, plain_http=other.startswith("http:"), other_origins=True)
        assert refused(lambda client=client: client.get_manifest("v1")) == "inside_address"


@pytest.mark.parametrize("host", ["images.test", "10.0.0.1", "8.8.8.8", "2001:db8::1", "localhost.test", "127.test"])
def test_other_addresses_are_not_inside(host: str) -> None:
    assert not is_inside_address(host)


# -- patience ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "pauses"),
    [
        ("3", [3, 3, 3]),
        ("0", [0.2, 0.4, 0.8]),
        ("86400", [15, 15, 15]),
        ("9" * 40, [0.2, 0.4, 0.8]),
        ("-1", [0.2, 0.4, 0.8]),
    ],
)
def test_a_registry_is_given_the_time_it_asks_for_within_a_ceiling(asked: str, pauses: list[float]) -> None:
    slept: list[float] = []
    script = Script(Answer(429, retry_after=asked))
    assert refused(lambda: client_over(script, sleep=slept.append).get_manifest("v1")) == "busy"
    assert slept == pauses


# -- uploads ----------------------------------------------------------------------------------------------------


class Counting(InProcessTransport):
    """Asks for long chunks, and loses the answer to the closing request some times."""

    least = ""
    lost = 0

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        answer = super().open(method, url, headers, body)
        if method == "POST" and self.least:
            answer.headers["oci-chunk-min-length"] = self.least
        if method == "PUT" and self.lost:
            self.lost -= 1
            raise down()
        return answer


@pytest.mark.parametrize(("least", "patches"), [("", 3), ("5000000", 2), ("9999999999", 0), ("x", 3)])
def test_chunks_are_as_long_as_the_registry_asks(tmp_path: Path, least: str, patches: int) -> None:
    transport = Counting(RegistryApp(RegistryStore(tmp_path)))
    transport.least = least
    content = bytes(9 << 20)
    assert client_over(transport).write_blob([content])[0] == Digest.of(content)
    assert sum(line.startswith("PATCH") for line in transport.log) == patches


@pytest.mark.parametrize("size", [10, 9 << 20])
def test_an_upload_whose_last_answer_was_lost_is_done(tmp_path: Path, size: int) -> None:
    transport = Counting(RegistryApp(RegistryStore(tmp_path)))
    transport.lost = 1
    content = bytes(size)
    assert client_over(transport).write_blob([content])[0] == Digest.of(content)


# -- tags -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_tags_are_listed_and_deleted(tmp_path: Path) -> None:
    client = client_over(InProcessTransport(RegistryApp(RegistryStore(tmp_path))))
    for number in range(1005):
        client.write_manifest(INDEX, OCI_INDEX, f"v{number:04}")
    assert client.list_tags() == tuple(f"v{number:04}" for number in range(1005))
    assert client.delete_manifest("v0000")
    assert not client.delete_manifest("v0000")
    assert len(client.list_tags()) == 1004


@pytest.mark.parametrize(
    "script",
    [
        Script(Answer(200, bytes((4 << 20) + 1))),
        Script(lambda *_: Answer(200, b'{"name":"a","tags":["x"]}', link="<again>; rel=next")),
    ],
)
def test_tags_without_end_are_refused(script: Script) -> None:
    assert refused(lambda: client_over(script).list_tags()) == "too_many_tags"
    assert len(script.asked) <= 1024


@pytest.mark.parametrize(
    ("body", "code"), [(b"[]", "tags.not_json"), (b'{"tags":[1]}', "tags.wrong_type"), (b"x", "tags.not_json")]
)
def test_tags_that_are_none_are_refused(body: bytes, code: str) -> None:
    assert refused(lambda: client_over(Script(Answer(200, body))).list_tags()) == code


# -- platforms and whole images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v2"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/arm/v5", None),
        ("linux/arm/v9", "linux/arm/v7"),
        ("linux/arm", "linux/arm/v6"),
        ("windows/amd64", None),
        ("linux/s390x", None),
    ],
)
def test_variants(wanted: str, chosen: str | None) -> None:
    names = ["linux/arm64/v8", "linux/arm/v7", "linux/arm/v6", "linux/amd64/v2", "linux/amd64", "unknown/unknown",
             "linux/amd64/vx"]  # fmt: skip
    entries = [
        Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(name.encode()), size=1, platform=name) for name in names
    ]
    found = choose_platform(entries, wanted)
    assert (found.platform if found else None) == chosen


def test_an_index_is_copied_with_its_images(tmp_path: Path) -> None:
    amd = build_layout(tmp_path / "l", archive(file(b"a", b"amd")), tag="amd")
    arm = build_layout(tmp_path / "l", archive(file(b"a", b"arm")), tag="arm")
    entries = ",".join(f'{{"mediaType":"{OCI_MANIFEST}","digest":"{item.digest}","size":500}}' for item in (amd, arm))
    index = f'{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entries}]}}'.encode()
    amd.layout.write_manifest(index, OCI_INDEX, "multi")
    client = client_over(InProcessTransport(RegistryApp(RegistryStore(tmp_path / "r"))))
    assert copy_image(amd.layout, "multi", client, "v1") == Digest.of(index)
    for item in (amd, arm):
        manifest = parse_manifest(read_manifest(client, item.digest).raw)
        assert [b"".join(checked_blob(client, layer)) for layer in manifest.layers] == list(item.layers)


class Slow:
    """A source whose blobs come when all of a number of them were asked for."""

    code = "test"

    def __init__(self, blobs: list[bytes], together: int) -> None:
        self._blobs = {Digest.of(blob): blob for blob in blobs}
        self._barrier = threading.Barrier(together, timeout=10)
        self.most = self._now = 0
        self._lock = threading.Lock()

    def get_manifest(self, _: str) -> None:
        return None

    def referrers(self, _: Digest) -> None:
        return None

    def stream_blob(self, descriptor: Descriptor) -> Any:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._barrier.wait()
        blob = self._blobs[descriptor.digest]
        yield blob if blob != b"blob 2" else b"BLOB 2"
        with self._lock:
            self._now -= 1


def describe(blobs: list[bytes]) -> list[Descriptor]:
    return [Descriptor(media_type="x", digest=Digest.of(blob), size=len(blob)) for blob in blobs]


def test_blobs_are_copied_so_many_at_once(tmp_path: Path) -> None:
    blobs = [f"layer {number}".encode() for number in range(8)]
    source, sink, told = Slow(blobs, 4), OCILayout(tmp_path, create=True), []
    copy_blobs(source, sink, describe([*blobs, blobs[0]]), at_once=4, advance=told.append)
    assert source.most == 4
    assert all(sink.has_blob(Digest.of(blob)) for blob in blobs)
    assert sum(told) == sum(map(len, blobs))


def test_the_first_blob_that_is_wrong_is_told(tmp_path: Path) -> None:
    blobs = [f"blob {number}".encode() for number in range(4)]
    with pytest.raises(ImageRefused) as caught:
        copy_blobs(Slow(blobs, 4), OCILayout(tmp_path, create=True), describe(blobs), at_once=4)
    assert (caught.value.code, str(Digest.of(b"blob 2")) in caught.value.path) == ("test.digest_mismatch", True)


def test_what_is_too_deep_is_not_copied(tmp_path: Path) -> None:
    layout = OCILayout(tmp_path / "l", create=True)
    digest = layout.write_manifest(INDEX, OCI_INDEX)
    for number in range(5):
        entry = f'{{"mediaType":"{OCI_INDEX}","digest":"{digest}","size":{100 + number}}}'
        raw = f'{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entry}]}}'.encode()
        digest = layout.write_manifest(raw, OCI_INDEX)
    with pytest.raises(ImageRefused) as caught:
        copy_image(layout, digest, OCILayout(tmp_path / "s", create=True), "v1")
    assert caught.value.code == "oci.manifest.nested"


def test_a_registry_that_goes_away_is_unavailable(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", archive(file(b"a", b"b")))
    with pytest.raises(Unavailable) as caught:
        copy_image(built.layout, "v1", client_over(Script(down())), "v1")
    assert caught.value.code == "oci.transport.unreachable"
