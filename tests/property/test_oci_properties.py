"""Parsers of images: any bytes end in a value or a refusal, truncation and flipped bits never pass, nothing
escapes."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.errors import CloisterError, Refused
from cloister.oci.digest import parse_digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.options import (
    PrivateOptions,
    PublicOptions,
    encode_private_options,
    encode_public_options,
    parse_private_options,
    parse_public_options,
)
from cloister.oci.encryption.packet import (
    AnnotationPacket,
    encode_packet,
    parse_packet,
    unwrap_private_options,
    wrap_private_options,
)
from cloister.oci.inflate import inflate
from cloister.oci.layer import LayerUnpacker
from cloister.oci.location import parse_location
from cloister.oci.manifest import is_index, parse_config, parse_index, parse_layer_type, parse_manifest
from cloister.oci.reference import parse_reference
from cloister.oci.rootfs import RootDirectory
from cloister.oci.signing.simplesigning import parse_payload
from cloister.oci.tar import TarReader
from unit.oci.builders import (
    OPTIONS,
    archive,
    directory,
    file,
    gnu,
    hard_link,
    header,
    pax,
    symlink,
)

DIGEST = parse_digest("sha256:" + "ab" * 32)


def read_tar(data: bytes) -> list[tuple[bytes, bytes]]:
    reader = TarReader([data])
    return [(entry.path, b"".join(reader.data())) for entry in reader.entries()]


PARSERS = [
    parse_manifest,
    parse_index,
    parse_config,
    is_index,
    parse_payload,
    parse_public_options,
    parse_private_options,
    parse_packet,
    read_tar,
    lambda data: b"".join(inflate([data], "gzip", ceiling=1 << 20)),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=6),
    max_leaves=20,
)
MEMBER_NAMES = st.sampled_from(
    [
        *("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "annotations", "platform"),
        *("os", "architecture", "rootfs", "type", "diff_ids", "Env", "Cmd", "Entrypoint", "User"),
        *("critical", "identity", "image", "optional", "cipher", "hmac", "cipheroptions", "symkey"),
        *("kid", "iv", "wrapped_data", "wrap_type"),
    ]
)
LIKELY = st.sampled_from(
    [
        2,
        "",
        "application/vnd.oci.image.manifest.v1+json",
        f"sha256:{'a' * 64}",
        "layers",
        "AAAA",
        "A256GCM",
        [],
        {},
        None,
    ]
)
DOCUMENT = st.recursive(
    LIKELY | JSON,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(MEMBER_NAMES, children, max_size=8),
    max_leaves=30,
)


def parsed_or_refused(parsers: list[Any], data: bytes) -> None:
    for parse in parsers:
        try:
            parse(data)
        except Refused as err:
            assert err.code  # and no other exception


@given(data=st.binary(max_size=2000))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    parsed_or_refused(PARSERS, data)


@given(value=DOCUMENT)
@example(value={"schemaVersion": 2, "layers": [], "config": {"mediaType": "", "digest": "\ud800", "size": 1}})
def test_any_document_is_parsed_or_refused(value: object) -> None:
    parsed_or_refused(PARSERS[:8], json.dumps(value).encode())


@given(text=st.text(max_size=100) | st.from_regex(r"[a-z0-9./:@_-]{0,60}", fullmatch=True))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    for parse in (parse_reference, parse_location, parse_digest, parse_layer_type):
        try:
            value = parse(text)
        except Refused:
            continue
        if parse is parse_reference:
            assert parse_reference(str(value)) == value


@given(
    value=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8), st.integers(0, 2**53) | st.text(st.characters(codec="utf-8"))
    )
)
def test_documents_round_trip(value: dict[str, object]) -> None:
    raw = encode_document(value)
    assert parse_document(raw, ceiling=1 << 20, code="test") == value
    assert encode_document(parse_document(raw, ceiling=1 << 20, code="test")) == raw


@given(
    key=st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=16, max_size=16),
    mac=st.binary(min_size=32, max_size=32),
)
def test_options_and_packets_round_trip(key: bytes, nonce: bytes, mac: bytes) -> None:
    assert parse_public_options(encode_public_options(PublicOptions(mac))) == PublicOptions(mac)
    options = PrivateOptions(key=key, digest=DIGEST, nonce=nonce)
    parsed = parse_private_options(encode_private_options(options))
    assert (parsed.key, parsed.digest, parsed.nonce) == (options.key, DIGEST, nonce)
    packet = AnnotationPacket(kek_id="kbs:///a/b/c", wrapped=mac, nonce=nonce[:12])
    assert parse_packet(encode_packet(packet)) == packet


KEK = bytes(range(32))
PACKET = encode_packet(
    wrap_private_options(PrivateOptions(key=b"k" * 32, digest=DIGEST, nonce=b"n" * 16), kek_id="kbs:///a/b/c", kek=KEK)
)


@given(position=st.integers(0, len(PACKET) - 1), bit=st.integers(0, 7))
def test_a_packet_with_one_flipped_bit_never_opens_to_other_options(position: int, bit: int) -> None:
    changed = bytearray(PACKET)
    changed[position] ^= 1 << bit
    try:
        options = unwrap_private_options(parse_packet(bytes(changed)), KEK)
    except Refused:
        return
    assert options.key == b"k" * 32  # only the kid, which is not bound, can change and still open


@given(length=st.integers(0, len(PACKET) - 1))
def test_a_truncated_packet_is_refused(length: int) -> None:
    with pytest.raises(Refused):
        parse_packet(PACKET[:length])


# -- tar --------------------------------------------------------------------------------------------------------

NAMES = st.lists(
    st.sampled_from(
        [b"a", b"b", b"c", b"dir", b"..", b".", b"", b".wh.a", b".wh.dir", b".wh..wh..opq", b"link", b"\xff"]
    ),
    min_size=1,
    max_size=5,
).map(b"/".join)
TARGETS = NAMES | st.sampled_from(
    [b"../outside", b"/outside", b"/", b"../../../../tmp", b"dir/../..", b"link/../outside"]
)
CONTENT = st.binary(max_size=40)
ENTRIES = st.one_of(
    st.builds(file, NAMES, CONTENT),
    st.builds(directory, NAMES),
    st.builds(symlink, NAMES, TARGETS),
    st.builds(hard_link, NAMES, TARGETS),
    st.builds(lambda name: header(name, kind=b"6"), NAMES),
    st.builds(lambda name, value: pax([(b"path", name)]) + file(b"x", value), NAMES, CONTENT),
    st.builds(lambda name, value: gnu(b"L", name) + file(b"x", value), NAMES, CONTENT),
)
LAYERS = st.lists(st.lists(ENTRIES, max_size=8).map(lambda members: archive(*members)), min_size=1, max_size=3)


def look(outside: Path) -> list[tuple[str, int, bytes]]:
    found = []
    for folder, _, names in os.walk(outside):
        if Path(folder).name == "root" or "/root/" in folder:
            continue
        for name in names:
            path = Path(folder, name)
            found.append((str(path), path.lstat().st_nlink, path.read_bytes()))
    return sorted(found)


@given(layers=LAYERS)
def test_nothing_outside_the_root_changes(layers: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as place:
        outside = Path(place)
        (outside / "outside").mkdir()
        for name in ("a", "b", "secret"):
            (outside / "outside" / name).write_bytes(b"untouched")
            (outside / name).write_bytes(b"untouched")
        (outside / "root").mkdir()
        before = look(outside)
        try:
            with RootDirectory(outside / "root") as root:
                unpacker = LayerUnpacker(root, OPTIONS)
                for layer in layers:
                    unpacker.apply([layer])
        except CloisterError as err:
            assert err.code.startswith("oci.layer."), err
        assert look(outside) == before


GOOD = archive(
    directory(b"d"), pax([(b"path", b"d/long"), (b"mtime", b"1.5")]) + file(b"x", b"1" * 700), symlink(b"d/s", b"long"),
    gnu(b"L", b"d/gnu") + file(b"y", b"2"),
)  # fmt: skip


@given(position=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_in_an_archive_is_read_or_refused(position: int, bit: int) -> None:
    changed = bytearray(GOOD)
    changed[position] ^= 1 << bit
    try:
        read_tar(bytes(changed))
    except Refused as err:
        assert err.code.startswith("oci.layer.")


def test_an_archive_cut_anywhere_inside_an_entry_is_refused() -> None:
    whole = read_tar(GOOD)
    for length in range(len(GOOD) - 1024):
        try:
            found = read_tar(GOOD[:length])
        except Refused as err:
            assert err.code == "oci.layer.truncated"  # both ways out are allowed
        else:
            assert length % 512 == 0
            assert found == whole[: len(found)]


MEMBERS = st.lists(
    st.tuples(
        st.text("abcdefgh", min_size=1, max_size=150),
        st.binary(max_size=1500),
        st.integers(0, 0o7777),
        st.integers(0, 2**31),
        st.integers(0, 2**33),
    ),
    max_size=6,
    unique_by=lambda member: member[0],
)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(members=MEMBERS, chunk=st.integers(1, 3000))
def test_what_others_write_is_read_as_they_mean_it(tar_format: int, members: list[Any], chunk: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content, mode, owner, mtime in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.mtime = len(content), mode, owner, mtime
            tar.addfile(info, io.BytesIO(content))
    data = buffer.getvalue()
    reader = TarReader(data[i : i + chunk] for i in range(0, len(data), chunk))
    found = [
        (entry.path.decode(), b"".join(reader.data()), entry.mode, entry.uid, entry.mtime_ns // 10**9)
        for entry in reader.entries()
    ]
    assert found == members


@given(layer=st.lists(ENTRIES, max_size=6).map(lambda members: archive(*members)))
def test_what_is_accepted_is_seen_alike_by_gnu_tar(layer: bytes) -> None:
    """One layer without whiteouts, accepted by us: GNU tar makes the same tree of it."""
    if b".wh." in layer:
        return
    with tempfile.TemporaryDirectory() as place:
        ours, theirs = Path(place, "ours"), Path(place, "theirs")
        ours.mkdir()
        theirs.mkdir()
        try:
            with RootDirectory(ours) as root:
                LayerUnpacker(root, OPTIONS).apply([layer])
        except CloisterError:
            return
        result = subprocess.run(
            ["tar", "-x", "--no-same-owner", "-C", str(theirs)], input=layer, capture_output=True, check=False
        )
        if result.returncode:  # GNU tar refuses more than we do where links point outside
            return
        assert tree_of(ours) == tree_of(theirs)


def tree_of(place: Path) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for path in sorted(place.rglob("*")):
        kind: object = "other"
        if path.is_symlink():
            kind = ("link", os.readlink(path))
        elif path.is_dir():
            kind = "directory"
        elif path.is_file():
            kind = path.read_bytes()
        found.append((str(path.relative_to(place)), kind))
    return found


@given(data=st.binary(max_size=5000), cut=st.integers(1, 30), members=st.integers(1, 3))
def test_gzip_cut_short_is_refused(data: bytes, cut: int, members: int) -> None:
    packed = gzip.compress(data) * members
    assert b"".join(inflate([packed], "gzip", ceiling=1 << 20)) == data * members
    end = len(packed) - min(cut, 17)
    with pytest.raises(Refused):
        b"".join(inflate([packed[:end]], "gzip", ceiling=1 << 20))
