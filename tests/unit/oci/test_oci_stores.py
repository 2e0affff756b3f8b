"""Layouts, archives and locations: where images come from and go to."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.host.registry.app import RegistryApp
from cloister.host.registry.store import RegistryStore
from cloister.oci.archive import DockerArchive, OCIArchive
from cloister.oci.digest import Digest
from cloister.oci.layout import OCILayout
from cloister.oci.location import LocationKind, RegistryAccess, open_sink, open_source, parse_location
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, parse_manifest
from cloister.oci.store import checked_blob, copy_blob, read_blob, read_manifest, resolve_platform
from tampering import flipped
from unit.oci.builders import InProcessTransport, archive, build_layout, file, registry_client, symlink

LAYER = archive(file(b"a", b"content"))


def refused(run: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


# -- layouts ----------------------------------------------------------------------------------------------------


def test_a_layout_gives_back_what_was_written(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    again = OCILayout(tmp_path / "l")
    for selector in ("v1", "", built.digest):
        assert Digest.of(read_manifest(again, selector).raw) == built.digest
    manifest = parse_manifest(read_manifest(again, "v1").raw)
    assert b"".join(checked_blob(again, manifest.layers[0])) == built.layers[0]
    assert not [path for path in (tmp_path / "l").iterdir() if path.name.startswith(".")]


def test_a_tag_moves_and_other_tags_stay(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    newer = build_layout(tmp_path / "l", LAYER, run={"Cmd": ["other"]})
    build_layout(tmp_path / "l", LAYER, tag="v2")
    assert Digest.of(read_manifest(built.layout, "v1").raw) == newer.digest
    assert Digest.of(read_manifest(built.layout, "v2").raw) == built.digest
    assert refused(lambda: read_manifest(built.layout, "")) == "oci.layout.ambiguous"


def test_missing_things_in_a_layout(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    assert refused(lambda: read_manifest(built.layout, "v9")) == "oci.layout.manifest_missing"
    assert refused(lambda: read_manifest(built.layout, Digest.of(b""))) == "oci.layout.manifest_missing"
    nothing = Descriptor(media_type="x", digest=Digest.of(b"none"), size=4)
    assert refused(lambda: list(checked_blob(built.layout, nothing))) == "oci.layout.blob_missing"


@pytest.mark.parametrize(
    ("marker", "code"),
    [
        (None, "oci.layout.not_a_layout"),
        (b'{"imageLayoutVersion":"2.0.0"}', "oci.layout.version"),
        (b"{}", "oci.layout.version"),
        (b"x", "oci.layout.not_json"),
        (b" " * 10_000, "oci.layout.too_long"),
    ],
)
def test_other_directories_are_refused(tmp_path: Path, marker: bytes | None, code: str) -> None:
    if marker is not None:
        (tmp_path / "oci-layout").write_bytes(marker)
    assert refused(lambda: OCILayout(tmp_path)) == code


def test_a_layout_without_index_is_refused(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    (tmp_path / "l" / "index.json").unlink()
    assert refused(lambda: read_manifest(built.layout, "v1")) == "oci.layout.not_a_layout"


def test_blobs_that_are_no_plain_files_are_refused(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    manifest = parse_manifest(read_manifest(built.layout, "v1").raw)
    blob = tmp_path / "l" / "blobs" / "sha256" / manifest.layers[0].digest.hex
    (tmp_path / "elsewhere").write_bytes(blob.read_bytes())
    blob.unlink()
    blob.symlink_to(tmp_path / "elsewhere")
    assert refused(lambda: list(checked_blob(built.layout, manifest.layers[0]))) == "oci.layout.not_a_file"
    blob.unlink()
    os.mkfifo(blob)
    assert refused(lambda: list(checked_blob(built.layout, manifest.layers[0]))) == "oci.layout.not_a_file"


def test_changed_blobs_are_refused(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    manifest = parse_manifest(read_manifest(built.layout, "v1").raw)
    blob = tmp_path / "l" / "blobs" / "sha256" / manifest.layers[0].digest.hex
    blob.write_bytes(flipped(blob.read_bytes()))
    assert refused(lambda: list(checked_blob(built.layout, manifest.layers[0]))) == "oci.layout.digest_mismatch"
    (tmp_path / "l" / "blobs" / "sha256" / built.digest.hex).write_bytes(b"{}")
    assert refused(lambda: read_manifest(built.layout, built.digest)) == "oci.layout.digest_mismatch"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    layout = OCILayout(tmp_path / "l", create=True)

    def chunks() -> Any:
        yield b"first"
        raise ImageRefused("test.broken", "source broke")

    assert refused(lambda: layout.write_blob(chunks())) == "test.broken"
    assert list((tmp_path / "l" / "blobs" / "sha256").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "l").iterdir()) == ["blobs", "index.json", "oci-layout"]


WRITER = """
import sys, time
from cloister import wholefile
from cloister.oci import layout
if sys.argv[2]:
    wholefile._NAMELESS = None

