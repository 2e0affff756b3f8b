"""A registry that lies to the owner's tools, which hold passwords and follow it to other servers: over real sockets,
each lie refused with its own code, and no password heard by anybody else. Each has its honest twin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from adversary.expect import refusal_of
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from cloister.oci.mirrors import MirroredSource
from cloister.oci.reference import parse_reference
from cloister.oci.referrers import list_referrers
from cloister.oci.session import Credentials
from cloister.oci.store import ImageSource, checked_blob, read_manifest
from cloister.oci.transfer import copy_image
from cloister.oci.transport import HTTPTransport
from cloister.testing import evilregistry as evil
from conformance.registry_process import RegistryProcess
from unit.oci.builders import Built, archive, build_layout, file

ANN = Credentials("ann", "word")
LAYER = archive(file(b"a", b"content" * 10_000))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with RegistryProcess(tmp_path_factory.mktemp("honest")) as registry:
        yield registry


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, honest: RegistryProcess) -> Built:
    built = build_layout(tmp_path_factory.mktemp("source") / "l", LAYER)
    copy_image(built.layout, "v1", honest.client("app"), "v1")
    return built


@pytest.fixture
def transport() -> Iterator[HTTPTransport]:
    with closing(HTTPTransport(timeout_seconds=2)) as transport:
        yield transport


def client_of(transport: HTTPTransport, address: str) -> RegistryClient:
    """The owner's client: it holds a password and may be sent elsewhere."""
    return RegistryClient(
        transport,
        parse_reference(f"{address}/app"),
        plain_http=True,
        other_origins=True,
        credentials=ANN,
        sleep=lambda _: None,
    )


def pull(source: ImageSource, digest: Digest) -> bytes:
    manifest = parse_manifest(read_manifest(source, digest).raw)
    return b"".join(checked_blob(source, manifest.layers[0]))


ENTRY = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "1" * 64, "size": 1}
MILLION = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ENTRY]}).encode()
MILLION = MILLION.replace(b"]", b"," + (json.dumps(ENTRY).encode() + b",") * 999_999 + b"]")
Lying = Callable[[Built], evil.Lie]

LIES: dict[str, tuple[Lying, str]] = {
    "endless manifest": (lambda built: evil.endless(str(built.digest)), "oci.distribution.manifest_too_long"),
    "manifest with one bit flipped": (
        lambda built: evil.flipped(str(built.digest)),
        "oci.distribution.digest_mismatch",
    ),
    "endless layer": (lambda built: evil.endless(str(Digest.of(built.layers[0]))), "oci.distribution.size_mismatch"),
    "layer cut short": (
        lambda built: evil.truncated(str(Digest.of(built.layers[0])), 7, declared=False),
        "oci.distribution.size_mismatch",
    ),
    "layer broken off each time": (
        lambda built: evil.truncated(str(Digest.of(built.layers[0])), 7, declared=True),
        "oci.transport.interrupted",
    ),
    "redirect in a circle": (
        lambda built: evil.redirected(str(built.digest), f"/v2/app/manifests/{built.digest}"),
        "oci.distribution.redirects",
    ),
    "redirect to a metadata service": (
        lambda built: evil.redirected(str(built.digest), "http://169.254.169.254/latest/meta-data/"),
        "oci.distribution.inside_address",
    ),
    "redirect to this machine under another name": (
        lambda built: evil.redirected(str(built.digest), "http://localhost:2375/images/json"),
        "oci.distribution.inside_address",
    ),
    "redirect to no address": (
        lambda built: evil.redirected(str(built.digest), "file:///etc/shadow"),
        "oci.transport.bad_url",
    ),
    "token service that collects passwords": (
        lambda built: evil.challenging("https://collect.evil.test/token"),
        "oci.distribution.token_service",
    ),
    "token service at a metadata address": (
        lambda built: evil.challenging("http://169.254.169.254/token"),
        "oci.distribution.inside_address",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_to_an_owner_are_refused(
    honest: RegistryProcess, built: Built, transport: HTTPTransport, name: str
) -> None:
    lying, code = LIES[name]
    with evil.EvilRegistry(honest.port, [lying(built)]) as registry:
        client = client_of(transport, f"127.0.0.1:{registry.port}")
        refusal_of(code, lambda: pull(client, built.digest))
        registry.lies.clear()
        assert pull(client, built.digest) == built.layers[0]
        assert registry.authorizations == []  # nobody asked for the password on this server


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"token":"' + b"x" * 100_000 + b'"}', "oci.distribution.bad_token"),
        (b'{"token":"a\\r\\nX-Evil: 1"}', "oci.distribution.bad_token"),
        (b"[]", "oci.distribution.bad_token"),
        (b'{"token":"t"}', "oci.distribution.denied"),  # and then nothing is good enough
    ],
)
def test_tokens_that_are_none_are_refused(
    honest: RegistryProcess, built: Built, transport: HTTPTransport, body: bytes, code: str
) -> None:
    with evil.EvilRegistry(honest.port) as registry:
        registry.lies = [
            evil.challenging(f"{registry.url}/token"),
            evil.answering("/token", evil.Answer(status=200, body=body)),
        ]
        client = client_of(transport, f"127.0.0.1:{registry.port}")
        refusal_of(code, lambda: pull(client, built.digest))
        shown = {value for path, value in registry.authorizations if path.startswith("/token")}
        assert shown == {ANN.basic}
        assert ANN.basic not in {value for path, value in registry.authorizations if not path.startswith("/token")}


