"""Where images come from, and what is refused before a byte is fetched. The pipeline itself runs in integration."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ImageRefused, RequestRefused, Unavailable
from cloister.guest.images import (
    LayerFetch,
    RegistryAddress,
    directory_spool,
    memory_spool,
    open_registry,
    parse_registry,
    scratch_spool,
)
from cloister.oci.manifest import Descriptor
from cloister.oci.spool import ScratchRoom, Spool
from cloister.oci.store import StoredManifest


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://10.0.2.2:5000", RegistryAddress(host="10.0.2.2:5000", plain_http=True)),
        ("http://10.0.2.2:5000/", RegistryAddress(host="10.0.2.2:5000", plain_http=True)),
        ("https://registry.example", RegistryAddress(host="registry.example", plain_http=False)),
        ("http://LOCAL.example:1", RegistryAddress(host="local.example:1", plain_http=True)),
    ],
)
def test_addresses(text: str, address: RegistryAddress) -> None:
    assert parse_registry(text, allow_loopback=False) == address


@pytest.mark.parametrize(
    "text",
    ["", "http://", "10.0.2.2:5000", "ftp://h", "http://u:p@h", "http://h/path", "http://h?x", "http://h#x",
     "http://a b", "file:///etc/passwd", "//h"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_registry(text, allow_loopback=True)
    assert caught.value.code == "guest.images.registry"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8006", "127.1.2.3", "localhost:8006", "LOCALHOST", "0.0.0.0:8006", "[::1]:8006", "0.1"]
)
def test_pod_is_not_made_to_ask_itself(host: str) -> None:
    """A registry on loopback would turn the pull into requests to the pod's own services."""
    with pytest.raises(RequestRefused):
        parse_registry(f"http://{host}", allow_loopback=False)


def test_simulated_level_may_use_loopback() -> None:
    assert parse_registry("http://127.0.0.1:5000", allow_loopback=True).host == "127.0.0.1:5000"


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_refusal(text: str) -> None:
    try:
        address = parse_registry(text, allow_loopback=False)
    except RequestRefused:
        return
    assert address.host
    assert "/" not in address.host


def test_path_of_the_repository_is_asked_for() -> None:
    source = open_registry(
        RegistryAddress(host="10.0.2.2:1", plain_http=True), "cloister.local/shop/app", allow_loopback=False
    )
    assert source._base == "http://10.0.2.2:1/v2/shop/app"  # type: ignore[attr-defined]  # what is sent


@pytest.mark.parametrize("repository", ["../../x", "UPPER/../x", "a//b", ""])
def test_repository_is_a_repository(repository: str) -> None:
    with pytest.raises(ImageRefused):
        open_registry(RegistryAddress(host="h", plain_http=True), repository, allow_loopback=False)


def test_spools_have_no_name(tmp_path: Path) -> None:
    for spool in (memory_spool(), directory_spool(str(tmp_path)), scratch_spool(str(tmp_path), ScratchRoom(1000))):
        spool.append(b"ciphertext")
        assert spool.chunk(0) == b"ciphertext"
        assert not os.get_inheritable(spool._file.fileno())
        assert not list(tmp_path.iterdir())
        spool.close()


def test_spool_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    for make in (directory_spool, lambda place: scratch_spool(place, ScratchRoom(1000))):
        with pytest.raises(Unavailable) as caught:
            make(str(tmp_path / "missing"))
        assert caught.value.code == "guest.images.no_space"


class SlowSource:
    """A store that sends the first layer, and of the second only so much until it may go on."""

    code = "test"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked = threading.Event()

    def get_manifest(self, selector: str) -> StoredManifest | None:
        return None

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        if descriptor.size == len(LAYERS[1]):
            self.asked.set()
            self.go_on.wait(20)
        yield next(layer for layer in LAYERS if len(layer) == descriptor.size)

    def referrers(self, _: object) -> None:
        return None


LAYERS = [b"first layer", b"the second layer"]


def stored_manifest() -> StoredManifest:
    def descriptor(kind: str, content: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(content)}

    body = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", b"{}"),
        "layers": [descriptor("layer.v1.tar+gzip+encrypted", layer) for layer in LAYERS],
    }
    return StoredManifest(raw=json.dumps(body).encode(), media_type=body["mediaType"])


def fetched(source: SlowSource) -> tuple[LayerFetch, list[BinaryIO], list[int]]:
    files: list[BinaryIO] = []
    took: list[int] = []

    def spool() -> Spool:
        files.append(io.BytesIO())
        return Spool(files[-1])

    return LayerFetch(lambda: source, stored_manifest(), spool, took.append), files, took


def test_layers_are_fetched_beside_the_verification() -> None:
    source = SlowSource()
    fetch, files, took = fetched(source)
    assert source.asked.wait(20)
    pulled = fetch.finish(None)  # type: ignore[arg-type]  # carried, not looked at
    assert b"".join(pulled.blobs[0].wait().chunks()) == LAYERS[0]  # the second is still on its way
    assert took == []
    source.go_on.set()
    assert b"".join(pulled.blobs[1].wait().chunks()) == LAYERS[1]
    pulled.close()
    assert all(file.closed for file in files)
    assert len(took) == 1


def test_layers_of_a_refused_image_are_given_back_without_waiting() -> None:
    """What the registry still sends when the signature is refused is dropped; a registry that stalls delays nobody."""
    source = SlowSource()
    fetch, files, took = fetched(source)
    assert source.asked.wait(20)
    fetch.abandon()
    assert all(file.closed for file in files)
    pulled = fetch.finish(None)  # type: ignore[arg-type]  # carried, not looked at
    for blob in pulled.blobs:
        with pytest.raises(Unavailable) as caught:
            blob.wait()
        assert caught.value.code == "guest.images.abandoned"
    source.go_on.set()
    assert took == []
