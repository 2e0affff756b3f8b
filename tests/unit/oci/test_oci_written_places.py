"""What is written as one file or one directory: whole, the same each time, or not at all."""

from __future__ import annotations

import gzip
import json
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.host.registry.app import RegistryApp
from cloister.host.registry.store import RegistryStore
from cloister.imagetool.sign import sign_image
from cloister.oci.archive import DockerArchive, OCIArchive
from cloister.oci.digest import Digest
from cloister.oci.directory import ImageDirectory
from cloister.oci.document import encode_document
from cloister.oci.layout import OCILayout
from cloister.oci.location import RegistryAccess, open_sink, open_source, parse_location
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from cloister.oci.referrers import read_referrers
from cloister.oci.signing.simplesigning import read_candidates
from cloister.oci.store import ImageSource, ImageStore, checked_blob, copy_blob, read_blob, read_manifest
from unit.oci.builders import Built, InProcessTransport, archive, build_layout, directory, file, seal_and_sign

LAYERS = [archive(directory(b"d"), file(b"d/a", b"content")), archive(file(b"b", b"x" * 2000))]
SIGNER = ECDSAP256Signer.generate()


@pytest.fixture
def reach(tmp_path: Path) -> RegistryAccess:
    transport = InProcessTransport(RegistryApp(RegistryStore(tmp_path / "registry")))
    return RegistryAccess(transport=transport, plain_http=True, other_origins=False)


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build_layout(tmp_path / "source", *LAYERS)


def copy(source: ImageSource, selector: str | Digest, sink: ImageStore, tag: str = "v1") -> Digest:
    stored = read_manifest(source, selector)
    manifest = parse_manifest(stored.raw)
    for blob in (manifest.config, *manifest.layers):
        copy_blob(source, sink, blob)
    return sink.write_manifest(stored.raw, OCI_MANIFEST, tag)