def test_the_password_is_not_taken_to_where_a_redirect_leads(
    honest: RegistryProcess, built: Built, transport: HTTPTransport
) -> None:
    """The second server gets the request, as storage behind a registry does, and no word about who asks."""
    layer = str(Digest.of(built.layers[0]))
    with evil.EvilRegistry(honest.port) as storage, evil.EvilRegistry(honest.port) as registry:
        token = evil.answering("/token", evil.Answer(status=200, body=b'{"token":"secret"}'))
        challenge = evil.challenging(f"{registry.url}/token")
        registry.lies = [
            lambda request, answer: challenge(request, answer) if request.turn == 0 else answer,
            token,
            evil.later(evil.redirected(layer, f"{storage.url}/v2/app/blobs/{layer}")),
        ]
        client = client_of(transport, f"127.0.0.1:{registry.port}")
        assert pull(client, built.digest) == built.layers[0]
        assert storage.asked[layer] == 1
        assert storage.authorizations == []
        assert ("Bearer secret") in {value for _, value in registry.authorizations}


LISTS = {
    "of a million": (
        evil.Answer(status=200, headers={"Content-Type": OCI_INDEX}, body=MILLION * 5),
        "oci.referrers.too_many",
    ),
    "of two thousand": (
        evil.Answer(
            status=200,
            headers={"Content-Type": OCI_INDEX},
            body=json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ENTRY] * 2000}).encode(),
        ),
        "oci.manifest.too_many",
    ),
    "that never ends": (
        evil.Answer(status=200, headers={"Content-Type": OCI_INDEX}, padding=1 << 30),
        "oci.referrers.too_many",
    ),
    "that is no list": (
        evil.Answer(status=200, headers={"Content-Type": OCI_INDEX}, body=b"{}"),
        "oci.manifest.missing_member",
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_referrers_are_bounded(
    honest: RegistryProcess, built: Built, transport: HTTPTransport, name: str
) -> None:
    answer, code = LISTS[name]
    with evil.EvilRegistry(honest.port, [evil.answering("/v2/app/referrers/", answer)]) as registry:
        client = client_of(transport, f"127.0.0.1:{registry.port}")
        refusal_of(code, lambda: list_referrers(client, built.digest))
        registry.lies.clear()
        assert list_referrers(client, built.digest) == ()


@pytest.mark.parametrize(
    ("lying", "code"),
    [
        (lambda built: evil.other_bytes(str(built.digest), b"{}"), "oci.distribution.digest_mismatch"),
        (lambda built: evil.flipped(str(Digest.of(built.layers[0]))), "oci.distribution.digest_mismatch"),
        (lambda built: evil.endless(str(Digest.of(built.layers[0]))), "oci.distribution.size_mismatch"),
    ],
)
def test_a_mirror_with_other_bytes_is_refused(
    honest: RegistryProcess, built: Built, transport: HTTPTransport, lying: Lying, code: str
) -> None:
    with evil.EvilRegistry(honest.port, [lying(built)]) as mirror:
        clients = [client_of(transport, f"127.0.0.1:{port}") for port in (mirror.port, honest.port)]
        refusal_of(code, lambda: pull(MirroredSource(clients), built.digest))
        mirror.lies[:] = [evil.absent(str(built.digest)), evil.absent(str(Digest.of(built.layers[0])))]
        assert pull(MirroredSource(clients), built.digest) == built.layers[0]


def test_nothing_is_written_from_a_lie(
    honest: RegistryProcess, built: Built, transport: HTTPTransport, tmp_path: Path
) -> None:
    from cloister.oci.location import RegistryAccess, open_sink, parse_location

    access = RegistryAccess(transport=transport, plain_http=True, other_origins=True)
    (tmp_path / "out").mkdir()
    with evil.EvilRegistry(honest.port, [evil.flipped(str(Digest.of(built.layers[0])))]) as registry:
        client = client_of(transport, f"127.0.0.1:{registry.port}")
        for place in ("oci-archive:{}/out/a.tar", "docker-archive:{}/out/d.tar", "dir:{}/out/dir"):

            def copy(place: str = place) -> None:
                with open_sink(parse_location(place.format(tmp_path)), access) as sink:
                    copy_image(client, built.digest, sink, "v1")

            refusal_of("oci.distribution.digest_mismatch", copy)
            assert list((tmp_path / "out").iterdir()) == []
        registry.lies.clear()
        copy()
        assert (tmp_path / "out" / "dir" / "manifest.json").is_file()
