"""The embedded registry's interface, request by request."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cloister.host.registry.app import RegistryApp
from cloister.host.registry.store import RegistryStore
from cloister.oci.digest import Digest
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST
from unit.oci.builders import InProcessResponse, InProcessTransport

CONTENT = b"0123456789"
DIGEST = Digest.of(CONTENT)


class Registry:
    """Sends requests to a registry in process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._transport = InProcessTransport(RegistryApp(RegistryStore(root)))

    def __call__(self, method: str, path: str, body: bytes | None = None, **headers: str) -> InProcessResponse:
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        answer = self._transport.open(method, f"http://images.test{path}", sent, body)
        assert isinstance(answer, InProcessResponse)
        return answer

    def put_blob(self, content: bytes = CONTENT, name: str = "a") -> str:
        answer = self("POST", f"/v2/{name}/blobs/uploads/?digest={Digest.of(content)}", content)
        assert answer.status == 201
        return str(Digest.of(content))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def body_of(answer: InProcessResponse) -> Any:
    return json.loads(answer.read(1 << 20))


def manifest(**more: Any) -> bytes:
    descriptor = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(DIGEST), "size": 10}
    base = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": [descriptor]}
    return json.dumps({**base, **more}).encode()


def test_ping(registry: Registry) -> None:
    for path in ("/v2/", "/v2"):
        answer = registry("GET", path)
        assert (answer.status, body_of(answer)) == (200, {})
        assert answer.header("docker-distribution-api-version") == "registry/2.0"


def test_blob_in_chunks(registry: Registry) -> None:
    begun = registry("POST", "/v2/a/b/blobs/uploads/")
    assert begun.status == 202
    where = begun.header("location")
    first = registry("PATCH", where, CONTENT[:4], content_range="0-3")
    assert (first.status, first.header("range")) == (202, "0-3")
    state = registry("GET", where)
    assert (state.status, state.header("range")) == (204, "0-3")
    second = registry("PATCH", first.header("location"), CONTENT[4:7], content_range="4-6")
    done = registry("PUT", f"{second.header('location')}?digest={DIGEST}", CONTENT[7:])
    assert (done.status, done.header("docker-content-digest")) == (201, str(DIGEST))
    assert registry("GET", f"/v2/a/b/blobs/{DIGEST}").read(100) == CONTENT
    assert registry("GET", where).status == 404


def test_chunks_out_of_order_are_refused(registry: Registry) -> None:
    where = registry("POST", "/v2/a/blobs/uploads/").header("location")
    registry("PATCH", where, CONTENT[:4])
    for claimed in ("0-3", "5-9", "nonsense", "-1-2"):
        answer = registry("PATCH", where, CONTENT, content_range=claimed)
        assert (answer.status, answer.header("range")) == (416, "0-3")


def test_chunks_of_another_length_than_their_range_are_refused(registry: Registry) -> None:
    where = registry("POST", "/v2/a/blobs/uploads/").header("location")
    answer = registry("PATCH", where, CONTENT, content_range="0-3", content_length="10")
    assert (answer.status, body_of(answer)["errors"][0]["code"]) == (400, "SIZE_INVALID")
    assert registry("PATCH", where, CONTENT, content_range="0-9", content_length="10").status == 202


