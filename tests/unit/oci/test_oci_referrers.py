"""What refers to an image: listed by registries with and without that API, by layouts, and by stores that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, Unavailable
from cloister.host.registry.app import RegistryApp
from cloister.host.registry.store import RegistryStore
from cloister.oci.archive import DockerArchive, OCIArchive
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, parse_index
from cloister.oci.referrers import attach_referrer, list_referrers, read_referrers
from cloister.oci.store import ImageStore, read_manifest, referrers_tag
from unit.oci.builders import InProcessTransport, archive, build_layout, client_over, file
from unit.oci.test_oci_distribution import Answer, Script
from unit.oci.test_oci_stores import docker_members, layout_members, pack

SUBJECT = Digest.of(b"the image")
EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
KIND = "application/vnd.dev.sigstore.bundle.v0.3+json"


def signature(kind: str = KIND, subject: Digest | None = SUBJECT, **more: Any) -> bytes:
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": EMPTY, "layers": [EMPTY]}
    if kind:
        document["artifactType"] = kind
    if subject:
        document["subject"] = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 9}
    return encode_document({**document, **more})


class WithoutAPI(InProcessTransport):
    """A registry of before the referrers API: it does not know subjects."""

    def open(self, method: str, url: str, headers: Any, body: bytes | None = None) -> Any:
        if "/referrers/" in url:
            self.log.append(f"{method} referrers")
            return Answer(404, b"404 page not found")
        answer = super().open(method, url, headers, body)
        answer.headers.pop("oci-subject", None)
        return answer


@pytest.fixture(params=["api", "tag", "layout"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    if request.param == "layout":
        return OCILayout(tmp_path / "layout", create=True)
    kind = InProcessTransport if request.param == "api" else WithoutAPI
    return client_over(kind(RegistryApp(RegistryStore(tmp_path / "registry"))))


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


def test_nothing_refers_to_an_image_nobody_signed(store: ImageStore) -> None:
    assert list_referrers(store, SUBJECT) == ()


def test_what_is_attached_is_found(store: ImageStore) -> None:
    first, second = signature(annotations={"k": "v"}), signature("", annotations={"n": "2"})
    other = signature(subject=Digest.of(b"another"))
    assert attach_referrer(store, first) == Digest.of(first)
    for raw in (second, other, first):
        attach_referrer(store, raw)
    assert {item.digest for item in list_referrers(store, SUBJECT)} == {Digest.of(first), Digest.of(second)}
    listed = {item.digest: (item.artifact_type, dict(item.annotations)) for item in list_referrers(store, SUBJECT)}
    assert listed[Digest.of(first)] == (KIND, {"k": "v"})
    assert listed[Digest.of(second)] == (EMPTY["mediaType"], {"n": "2"})
    assert {item.raw for item in read_referrers(store, SUBJECT)} == {first, second}
    assert [item.raw for item in read_referrers(store, SUBJECT, artifact_types=[KIND])] == [first]


def test_an_index_refers_to_an_image_too(store: ImageStore) -> None:
    raw = encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "artifactType": "application/x-set",
            "manifests": [],
            "subject": {"mediaType": OCI_MANIFEST, "digest": str(SUBJECT), "size": 9},
        }
    )
    attach_referrer(store, raw, media_type=OCI_INDEX)
    (found,) = list_referrers(store, SUBJECT)
    assert (found.media_type, found.digest, found.artifact_type) == (OCI_INDEX, Digest.of(raw), "application/x-set")
    assert list(read_referrers(store, SUBJECT)) == []


def test_what_refers_to_nothing_is_not_attached(store: ImageStore) -> None:
    raw = signature(subject=None)
    assert refused(lambda: attach_referrer(store, raw)) == "oci.referrers.no_subject"
    assert store.get_manifest(str(Digest.of(raw))) is None


def test_without_api_the_list_is_an_index_under_a_tag(tmp_path: Path) -> None:
    transport = WithoutAPI(RegistryApp(RegistryStore(tmp_path)))
    client = client_over(transport)
    attach_referrer(client, signature())
    stored = read_manifest(client, referrers_tag(SUBJECT))
    assert (stored.media_type, len(parse_index(stored.raw).manifests)) == (OCI_INDEX, 1)
    transport.log.clear()
    attach_referrer(client, signature())
    assert not [
        line for line in transport.log if line.endswith(f"manifests/{referrers_tag(SUBJECT)}") and "PUT" in line
    ]


def test_with_api_there_is_no_tag(tmp_path: Path) -> None:
    client = client_over(InProcessTransport(RegistryApp(RegistryStore(tmp_path))))
    attach_referrer(client, signature())
    assert client.get_manifest(referrers_tag(SUBJECT)) is None


def test_members_of_the_list_that_others_wrote_stay(tmp_path: Path) -> None:
    client = client_over(WithoutAPI(RegistryApp(RegistryStore(tmp_path))))
    theirs = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"x")), "size": 1, "x-other": {"a": 1}}
    client.write_manifest(
        encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [theirs]}),
        OCI_INDEX,
        referrers_tag(SUBJECT),
    )
    attach_referrer(client, signature())
    assert json.loads(read_manifest(client, referrers_tag(SUBJECT)).raw)["manifests"][0] == theirs


class Overwriting(WithoutAPI):
    """Another writer replaces the list behind every write of ours, for a number of times."""

    times = 0

    def open(self, method: str, url: str, headers: Any, body: bytes | None = None) -> Any:
        if method == "PUT" and url.endswith(referrers_tag(SUBJECT)) and self.times:
            self.times -= 1
            body = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
            return Answer(201) if super().open(method, url, headers, body) else None
        return super().open(method, url, headers, body)


@pytest.mark.parametrize(("times", "found"), [(0, 1), (2, 1), (9, 0)])
def test_a_list_overwritten_meanwhile_is_written_again(tmp_path: Path, times: int, found: int) -> None:
    transport = Overwriting(RegistryApp(RegistryStore(tmp_path)))
    transport.times = times
    client = client_over(transport)
    if found:
        attach_referrer(client, signature())
    else:
        assert refused(lambda: attach_referrer(client, signature())) == "oci.referrers.overwritten"
    assert len(list_referrers(client, SUBJECT)) == found


def test_a_layout_lists_what_others_put_under_the_tag(tmp_path: Path) -> None:
    layout = OCILayout(tmp_path, create=True)
    layout.write_blob([signature()])
    entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(signature())), "size": len(signature())}
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    layout.write_manifest(index, OCI_INDEX, referrers_tag(SUBJECT))
    assert [item.raw for item in read_referrers(layout, SUBJECT)] == [signature()]


def test_a_signed_image_in_a_layout_is_still_the_only_image(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", archive(file(b"a", b"b")))
    built.layout.write_blob([b"{}"])
    attach_referrer(built.layout, signature(subject=built.digest))
    built.layout.write_manifest(signature(subject=None), OCI_MANIFEST, f"sha256-{built.digest.hex}.sig")
    assert Digest.of(read_manifest(built.layout, "").raw) == built.digest
    packed = OCIArchive(pack(tmp_path / "a.tar", layout_members(tmp_path / "l")))
    assert [item.raw for item in read_referrers(packed, built.digest)] == [signature(subject=built.digest)]
    assert Digest.of(read_manifest(packed, "").raw) == built.digest
    packed.close()


def test_docker_archives_have_no_place_for_it(tmp_path: Path) -> None:
    source = DockerArchive(pack(tmp_path / "d.tar", docker_members(archive(file(b"a", b"b")))))
    assert list_referrers(source, SUBJECT) == ()
    source.close()


def test_a_layouts_manifest_that_cannot_be_read_refers_to_nothing(tmp_path: Path) -> None:
    layout = OCILayout(tmp_path, create=True)
    attach_referrer(layout, signature())
    bad = layout.write_manifest(signature(annotations={"x": "y"}), OCI_MANIFEST, "bad")
    (tmp_path / "blobs" / "sha256" / bad.hex).write_bytes(b"not json")
    assert [item.digest for item in list_referrers(layout, SUBJECT)] == [Digest.of(signature())]


# -- stores that lie --------------------------------------------------------------------------------------------


def listing(*digests: str, kind: str = OCI_MANIFEST) -> bytes:
    entries = [{"mediaType": kind, "digest": digest, "size": 9, "artifactType": "x/y"} for digest in digests]
    return encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def pages(*bodies: bytes, link: str = "</v2/team/app/referrers/next>; rel=next") -> Script:
    answers = [Answer(200, body, content_type=OCI_INDEX, link=link) for body in bodies]
    return Script(*answers[:-1], Answer(200, bodies[-1], content_type=OCI_INDEX))


def fake(number: int) -> str:
    return f"sha256:{number:064x}"


def test_pages_are_followed() -> None:
    script = pages(listing(fake(1), fake(2)), listing(fake(2), fake(3)))
    assert [str(item.digest) for item in list_referrers(client_over(script), SUBJECT)] == [fake(1), fake(2), fake(3)]
    assert script.asked[1][1] == "http://images.test/v2/team/app/referrers/next"


@pytest.mark.parametrize(
    "script",
    [
        Script(Answer(200, bytes((4 << 20) + 1), content_type=OCI_INDEX)),  # a list of a million
        pages(*(listing(*(fake(page * 1000 + n) for n in range(1000))) for page in range(3))),
        Script(lambda *_: Answer(200, listing(), content_type=OCI_INDEX, link="<again>; rel=next")),  # and no end
    ],
)
def test_lists_no_honest_registry_has_are_refused(script: Script) -> None:
    assert refused(lambda: list_referrers(client_over(script), SUBJECT)) == "oci.referrers.too_many"
    assert len(script.asked) <= 64


def test_the_next_page_is_on_the_same_server() -> None:
    script = pages(listing(fake(1)), listing(), link='<https://evil.test/x>; rel="next"')
    assert refused(lambda: list_referrers(client_over(script), SUBJECT)) == "oci.distribution.other_origin"
    assert len(script.asked) == 1


def test_a_page_that_is_gone_is_unavailable() -> None:
    script = Script(Answer(200, listing(fake(1)), content_type=OCI_INDEX, link="<x>; rel=next"), Answer(404))
    with pytest.raises(Unavailable) as caught:
        list_referrers(client_over(script), SUBJECT)
    assert caught.value.code == "oci.distribution.page_gone"


@pytest.mark.parametrize(
    "answer", [Answer(404), Answer(400), Answer(406), Answer(200, b"<html>", content_type="text/html")]
)
def test_registries_without_the_api_are_asked_for_the_tag(answer: Answer) -> None:
    script = Script(answer, Answer(200, listing(fake(1)), content_type=OCI_INDEX))
    assert [str(item.digest) for item in list_referrers(client_over(script), SUBJECT)] == [fake(1)]
    assert script.asked[1][1].endswith(f"/manifests/sha256-{SUBJECT.hex}")


def test_a_list_that_is_none_is_refused() -> None:
    script = Script(Answer(200, signature(), content_type=OCI_INDEX))
    assert refused(lambda: list_referrers(client_over(script), SUBJECT)).startswith("oci.manifest.")


def test_the_list_is_not_believed_about_what_it_names(tmp_path: Path) -> None:
    """Other bytes, another subject, no manifest: left out, and the good one is found although listed as nothing."""
    good = signature()
    other = signature(subject=Digest.of(b"another"))
    bodies = {
        Digest.of(good): good,
        Digest.of(other): other,
        Digest.of(b"swapped"): good,
        Digest.of(b"not json"): b"not json",
    }

    def answer(method: str, url: str, headers: Any) -> Answer:
        if "/referrers/" in url:
            names = [str(digest) for digest in (*list(bodies)[1:], Digest.of(b"absent"), Digest.of(good))]
            return Answer(200, listing(*names), content_type=OCI_INDEX)
        body = {str(digest): body for digest, body in bodies.items()}.get(url.rpartition("/")[2])
        return Answer(404) if body is None else Answer(200, body, content_type=OCI_MANIFEST)

    assert [item.raw for item in read_referrers(client_over(Script(answer)), SUBJECT)] == [good]


def test_long_digests_have_short_tags() -> None:
    assert referrers_tag(Digest.of(b"", "sha512")) == f"sha512-{Digest.of(b'', 'sha512').hex[:64]}"
