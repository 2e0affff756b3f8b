"""Where images come from, and what is refused before a byte is fetched. The pipeline itself runs in integration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ImageRefused, RequestRefused, Unavailable
from cloister.guest.images import RegistryAddress, directory_spool, memory_spool, open_registry, parse_registry


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
    for spool in (memory_spool(), directory_spool(str(tmp_path))):
        with spool:
            spool.write(b"ciphertext")
            spool.seek(0)
            assert spool.read() == b"ciphertext"
            assert not os.get_inheritable(spool.fileno())
        assert not list(tmp_path.iterdir())


def test_spool_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        directory_spool(str(tmp_path / "missing"))
    assert caught.value.code == "guest.images.no_space"
