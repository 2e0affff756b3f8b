"""Decrypting images: the same image comes back, and nothing that was changed does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError
from cloister.imagetool.decrypt import DecryptedImage, decrypt_image
from cloister.imagetool.encrypt import encrypt_image
from cloister.oci.digest import Digest
from cloister.oci.encryption.annotations import PREFIX, PUBLIC_OPTIONS
from cloister.oci.layout import OCILayout
from cloister.oci.store import checked_blob, read_manifest
from imagetool_images import ARCHIVES, CANARY, COMPRESSIONS, blob_path, build, key, manifest_of, recipient, rewrite
from tampering import flipped
from unit.oci.builders import KEK_ID, Built, build_layout, registry_client


@pytest.fixture(params=COMPRESSIONS)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Built:
    return build(tmp_path / "plain", request.param)


@pytest.fixture
def gzipped(tmp_path: Path) -> Built:
    return build(tmp_path / "plain", "gzip")


def sealed(built: Built, tmp_path: Path) -> OCILayout:
    sink = OCILayout(tmp_path / "sealed", create=True)
    encrypt_image(built.layout, "v1", sink, tag="v1", recipients=[recipient()])
    return sink


def opened(source: Any, tmp_path: Path, **options: Any) -> DecryptedImage:
    options = {"tag": "v1", "keys": [key(KEK_ID)], **options}
    return decrypt_image(source, options.pop("selector", "v1"), options.pop("sink", None) or out(tmp_path), **options)


def out(tmp_path: Path) -> OCILayout:
    return OCILayout(tmp_path / "out", create=True)


def refused(run: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


def published(tmp_path: Path) -> bool:
    """Whether the destination has an image, or any plaintext."""
    layout = out(tmp_path)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    return layout.get_manifest("v1") is not None or any(CANARY in path.read_bytes() for path in files)


@pytest.mark.parametrize("checked", [True, False])
def test_the_same_image_comes_back(built: Built, tmp_path: Path, checked: bool) -> None:
    result = opened(sealed(built, tmp_path), tmp_path, check_diff_ids=checked)
    assert result.digest == built.digest  # byte for byte: media types, annotations and all
    assert read_manifest(out(tmp_path), "v1").raw == read_manifest(built.layout, "v1").raw
    assert (result.decrypted, result.plain) == (2, 0)
    for layer in manifest_of(built.layout).layers:
        assert b"".join(checked_blob(out(tmp_path), layer))
        assert not any(name.startswith(PREFIX) for name in layer.annotations)


def test_from_a_registry_into_a_registry(built: Built, tmp_path: Path) -> None:
    registry, transport = registry_client(tmp_path / "registry")
    encrypt_image(built.layout, "v1", registry, tag="sealed", recipients=[recipient()])
    plain, _ = registry_client(tmp_path / "other")
    transport.log.clear()
    result = decrypt_image(registry, "sealed", plain, tag="v1", keys=[key(KEK_ID)])
    assert result.digest == built.digest
    blobs = [line for line in transport.log if line.startswith("GET") and "/blobs/" in line]
    assert len(blobs) == len(set(blobs))  # what is not authentic yet is kept here, not asked for twice


def test_layers_that_are_not_encrypted_are_copied(built: Built, tmp_path: Path) -> None:
    layout = sealed(built, tmp_path)
    plain = manifest_of(built.layout).layers[1]
    layout.write_blob(checked_blob(built.layout, plain))
    entry = {"mediaType": plain.media_type, "digest": str(plain.digest), "size": plain.size}
    rewrite(layout, lambda document: document["layers"].__setitem__(1, entry))
    result = opened(layout, tmp_path)
    assert (result.decrypted, result.plain) == (1, 1)
    assert manifest_of(out(tmp_path)).layers[1].digest == plain.digest


def test_an_image_that_is_not_encrypted_is_refused(built: Built, tmp_path: Path) -> None:
    assert refused(lambda: opened(built.layout, tmp_path)) == "oci.encryption.not_encrypted"


def test_without_the_key_nothing_is_read_or_written(gzipped: Built, tmp_path: Path) -> None:
    layout = sealed(gzipped, tmp_path)
    for layer in manifest_of(layout).layers:
        blob_path(tmp_path / "sealed", layer.digest).unlink()
    assert refused(lambda: opened(layout, tmp_path, keys=[key()])) == "oci.encryption.no_key"
    assert refused(lambda: opened(layout, tmp_path, keys=[])) == "oci.encryption.no_key"
    assert list((tmp_path / "out" / "blobs" / "sha256").iterdir()) == []


def with_changed_layer(built: Built, tmp_path: Path, index: int) -> OCILayout:
    """The manifest names the changed ciphertext, as an attacker would write it: only the MAC can tell."""
    layout = sealed(built, tmp_path)
    blob = bytearray(b"".join(checked_blob(layout, manifest_of(layout).layers[index])))
    blob[len(blob) // 2] ^= 1
    digest, _ = layout.write_blob([bytes(blob)])
    rewrite(layout, lambda document: document["layers"][index].update(digest=str(digest)))
    return layout


@pytest.mark.parametrize("index", [0, 1])
def test_a_changed_layer_leaves_nothing_and_is_not_looked_into(
    built: Built, tmp_path: Path, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass: its draft is removed, and no decompressor sees it."""

    def inflate(*_: object, **__: object) -> Any:
        raise AssertionError("bytes that are not authentic reached the decompressor")

    monkeypatch.setitem(decrypt_image.__globals__, "inflate", inflate)
    layout = with_changed_layer(built, tmp_path, index)
    assert refused(lambda: opened(layout, tmp_path)) == "oci.encryption.mac_mismatch"
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    honest = {layer.digest.hex for layer in manifest_of(built.layout).layers}
    assert {path.name for path in left} <= {"oci-layout", "index.json", *honest}
    assert out(tmp_path).get_manifest("v1") is None