def chunks():
    for _ in range(64):
        yield b"nobody has checked this" * 10_000
    print("begun", flush=True)
    time.sleep(60)

layout.OCILayout(sys.argv[1], create=True).write_blob(chunks())
"""


@pytest.mark.parametrize("nameless", [True, False])
def test_a_killed_writer_leaves_no_blob(tmp_path: Path, nameless: bool) -> None:
    """And nothing at all, where files can be without a name."""
    place = tmp_path / "l"
    words = [sys.executable, "-c", WRITER, str(place), "" if nameless else "named"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as writer:
        assert writer.stdout and writer.stdout.readline() == b"begun\n"
        writer.kill()
    names = sorted(item.name for item in place.rglob("*"))
    left = [name for name in names if name.startswith(".incomplete-")]
    assert len(left) == (0 if nameless else 1)
    assert [name for name in names if name not in left] == ["blobs", "index.json", "oci-layout", "sha256"]


def test_what_is_written_takes_the_place_of_a_damaged_blob(tmp_path: Path) -> None:
    layout = OCILayout(tmp_path / "l", create=True)
    digest, _ = layout.write_blob([LAYER])
    place = tmp_path / "l" / "blobs" / "sha256" / digest.hex
    place.write_bytes(b"damaged")
    assert layout.write_blob([LAYER]) == (digest, len(LAYER))
    assert place.read_bytes() == LAYER


def test_a_layout_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable) as caught:
        OCILayout(tmp_path / "file" / "l", create=True)
    assert caught.value.code == "oci.layout.write_failed"


def test_small_blobs_have_a_ceiling(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    config = parse_manifest(read_manifest(built.layout, "v1").raw).config
    assert refused(lambda: read_blob(built.layout, config, ceiling=10)) == "oci.layout.blob_too_long"


def test_copied_blobs_are_checked_and_copied_once(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    sink = OCILayout(tmp_path / "copy", create=True)
    layer = parse_manifest(read_manifest(built.layout, "v1").raw).layers[0]
    seen: list[int] = []
    copy_blob(built.layout, sink, layer, advance=seen.append)
    copy_blob(built.layout, sink, layer, advance=seen.append)
    assert sum(seen) == layer.size
    wrong = Descriptor(media_type="x", digest=layer.digest, size=layer.size + 1)
    other = OCILayout(tmp_path / "other", create=True)
    assert refused(lambda: copy_blob(built.layout, other, wrong)) == "oci.layout.size_mismatch"
    assert not other.has_blob(layer.digest)


# -- platforms --------------------------------------------------------------------------------------------------


def put_index(layout: OCILayout, **platforms: Digest) -> None:
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": str(digest),
            "size": 1,
            "platform": {"os": "linux", "architecture": name.partition("_")[0], "variant": name.partition("_")[2]},
        }
        for name, digest in platforms.items()
    ]
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    layout.write_manifest(raw, OCI_INDEX, "multi")


def test_the_image_of_a_platform_is_chosen(tmp_path: Path) -> None:
    amd = build_layout(tmp_path / "l", LAYER, tag="amd")
    arm = build_layout(tmp_path / "l", LAYER, tag="arm", run={"Cmd": ["arm"]})
    put_index(amd.layout, amd64=amd.digest, arm64_v8=arm.digest)
    assert Digest.of(resolve_platform(amd.layout, "multi", "linux/amd64").raw) == amd.digest
    assert Digest.of(resolve_platform(amd.layout, "multi", "linux/arm64").raw) == arm.digest
    assert Digest.of(resolve_platform(amd.layout, "amd", "linux/s390x").raw) == amd.digest
    assert refused(lambda: resolve_platform(amd.layout, "multi", "linux/s390x")) == "oci.manifest.no_platform"


# -- archives ---------------------------------------------------------------------------------------------------


def pack(path: Path, members: dict[str, bytes], *, links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def layout_members(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def test_an_oci_archive_is_a_layout_in_a_file(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    source = OCIArchive(pack(tmp_path / "a.tar", {f"./{k}": v for k, v in layout_members(tmp_path / "l").items()}))
    manifest = parse_manifest(read_manifest(source, "").raw)
    assert manifest.digest == built.digest
    assert read_manifest(source, built.digest).raw == manifest.raw
    assert b"".join(checked_blob(source, manifest.layers[0])) == built.layers[0]
    assert refused(lambda: read_manifest(source, "v9")) == "oci.archive.manifest_missing"
    source.close()


def docker_members(*layers: bytes, tags: list[str] | None = None, **more: Any) -> dict[str, bytes]:
    import gzip

    plain = [gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer for layer in layers]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in plain]},
        }
    ).encode()
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    entry = {"Config": "config.json", "RepoTags": tags, "Layers": names, **more}
    return {
        "config.json": config,
        "manifest.json": json.dumps([entry]).encode(),
        **dict(zip(names, layers, strict=True)),
    }


def test_docker_save_becomes_an_oci_image(tmp_path: Path) -> None:
    import gzip

    packed = gzip.compress(LAYER, mtime=0)
    source = DockerArchive(pack(tmp_path / "d.tar", docker_members(LAYER, packed, tags=["app:1"])))
    for selector in ("", "app:1"):
        manifest = parse_manifest(read_manifest(source, selector).raw)
        kinds = [layer.media_type.removeprefix("application/vnd.oci.image.layer.v1.tar") for layer in manifest.layers]
        assert kinds == ["", "+gzip"]
        assert [b"".join(checked_blob(source, layer)) for layer in manifest.layers] == [LAYER, packed]
        assert read_blob(source, manifest.config, ceiling=10_000)
        assert read_manifest(source, str(manifest.digest)).raw == manifest.raw
    assert refused(lambda: read_manifest(source, "sha256:" + "0" * 64)) == "oci.archive.manifest_missing"
    assert refused(lambda: read_manifest(source, "app:2")) == "oci.archive.manifest_missing"
    source.close()


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        ("docker.io/library/app:1", "app:1"),  # as skopeo writes it
        ("app:1", "docker.io/library/app:1"),
        ("team/app:latest", "docker.io/team/app"),
        ("not a reference", "not a reference"),
    ],
)
def test_docker_names_are_compared_as_references(tmp_path: Path, saved: str, asked: str) -> None:
    source = DockerArchive(pack(tmp_path / "d.tar", docker_members(LAYER, tags=[saved])))
    assert read_manifest(source, asked)
    for other in ("example.org/library/app:1", "team/app:1", "app", "Not A Reference"):
        assert refused(lambda other=other: read_manifest(source, other)) == "oci.archive.manifest_missing"
    source.close()


def test_docker_saves_equal_layers_as_links(tmp_path: Path) -> None:
    members = docker_members(LAYER, LAYER)
    del members["1/layer.tar"]
    source = DockerArchive(pack(tmp_path / "d.tar", members, links={"1/layer.tar": "../0/layer.tar"}))
    manifest = parse_manifest(read_manifest(source, "").raw)
    assert b"".join(checked_blob(source, manifest.layers[1])) == LAYER
    source.close()


def test_a_changed_docker_layer_is_refused(tmp_path: Path) -> None:
    members = docker_members(LAYER)
    members["0/layer.tar"] = archive(file(b"a", b"changed"))
    source = DockerArchive(pack(tmp_path / "d.tar", members))
    manifest = parse_manifest(read_manifest(source, "").raw)
    assert refused(lambda: list(checked_blob(source, manifest.layers[0]))) == "oci.archive.digest_mismatch"
    source.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"manifest.json": b"{}"}, "oci.archive.wrong_type"),
        ({"manifest.json": b'[],"x":['}, "oci.archive.not_json"),
        ({"manifest.json": b"[3]"}, "oci.archive.wrong_type"),
        ({"manifest.json": None}, "oci.archive.blob_missing"),
        ({"config.json": None}, "oci.archive.blob_missing"),
        ({"0/layer.tar": None}, "oci.archive.blob_missing"),
        ({"manifest.json": b'[{"Config":"config.json","Layers":[]}]'}, "oci.archive.layer_count"),
        ({"manifest.json": b'[{"Config":"../../etc/passwd","Layers":[]}]'}, "oci.archive.blob_missing"),
        ({"config.json": b"{}"}, "oci.config.missing_member"),
    ],
)
def test_malformed_docker_archives_are_refused(tmp_path: Path, change: dict[str, bytes | None], code: str) -> None:
    members = {key: value for key, value in {**docker_members(LAYER), **change}.items() if value is not None}

    def read() -> None:
        source = DockerArchive(pack(tmp_path / "d.tar", members))
        try:
            read_manifest(source, "")
        finally:
            source.close()

    with pytest.raises(CloisterError) as caught:
        read()
    assert caught.value.code == code


def test_several_docker_images_need_a_name(tmp_path: Path) -> None:
    members = docker_members(LAYER, tags=["a:1"])
    (entry,) = json.loads(members["manifest.json"])
    members["manifest.json"] = json.dumps([entry, {**entry, "RepoTags": ["b:1"]}]).encode()
    source = DockerArchive(pack(tmp_path / "d.tar", members))
    assert refused(lambda: read_manifest(source, "")) == "oci.archive.ambiguous"
    assert read_manifest(source, "b:1")
    source.close()


def test_an_archive_with_a_member_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive(file(b"x", b"1"), file(b"./x", b"2")))
    assert refused(lambda: OCIArchive(tmp_path / "a.tar")) == "oci.archive.duplicate_member"


def test_an_archive_cut_short_after_it_was_indexed_is_refused(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    path = pack(tmp_path / "a.tar", layout_members(tmp_path / "l"))
    source = OCIArchive(path)
    manifest = parse_manifest(read_manifest(source, built.digest).raw)
    os.truncate(path, 100)
    assert refused(lambda: list(checked_blob(source, manifest.layers[0]))) == "oci.archive.truncated"
    source.close()


def test_an_archive_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        OCIArchive(tmp_path / "none.tar")
    assert caught.value.code == "oci.archive.read_failed"


def test_links_in_an_archive_lead_to_its_members_only(tmp_path: Path) -> None:
    content = archive(file(b"manifest.json", b'[{"Config":"c","Layers":[]}]'), symlink(b"c", b"/etc/hostname"))
    (tmp_path / "d.tar").write_bytes(content)
    source = DockerArchive(tmp_path / "d.tar")
    assert refused(lambda: read_manifest(source, "")) == "oci.archive.blob_missing"
    source.close()


# -- locations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "path", "selector"),
    [
        ("oci:/a/b:v1", LocationKind.LAYOUT, "/a/b", "v1"),
        ("oci:/a/b", LocationKind.LAYOUT, "/a/b", ""),
        ("oci-archive:x.tar:v", LocationKind.ARCHIVE, "x.tar", "v"),
        ("docker-archive:x.tar:app:1", LocationKind.DOCKER_ARCHIVE, "x.tar", "app:1"),
        ("docker://host:1/a:v", LocationKind.REGISTRY, "", "v"),
        ("host:1/a", LocationKind.REGISTRY, "", "latest"),
        ("dir:/a:b/c", LocationKind.DIRECTORY, "/a:b/c", ""),
        (f"oci:/a/b:sha256:{'a' * 64}", LocationKind.LAYOUT, "/a/b", f"sha256:{'a' * 64}"),
        (f"oci-archive:a.tar:@sha256:{'a' * 64}", LocationKind.ARCHIVE, "a.tar", f"sha256:{'a' * 64}"),
        (f"oci:/a/b@sha256:{'a' * 64}", LocationKind.LAYOUT, "/a/b", f"sha256:{'a' * 64}"),
    ],
)
def test_locations(text: str, kind: LocationKind, path: str, selector: str) -> None:
    location = parse_location(text)
    assert (location.kind, location.path, location.selector) == (kind, path, selector)
    assert parse_location(str(location)) == location


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("oci:", "oci.location.no_path"),
        ("oci::v1", "oci.location.no_path"),
        ("dir:", "oci.location.no_path"),
        ("docker://", "oci.reference.malformed"),
        ("docker-daemon:app:1", "oci.location.unsupported"),
        ("containers-storage:app", "oci.location.unsupported"),
    ],
)
def test_malformed_locations_are_refused(text: str, code: str) -> None:
    assert refused(lambda: parse_location(text)) == code


def access(root: Path) -> RegistryAccess:
    transport = InProcessTransport(RegistryApp(RegistryStore(root)))
    return RegistryAccess(transport=transport, plain_http=True, other_origins=False)


def test_every_kind_of_location_opens(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "l", LAYER)
    pack(tmp_path / "a.tar", layout_members(tmp_path / "l"))
    pack(tmp_path / "d.tar", docker_members(LAYER))
    reach = access(tmp_path / "registry")
    for text in (f"oci:{tmp_path}/l:v1", f"oci-archive:{tmp_path}/a.tar", f"docker-archive:{tmp_path}/d.tar"):
        location = parse_location(text)
        with open_source(location, reach) as source:
            assert parse_manifest(read_manifest(source, location.selector).raw).layers
    location = parse_location("images.test/team/app:v1")
    with open_sink(location, reach) as sink:
        sink.write_manifest(read_manifest(built.layout, "v1").raw, OCI_MANIFEST, location.selector)
    with open_source(location, reach) as source:
        assert Digest.of(read_manifest(source, "v1").raw) == built.digest
    with open_sink(parse_location(f"oci:{tmp_path}/new:v1"), reach) as sink:
        assert isinstance(sink, OCILayout)


def test_a_registry_without_the_image(tmp_path: Path) -> None:
    client, _ = registry_client(tmp_path)
    assert refused(lambda: read_manifest(client, "v1")) == "oci.distribution.manifest_missing"
    nothing = Descriptor(media_type="x", digest=Digest.of(b"none"), size=4)
    assert refused(lambda: list(checked_blob(client, nothing))) == "oci.distribution.blob_missing"