def test_other_digest_is_refused_and_the_upload_gone(registry: Registry) -> None:
    where = registry("POST", "/v2/a/blobs/uploads/").header("location")
    answer = registry("PUT", f"{where}?digest={Digest.of(b'other')}", CONTENT)
    assert (answer.status, body_of(answer)["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    assert registry("GET", where).status == 404
    assert list((registry.root / "uploads").iterdir()) == []


def test_sha512_blobs(registry: Registry) -> None:
    digest = Digest.of(CONTENT, "sha512")
    assert registry("POST", f"/v2/a/blobs/uploads/?digest={digest}", CONTENT).status == 201
    assert registry("GET", f"/v2/a/blobs/{digest}").read(100) == CONTENT


def test_an_upload_can_be_cancelled(registry: Registry) -> None:
    where = registry("POST", "/v2/a/blobs/uploads/").header("location")
    assert registry("DELETE", where).status == 204
    assert registry("PATCH", where, CONTENT).status == 404


def test_uploads_at_once_are_bounded_and_old_ones_go_when_a_registry_starts(registry: Registry) -> None:
    statuses = [registry("POST", "/v2/a/blobs/uploads/").status for _ in range(65)]
    assert statuses == [202] * 64 + [503]
    uploads = sorted((registry.root / "uploads").iterdir())
    for upload in uploads[1:]:
        os.utime(upload, (0, 0))
    Registry(registry.root)
    assert list((registry.root / "uploads").iterdir()) == uploads[:1]


def test_a_known_blob_is_mounted(registry: Registry) -> None:
    digest = registry.put_blob()
    answer = registry("POST", f"/v2/other/blobs/uploads/?mount={digest}&from=a")
    assert (answer.status, answer.header("location")) == (201, f"/v2/other/blobs/{digest}")
    unknown = registry("POST", f"/v2/other/blobs/uploads/?mount={Digest.of(b'x')}&from=a")
    assert unknown.status == 202


@pytest.mark.parametrize(
    ("wanted", "status", "content", "content_range"),
    [
        ("", 200, CONTENT, ""),
        ("bytes=0-", 200, CONTENT, ""),
        ("bytes=3-", 206, b"3456789", "bytes 3-9/10"),
        ("bytes=3-5", 206, b"345", "bytes 3-5/10"),
        ("bytes=3-500", 206, b"3456789", "bytes 3-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-50", 200, CONTENT, ""),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=5-3", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=1-2,4-5", 200, CONTENT, ""),
        ("items=1-2", 200, CONTENT, ""),
    ],
)
def test_ranges(registry: Registry, wanted: str, status: int, content: bytes, content_range: str) -> None:
    digest = registry.put_blob()
    answer = registry("GET", f"/v2/a/blobs/{digest}", range=wanted)
    assert (answer.status, answer.read(100), answer.header("content-range")) == (status, content, content_range)


def test_head_has_length_and_no_body(registry: Registry) -> None:
    digest = registry.put_blob()
    answer = registry("HEAD", f"/v2/a/blobs/{digest}")
    assert (answer.status, answer.header("content-length"), answer.read(100)) == (200, "10", b"")
    registry("PUT", "/v2/a/manifests/v1", manifest(), content_type=OCI_MANIFEST)
    answer = registry("HEAD", "/v2/a/manifests/v1")
    assert (answer.status, answer.header("content-length"), answer.read(9)) == (200, str(len(manifest())), b"")


def test_blobs_can_be_deleted(registry: Registry) -> None:
    digest = registry.put_blob()
    assert registry("DELETE", f"/v2/a/blobs/{digest}").status == 202
    assert registry("GET", f"/v2/a/blobs/{digest}").status == 404
    assert registry("DELETE", f"/v2/a/blobs/{digest}").status == 404


def test_manifests(registry: Registry) -> None:
    raw = manifest()
    put = registry("PUT", "/v2/a/b/manifests/v1", raw, content_type=f"{OCI_MANIFEST}; charset=utf-8")
    assert (put.status, put.header("docker-content-digest")) == (201, str(Digest.of(raw)))
    registry("PUT", f"/v2/a/b/manifests/{Digest.of(raw)}", raw, content_type=OCI_MANIFEST)
    for selector in ("v1", str(Digest.of(raw))):
        answer = registry("GET", f"/v2/a/b/manifests/{selector}")
        assert (answer.status, answer.header("content-type"), answer.read(1 << 20)) == (200, OCI_MANIFEST, raw)
    assert registry("GET", "/v2/other/manifests/v1").status == 404
    assert registry("GET", f"/v2/other/manifests/{Digest.of(raw)}").status == 404
    assert registry("DELETE", "/v2/a/b/manifests/v1").status == 202
    assert registry("GET", f"/v2/a/b/manifests/{Digest.of(raw)}").status == 200
    registry("PUT", "/v2/a/b/manifests/v2", raw, content_type=OCI_MANIFEST)
    assert registry("DELETE", f"/v2/a/b/manifests/{Digest.of(raw)}").status == 202
    assert registry("GET", "/v2/a/b/manifests/v2").status == 404
    assert registry("DELETE", "/v2/a/b/manifests/v2").status == 404


@pytest.mark.parametrize(
    ("path", "raw", "media_type"),
    [
        ("v1", b"not json", OCI_MANIFEST),
        ("v1", b"{}", OCI_MANIFEST),
        ("v1", manifest(mediaType="text/plain"), "text/plain"),
        ("v1", manifest(), OCI_INDEX),
        ("v1", manifest(layers=3), OCI_MANIFEST),
        ("v1", b"x" * ((4 << 20) + 1), OCI_MANIFEST),
        (".hidden", manifest(), OCI_MANIFEST),
        (str(Digest.of(b"other")), manifest(), OCI_MANIFEST),
        ("sha256:short", manifest(), OCI_MANIFEST),
    ],
)
def test_other_manifests_are_refused(registry: Registry, path: str, raw: bytes, media_type: str) -> None:
    answer = registry("PUT", f"/v2/a/manifests/{path}", raw, content_type=media_type)
    assert answer.status == (413 if len(raw) > 4 << 20 else 400)
    assert body_of(answer)["errors"][0]["code"] in ("MANIFEST_INVALID", "DIGEST_INVALID", "SIZE_INVALID")
    assert not (registry.root / "repositories").exists()


def test_tags_are_listed_in_pages(registry: Registry) -> None:
    assert registry("GET", "/v2/a/tags/list").status == 404
    for tag in ("c", "a", "b"):
        registry("PUT", f"/v2/a/manifests/{tag}", manifest(), content_type=OCI_MANIFEST)
    assert body_of(registry("GET", "/v2/a/tags/list")) == {"name": "a", "tags": ["a", "b", "c"]}
    page = registry("GET", "/v2/a/tags/list?n=2")
    assert page.header("link") == '</v2/a/tags/list?n=2&last=b>; rel="next"'
    assert body_of(page)["tags"] == ["a", "b"]
    assert body_of(registry("GET", "/v2/a/tags/list?n=2&last=b"))["tags"] == ["c"]
    assert body_of(registry("GET", "/v2/a/tags/list?n=0"))["tags"] == []


def test_referrers(registry: Registry) -> None:
    subject = Digest.of(manifest())
    assert body_of(registry("GET", f"/v2/a/referrers/{subject}"))["manifests"] == []
    described = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 1}
    signature = manifest(subject=described, artifactType="application/x-sig", annotations={"k": "v"})
    put = registry("PUT", f"/v2/a/manifests/{Digest.of(signature)}", signature, content_type=OCI_MANIFEST)
    assert (put.status, put.header("oci-subject")) == (201, str(subject))
    plain = manifest(subject=described)
    registry("PUT", "/v2/a/manifests/other", plain, content_type=OCI_MANIFEST)
    found = registry("GET", f"/v2/a/referrers/{subject}")
    assert found.header("content-type") == OCI_INDEX
    types = {entry["digest"]: entry["artifactType"] for entry in body_of(found)["manifests"]}
    assert types == {
        str(Digest.of(signature)): "application/x-sig",
        str(Digest.of(plain)): "application/vnd.oci.empty.v1+json",
    }
    filtered = registry("GET", f"/v2/a/referrers/{subject}?artifactType=application/x-sig")
    assert filtered.header("oci-filters-applied") == "artifactType"
    (entry,) = body_of(filtered)["manifests"]
    assert entry["annotations"] == {"k": "v"}