def refused(run: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


@pytest.mark.parametrize("kind", ["oci-archive", "dir"])
def test_what_is_written_is_read_again(tmp_path: Path, reach: RegistryAccess, built: Built, kind: str) -> None:
    (tmp_path / "out").mkdir()
    location = parse_location(f"{kind}:{tmp_path}/out/image")
    with open_sink(location, reach) as sink:
        assert copy(built.layout, "v1", sink) == built.digest
        assert read_manifest(sink, built.digest).raw  # also before it is finished
    assert names(tmp_path / "out") == ["image"]
    with open_source(location, reach) as source:
        manifest = parse_manifest(read_manifest(source, location.selector).raw)
        assert manifest.digest == built.digest
        assert [b"".join(checked_blob(source, layer)) for layer in manifest.layers] == list(built.layers)
        assert read_manifest(source, built.digest).raw == manifest.raw
        assert source.get_manifest(str(Digest.of(b"other"))) is None
        assert source.get_manifest("v9") is None


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_the_same_image_makes_the_same_file(tmp_path: Path, reach: RegistryAccess, built: Built, kind: str) -> None:
    for name in ("one", "two"):
        with open_sink(parse_location(f"{kind}:{tmp_path}/{name}.tar:app:v1"), reach) as sink:
            copy(built.layout, "v1", sink)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        members = tar.getmembers()
    assert {(member.uid, member.gid, member.mtime, member.mode, member.uname) for member in members} == {
        (0, 0, 0, 0o644, "")
    }
    assert (tmp_path / "one.tar").stat().st_size % 10240 == 0


def test_a_docker_archive_holds_plain_layers_under_a_name(tmp_path: Path, reach: RegistryAccess, built: Built) -> None:
    with open_sink(parse_location(f"docker-archive:{tmp_path}/d.tar:app:1"), reach) as sink:
        copy(built.layout, "v1", sink)
    with closing(DockerArchive(tmp_path / "d.tar")) as source:
        manifest = parse_manifest(read_manifest(source, "docker.io/library/app:1").raw)
        assert [b"".join(checked_blob(source, layer)) for layer in manifest.layers] == LAYERS
        config = parse_manifest(read_manifest(built.layout, "v1").raw).config
        assert manifest.config.digest == config.digest
        assert read_blob(source, manifest.config, ceiling=10_000)
    with tarfile.open(tmp_path / "d.tar") as tar:
        content = tar.extractfile("manifest.json")
        assert content is not None
        (entry,) = json.load(content)
    assert entry["RepoTags"] == ["docker.io/library/app:1"]
    assert entry["Layers"] == [f"{Digest.of(layer).hex}.tar" for layer in LAYERS]


def test_equal_layers_are_written_once(tmp_path: Path, reach: RegistryAccess) -> None:
    twice = build_layout(tmp_path / "t", LAYERS[0], LAYERS[0])
    with open_sink(parse_location(f"docker-archive:{tmp_path}/d.tar"), reach) as sink:
        copy(twice.layout, "v1", sink)
    with closing(DockerArchive(tmp_path / "d.tar")) as source:
        assert len(parse_manifest(read_manifest(source, "").raw).layers) == 2


def test_a_docker_archive_with_an_encrypted_layer_is_refused_and_nothing_left(
    tmp_path: Path, reach: RegistryAccess, built: Built
) -> None:
    """What skopeo writes there cannot be decrypted any more (skopeo#982)."""
    sealed, digest = seal_and_sign(built, tmp_path / "sealed", SIGNER)
    (tmp_path / "out").mkdir()
    location = parse_location(f"docker-archive:{tmp_path}/out/d.tar")

    def write() -> None:
        with open_sink(location, reach) as sink:
            copy(sealed, digest, sink)

    assert refused(write) == "oci.archive.encrypted"
    assert refused(lambda: open_sink(location, reach, sealed=True)) == "oci.location.not_writable"
    assert names(tmp_path / "out") == []


def test_other_bytes_than_the_diff_id_are_refused(tmp_path: Path, reach: RegistryAccess, built: Built) -> None:
    other = gzip.compress(archive(file(b"evil", b"")), mtime=0)
    manifest = json.loads(read_manifest(built.layout, "v1").raw)
    manifest["layers"][0] |= {"digest": str(Digest.of(other)), "size": len(other)}
    built.layout.write_blob([other])
    built.layout.write_manifest(encode_document(manifest), OCI_MANIFEST, "evil")

    def write() -> None:
        with open_sink(parse_location(f"docker-archive:{tmp_path}/d.tar"), reach) as sink:
            copy(built.layout, "evil", sink)

    assert refused(write) == "oci.archive.diff_id_mismatch"
    assert not (tmp_path / "d.tar").exists()


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive", "dir"])
def test_an_image_that_cannot_take_its_name_leaves_the_older(
    tmp_path: Path, reach: RegistryAccess, built: Built, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "out").mkdir()
    location, target = parse_location(f"{kind}:{tmp_path}/out/image"), tmp_path / "out" / "image"
    newer = build_layout(tmp_path / "newer", LAYERS[1], run={"Cmd": ["newer"]})

    def write(layout: OCILayout) -> None:
        with open_sink(location, reach) as sink:
            copy(layout, "v1", sink)

    def failing(real: Any) -> Any:
        def move(path: Path, to: Path) -> Path:
            if to == target and path.suffix != ".aside":
                raise OSError(5, "Input/output error")
            return real(path, to)

        return move

    write(built.layout)
    before = {path.name: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(Path, name, failing(getattr(Path, name)))
        assert refused(lambda: write(newer.layout)) == "oci.location.write_failed"
    assert {path.name: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()} == before
    assert names(target.parent) == ["image"]
    write(newer.layout)
    assert names(target.parent) == ["image"]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive", "dir"])
def test_a_failure_leaves_the_older_image(tmp_path: Path, reach: RegistryAccess, built: Built, kind: str) -> None:
    (tmp_path / "out").mkdir()
    location = parse_location(f"{kind}:{tmp_path}/out/image")
    with open_sink(location, reach) as sink:
        copy(built.layout, "v1", sink)

    def snapshot() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    before = snapshot()

    def fail() -> None:
        with open_sink(location, reach) as sink:
            copy(built.layout, "v1", sink)
            raise ImageRefused("test.broken", "source broke")

    assert refused(fail) == "test.broken"
    assert snapshot() == before
    newer = build_layout(tmp_path / "newer", LAYERS[1], run={"Cmd": ["newer"]})
    with open_sink(location, reach) as sink:
        copy(newer.layout, "v1", sink)
    assert snapshot() != before
    assert names(tmp_path / "out") == ["image"]


@pytest.mark.parametrize("kind", ["docker-archive", "dir"])
def test_places_of_one_image_hold_no_more(tmp_path: Path, reach: RegistryAccess, built: Built, kind: str) -> None:
    other = build_layout(tmp_path / "other", LAYERS[1])
    location = parse_location(f"{kind}:{tmp_path}/image")

    def two() -> None:
        with open_sink(location, reach) as sink:
            copy(built.layout, "v1", sink, "a")
            copy(other.layout, "v1", sink, "b")

    def signed() -> None:
        with open_sink(location, reach) as sink:
            sign_image(sink, copy(built.layout, "v1", sink), SIGNER, repository="images.test/app")

    def nothing() -> None:
        with open_sink(location, reach):
            pass

    for run in (two, signed, nothing):
        assert refused(run) == "oci.location.several"
    assert refused(lambda: open_sink(location, reach, extend=True)) == "oci.location.not_writable"
    assert not (tmp_path / "image").exists()


def test_an_archive_is_signed_in_place(tmp_path: Path, reach: RegistryAccess, built: Built) -> None:
    location = parse_location(f"oci-archive:{tmp_path}/a.tar:v1")
    with open_sink(location, reach) as sink:
        copy(built.layout, "v1", sink)
    with open_sink(location, reach, extend=True) as sink:
        sign_image(sink, "v1", SIGNER, repository="images.test/app")
    with closing(OCIArchive(tmp_path / "a.tar")) as source:
        assert len(read_candidates(source, built.digest)) == 1
        assert list(read_referrers(source, built.digest)) == []
        assert Digest.of(read_manifest(source, "").raw) == built.digest


def test_several_platforms_go_into_a_directory(tmp_path: Path, reach: RegistryAccess, built: Built) -> None:
    other = build_layout(tmp_path / "other", LAYERS[1])
    entries = [{"mediaType": OCI_MANIFEST, "digest": str(item.digest), "size": 500} for item in (built, other)]
    absent = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"not copied")), "size": 1}
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, absent]})
    with open_sink(parse_location(f"dir:{tmp_path}/multi"), reach) as sink:
        for item in (built, other):
            copy(item.layout, "v1", sink, "")
        sink.write_manifest(index, OCI_INDEX, "v1")
    source = ImageDirectory(tmp_path / "multi")
    assert read_manifest(source, "").raw == index
    for item in (built, other):
        manifest = parse_manifest(read_manifest(source, item.digest).raw)
        assert [b"".join(checked_blob(source, layer)) for layer in manifest.layers] == list(item.layers)