@pytest.mark.parametrize("target", ["another machine", "a decompressor"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_changed_layer_is_refused_before_anything_of_it_is_decrypted(
    gzipped: Built, tmp_path: Path, index: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes: what is not authentic goes neither to a registry nor to a decompressor."""
    layout = with_changed_layer(gzipped, tmp_path, index)
    decrypted: list[object] = []
    original = decrypt_image.__globals__["ctr_stream"]

    def spy(key: bytes, nonce: bytes, chunks: Any) -> Any:
        decrypted.append(nonce)
        return original(key, nonce, chunks)

    monkeypatch.setitem(decrypt_image.__globals__, "ctr_stream", spy)
    if target == "a decompressor":
        assert refused(lambda: opened(layout, tmp_path, check_diff_ids=True)) == "oci.encryption.mac_mismatch"
        assert out(tmp_path).get_manifest("v1") is None
    else:
        registry, transport = registry_client(tmp_path / "registry")
        assert refused(lambda: opened(layout, tmp_path, sink=registry)) == "oci.encryption.mac_mismatch"
        assert registry.get_manifest("v1") is None
        assert sum(line.startswith("PATCH") for line in transport.log) <= len(decrypted)
    assert len(decrypted) < 2


def test_other_bytes_than_the_manifest_names_are_refused(gzipped: Built, tmp_path: Path) -> None:
    layout = sealed(gzipped, tmp_path)
    path = blob_path(tmp_path / "sealed", manifest_of(layout).layers[0].digest)
    path.write_bytes(flipped(path.read_bytes()))
    assert refused(lambda: opened(layout, tmp_path)) in ("oci.layout.digest_mismatch", "oci.encryption.mac_mismatch")
    assert out(tmp_path).get_manifest("v1") is None


def swap_annotations(document: dict[str, Any]) -> None:
    first, second = document["layers"]
    first["annotations"], second["annotations"] = second["annotations"], first["annotations"]


def swap_options(document: dict[str, Any]) -> None:
    first, second = (layer["annotations"] for layer in document["layers"])
    first[PUBLIC_OPTIONS], second[PUBLIC_OPTIONS] = second[PUBLIC_OPTIONS], first[PUBLIC_OPTIONS]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (swap_annotations, "oci.encryption.mac_mismatch"),
        (swap_options, "oci.encryption.mac_mismatch"),
        (lambda document: document["layers"].reverse(), "oci.layer.diff_id_mismatch"),
        (lambda document: document["layers"].pop(), "imagetool.layers.diff_ids"),
        (lambda document: document["layers"][0]["annotations"].pop(PUBLIC_OPTIONS), "oci.encryption.missing_pubopts"),
    ],
)
def test_layers_in_another_place_are_refused(built: Built, tmp_path: Path, change: Any, code: str) -> None:
    layout = sealed(built, tmp_path)
    rewrite(layout, change)
    assert refused(lambda: opened(layout, tmp_path, check_diff_ids=True)) == code
    assert out(tmp_path).get_manifest("v1") is None


def test_diff_ids_of_compressed_layers_are_checked_where_the_caller_says_so(built: Built, tmp_path: Path) -> None:
    """Of a plain archive the diff_id is the digest, which is checked anyway."""
    layout = sealed(built, tmp_path)
    rewrite(layout, lambda document: document["layers"].reverse())
    if manifest_of(layout).layers[0].media_type.endswith(".tar+encrypted"):
        assert refused(lambda: opened(layout, tmp_path)) == "oci.layer.diff_id_mismatch"
        return
    assert opened(layout, tmp_path).decrypted == 2
    honest = [layer.digest for layer in manifest_of(built.layout).layers]
    assert [layer.digest for layer in manifest_of(out(tmp_path)).layers] == honest[::-1]


def sealed_naming(built: Built, tmp_path: Path, named: Digest) -> OCILayout:
    """Encrypt so that the private options name other content than they should; all else is as it should be."""
    sink = OCILayout(tmp_path / "sealed", create=True)
    module = encrypt_image.__globals__
    original = module["PrivateOptions"]

    class Naming(original):  # type: ignore[misc,valid-type]  # the real class, with another digest
        def __init__(self, **members: Any) -> None:
            super().__init__(**{**members, "digest": named})

    module["PrivateOptions"] = Naming
    try:
        encrypt_image(built.layout, "v1", sink, tag="v1", recipients=[recipient()])
    finally:
        module["PrivateOptions"] = original
    return sink


def test_a_layer_whose_key_names_another_plain_layer_is_refused(gzipped: Built, tmp_path: Path) -> None:
    broken = sealed_naming(gzipped, tmp_path, Digest.of(b"other"))
    assert refused(lambda: opened(broken, tmp_path)) == "oci.encryption.plain_digest_mismatch"
    assert out(tmp_path).get_manifest("v1") is None


@pytest.mark.parametrize("checked", [True, False])
def test_a_key_may_name_the_archive_as_skopeo_writes_it(gzipped: Built, tmp_path: Path, checked: bool) -> None:
    """And then the archive is checked, whatever the caller says: the second layer is not the one that is named."""
    broken = sealed_naming(gzipped, tmp_path, Digest.of(ARCHIVES[0]))
    assert refused(lambda: opened(broken, tmp_path, check_diff_ids=checked)) == "oci.encryption.plain_digest_mismatch"
    one = build_layout(tmp_path / "one", ARCHIVES[0])
    named = sealed_naming(one, tmp_path / "named", Digest.of(ARCHIVES[0]))
    assert opened(named, tmp_path, check_diff_ids=checked).digest == one.digest


def test_a_source_that_changes_between_the_passes_is_refused(gzipped: Built, tmp_path: Path) -> None:
    layout = sealed(gzipped, tmp_path)

    class Changing:
        """Gives the right bytes once, others the second time."""

        code = "oci.layout"

        def __init__(self) -> None:
            self.asked: set[Digest] = set()

        def get_manifest(self, selector: str) -> Any:
            return layout.get_manifest(selector)

        def stream_blob(self, descriptor: Any) -> Any:
            for chunk in layout.stream_blob(descriptor):
                yield bytes(len(chunk)) if descriptor.digest in self.asked else chunk
            self.asked.add(descriptor.digest)

        def referrers(self, _: Digest) -> None:
            return None

    registry, _ = registry_client(tmp_path / "registry")
    assert refused(lambda: opened(Changing(), tmp_path, sink=registry)) == "oci.encryption.plain_digest_mismatch"
    assert registry.get_manifest("v1") is None
    assert refused(lambda: opened(Changing(), tmp_path, check_diff_ids=True)) == "oci.layer.bad_compression"
    assert not published(tmp_path)
    assert opened(Changing(), tmp_path).digest == gzipped.digest  # one pass reads it once


def test_progress_counts_every_byte(built: Built, tmp_path: Path) -> None:
    class Watch:
        total = done = 0

        def begin(self, total_bytes: int) -> None:
            self.total = total_bytes

        def advance(self, count: int) -> None:
            self.done += count

    watch = Watch()
    layout = sealed(built, tmp_path)
    opened(layout, tmp_path, progress=watch)
    assert watch.total == watch.done == sum(layer.size for layer in manifest_of(layout).layers)
