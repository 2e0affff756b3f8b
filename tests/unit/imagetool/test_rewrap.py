"""Other recipients for an encrypted image: same blobs, other wrappings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError
from cloister.imagetool.decrypt import decrypt_image
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.rewrap import NewRecipients, RewrappedImage, rewrap_image
from cloister.oci.encryption.annotations import PACKET_SCHEME, parse_layer_encryption
from cloister.oci.layout import OCILayout
from imagetool_images import OTHER_ID, build, key, manifest_of, recipient
from unit.oci.builders import KEK_ID, Built, registry_client


class Plain:
    """A scheme that wraps nothing: its element is the options themselves."""

    scheme = "provider.plain"

    def wrap(self, options: bytes) -> bytes:
        return options

    def unwrap(self, element: bytes) -> bytes:
        return element


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build(tmp_path / "plain", "gzip")


@pytest.fixture
def sealed(built: Built, tmp_path: Path) -> OCILayout:
    sink = OCILayout(tmp_path / "sealed", create=True)
    encrypt_image(built.layout, "v1", sink, tag="v1", recipients=[recipient()])
    return sink


def rewrapped(layout: OCILayout, keys: list[Any] | None = None, **change: Any) -> RewrappedImage:
    held = [key(KEK_ID)] if keys is None else keys
    return rewrap_image(layout, "v1", layout, tag="v2", change=NewRecipients(**change), keys=held)


def opens(layout: OCILayout, held: Any, tmp_path: Path, tag: str = "v2") -> bool:
    sink = OCILayout(tmp_path / "out", create=True)
    try:
        decrypt_image(layout, tag, sink, tag="v1", keys=[held])
    except CloisterError as err:
        assert err.code == "oci.encryption.no_key"
        return False
    return manifest_of(sink).digest == manifest_of(OCILayout(tmp_path / "plain")).digest


def schemes(layout: OCILayout, tag: str = "v2") -> dict[str, int]:
    found = parse_layer_encryption(manifest_of(layout, tag).layers[0]).wrapped
    return {scheme: len(elements) for scheme, elements in found.items()}


def refused(run: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


def test_a_recipient_is_added_and_no_blob_changes(sealed: OCILayout, tmp_path: Path) -> None:
    before = manifest_of(sealed)
    blobs = sorted((tmp_path / "sealed" / "blobs" / "sha256").iterdir())
    result = rewrapped(sealed, add=[recipient(OTHER_ID), Plain()])
    after = manifest_of(sealed, "v2")
    assert result.layers == 2
    assert [layer.digest for layer in after.layers] == [layer.digest for layer in before.layers]
    assert len(sorted((tmp_path / "sealed" / "blobs" / "sha256").iterdir())) == len(blobs) + 1  # the manifest
    assert schemes(sealed) == {PACKET_SCHEME: 2, "provider.plain": 1}
    assert after.layers[0].annotations["org.test/kept"] == "y"
    for held in (key(KEK_ID), key(OTHER_ID), Plain()):
        assert opens(sealed, held, tmp_path)
    assert not opens(sealed, key(OTHER_ID), tmp_path, tag="v1")


def test_a_scheme_is_removed_without_a_key(sealed: OCILayout, tmp_path: Path) -> None:
    rewrapped(sealed, add=[Plain()])
    rewrap_image(sealed, "v2", sealed, tag="v2", change=NewRecipients(remove={PACKET_SCHEME}))
    assert schemes(sealed) == {"provider.plain": 1}
    assert opens(sealed, Plain(), tmp_path)
    assert not opens(sealed, key(KEK_ID), tmp_path)


def test_all_are_replaced(sealed: OCILayout, tmp_path: Path) -> None:
    rewrapped(sealed, add=[recipient(OTHER_ID)], only_added=True)
    assert schemes(sealed) == {PACKET_SCHEME: 1}
    assert opens(sealed, key(OTHER_ID), tmp_path)
    assert not opens(sealed, key(KEK_ID), tmp_path)


def test_into_another_store_blobs_are_copied_once(sealed: OCILayout, tmp_path: Path) -> None:
    registry, transport = registry_client(tmp_path / "registry")
    change = NewRecipients(add=[recipient(OTHER_ID)])
    rewrap_image(sealed, "v1", registry, tag="v2", change=change, keys=[key(KEK_ID)])
    transport.log.clear()
    rewrap_image(sealed, "v1", registry, tag="v3", change=change, keys=[key(KEK_ID)])
    assert not any(line.startswith(("POST", "PATCH")) for line in transport.log)
    assert len(manifest_of(registry, "v3").layers) == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, "imagetool.rewrap.nothing"),
        ({"only_added": True}, "imagetool.rewrap.nothing"),
        ({"remove": {"jwe"}}, "imagetool.rewrap.no_such_scheme"),
        ({"remove": {PACKET_SCHEME}}, "imagetool.rewrap.nobody_left"),
    ],
)
def test_changes_that_make_no_sense_are_refused(sealed: OCILayout, change: Any, code: str) -> None:
    assert refused(lambda: rewrapped(sealed, **change)) == code
    assert sealed.get_manifest("v2") is None


def test_nobody_is_added_without_a_key(sealed: OCILayout) -> None:
    for held in ([], [key()], [key(OTHER_ID)]):
        assert refused(lambda held=held: rewrapped(sealed, held, add=[Plain()])) == "oci.encryption.no_key"
    assert sealed.get_manifest("v2") is None


def test_a_plain_image_has_no_recipients_to_change(built: Built) -> None:
    assert refused(lambda: rewrapped(built.layout, add=[Plain()])) == "oci.encryption.not_encrypted"