def test_a_layouts_index_does_not_list_what_another_index_lists(tmp_path: Path, built: Built) -> None:
    sink = OCILayout(tmp_path / "sink", create=True)
    copy(built.layout, "v1", sink, "")
    entry = {"mediaType": OCI_MANIFEST, "digest": str(built.digest), "size": 500}
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    sink.write_manifest(index, OCI_INDEX, "v1")
    assert [str(item.digest) for item in sink.images()] == [str(Digest.of(index))]
    assert Digest.of(read_manifest(sink, "").raw) == Digest.of(index)


@pytest.mark.parametrize("content", [{}, {"manifest.json": b"{}"}, {"version": b"mine"}, {"a": b""}])
def test_nothing_but_an_image_is_written_over(
    tmp_path: Path, reach: RegistryAccess, built: Built, content: dict[str, bytes]
) -> None:
    (tmp_path / "d").mkdir()
    for name, data in content.items():
        (tmp_path / "d" / name).write_bytes(data)

    def write() -> None:
        with open_sink(parse_location(f"dir:{tmp_path}/d"), reach) as sink:
            copy(built.layout, "v1", sink)

    if not content:
        write()
        assert (tmp_path / "d" / "version").read_text() == "Directory Transport Version: 1.1\n"
        return
    assert refused(write) == "oci.directory.not_an_image"
    assert {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()} == content


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": b"Directory Transport Version: 2.0\n"}, "oci.directory.version"),
        ({"manifest.json": None}, "oci.directory.not_an_image"),
        ({"manifest.json": b" " * ((4 << 20) + 1)}, "oci.directory.too_long"),
        ({"BLOB": None}, "oci.directory.blob_missing"),
        ({"BLOB": b"other"}, "oci.directory.size_mismatch"),
    ],
)
def test_malformed_directories_are_refused(
    tmp_path: Path, reach: RegistryAccess, built: Built, change: dict[str, bytes | None], code: str
) -> None:
    with open_sink(parse_location(f"dir:{tmp_path}/d"), reach) as sink:
        copy(built.layout, "v1", sink)
    for name, data in change.items():
        path = tmp_path / "d" / name.replace("BLOB", Digest.of(built.layers[0]).hex)
        path.unlink()
        if data is not None:
            path.write_bytes(data)

    def read() -> None:
        source = ImageDirectory(tmp_path / "d")
        for layer in parse_manifest(read_manifest(source, "").raw).layers:
            for _ in checked_blob(source, layer):
                continue

    assert refused(read) == code


def test_links_in_a_directory_are_not_followed(tmp_path: Path, reach: RegistryAccess, built: Built) -> None:
    with open_sink(parse_location(f"dir:{tmp_path}/d"), reach) as sink:
        copy(built.layout, "v1", sink)
    blob = tmp_path / "d" / Digest.of(built.layers[0]).hex
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    source = ImageDirectory(tmp_path / "d")
    layer = parse_manifest(read_manifest(source, "").raw).layers[0]
    assert refused(lambda: list(checked_blob(source, layer))) == "oci.directory.not_a_file"


@pytest.mark.parametrize(
    "text", ["host/a@sha256:" + "a" * 64, "oci:{}/l@sha256:" + "a" * 64, "oci-archive:{}/a.tar:sha256:" + "a" * 64]
)
def test_nothing_is_written_to_a_digest(tmp_path: Path, reach: RegistryAccess, text: str) -> None:
    location = parse_location(text.format(tmp_path))
    assert refused(lambda: open_sink(location, reach)) == "oci.location.not_writable"
    assert names(tmp_path) == ["registry"]


def test_a_place_that_is_not_there_is_unavailable(tmp_path: Path, reach: RegistryAccess) -> None:
    with (
        pytest.raises(Unavailable) as caught,
        open_sink(parse_location(f"oci-archive:{tmp_path}/none/a.tar"), reach),
    ):
        pass
    assert caught.value.code == "oci.location.write_failed"
    assert not (tmp_path / "none").exists()