def test_referrers_are_listed_in_pages(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.host.registry.app._REFERRERS_PER_PAGE", 2)
    subject = Digest.of(manifest())
    described = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 1}
    for number in range(5):
        raw = manifest(subject=described, artifactType="application/x-sig", annotations={"n": str(number)})
        registry("PUT", f"/v2/a/manifests/{Digest.of(raw)}", raw, content_type=OCI_MANIFEST)
    path, seen = f"/v2/a/referrers/{subject}?artifactType=application/x-sig", []
    while path:
        page = registry("GET", path)
        seen.append([entry["annotations"]["n"] for entry in body_of(page)["manifests"]])
        path = page.header("link").removeprefix("<").partition(">")[0]
    assert [len(names) for names in seen] == [2, 2, 1]
    assert sorted(name for names in seen for name in names) == list("01234")


def test_a_manifest_pushed_without_a_type_has_its_own(registry: Registry) -> None:
    assert registry("PUT", "/v2/a/manifests/v1", manifest()).status == 201
    assert registry("GET", "/v2/a/manifests/v1").header("content-type") == OCI_MANIFEST


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/token", 404),
        ("GET", "/v2/a/unknown/x", 404),
        ("GET", "/v2/../../etc/passwd", 404),
        ("GET", "/v2/../x/blobs/" + str(DIGEST), 400),
        ("GET", "/v2/a/../../blobs/" + str(DIGEST), 400),
        ("GET", "/v2/A/blobs/" + str(DIGEST), 400),
        ("GET", "/v2/a/_tags/x/manifests/v1", 400),
        ("GET", "/v2/a/blobs/sha256:..", 400),
        ("GET", "/v2/a/blobs/" + str(DIGEST), 404),
        ("GET", "/v2/a/manifests/..", 400),
        ("GET", "/v2/a/tags/other", 404),
        ("GET", "/v2/a/blobs/uploads/", 405),
        ("GET", "/v2/a/blobs/uploads/..", 404),
        ("POST", "/v2/a/blobs/" + str(DIGEST), 405),
        ("POST", "/v2/a/manifests/v1", 405),
        ("POST", "/v2/a/tags/list", 405),
        ("POST", "/v2/a/blobs/uploads/?digest=md5:x", 400),
    ],
)
def test_other_requests(registry: Registry, method: str, path: str, status: int) -> None:
    assert registry(method, path).status == status
