"""Image layouts on disk: a directory that is both `ImageSource` and `ImageSink` (OCI image specification,
image-layout.md).

What is in the directory is as untrusted as a registry: blobs are opened without following links and only if they are
plain files, and are checked by `cloister.oci.store`. Blobs and the index appear whole (`cloister.wholefile`), so a
killed writer leaves no half-written image. One writer at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from cloister.errors import ImageRefused, Unavailable
from cloister.oci.ahead import made_ahead
from cloister.oci.digest import Digest, DigestVerifier
from cloister.oci.document import encode_document, parse_document
from cloister.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    ImageIndex,
    describe_referrer,
    parse_either,
    parse_index,
)
from cloister.oci.store import ImageSource, StoredManifest, referrers_tag
from cloister.wholefile import Draft
from cloister.wire.limits import BLOB_PIECE_BYTES, KIB, MANIFEST_BYTES

REF_NAME: Final = "org.opencontainers.image.ref.name"
LAYOUT_VERSION: Final = "1.0.0"
_COMPANION_TAG: Final = r"sha(256|512)-[0-9a-f]{64,128}(\.[a-z]+)?"
_CODE: Final = "oci.layout"
_MARKER: Final = "oci-layout"
_INDEX: Final = "index.json"
_MODE: Final = 0o666  # before the umask


class OCILayout:
    """The layout in directory `path`.

    Args:
        path: the directory.
        create: make it, empty, if it is not there.

    Raises:
        ImageRefused: `oci.layout.not_a_layout`, `oci.layout.version`.
    """

    code = _CODE
    holds_back = True

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        self._path = Path(path)
        if create and not (self._path / _MARKER).exists():
            self._create()
        marker = read_plain(self._path / _MARKER, 4 * KIB)
        if marker is None:
            raise ImageRefused(f"{_CODE}.not_a_layout", "directory is not an image layout", path=str(path))
        check_layout_marker(marker)

    def get_manifest(self, selector: str) -> StoredManifest | None:
        """Return what the layout holds under a digest or reference name; an empty name means the only image."""
        entry = select_entry(self._index(), selector)
        if entry is not None:
            raw = read_plain(self._blob(entry.digest), MANIFEST_BYTES)
            return None if raw is None else listed_manifest(raw, entry, code=_CODE)
        if ":" not in selector:
            return None
        raw = read_plain(self._blob_by_text(selector), MANIFEST_BYTES)
        return None if raw is None else StoredManifest(raw, "")

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes, unchecked."""
        with open_plain(self._blob(descriptor.digest)) as file:
            while chunk := file.read(BLOB_PIECE_BYTES):
                yield chunk

    def has_blob(self, digest: Digest) -> bool:
        """Whether a file of that name is there."""
        return self._blob(digest).is_file()

    def write_blob(self, chunks: Iterable[bytes], *, algorithm: str = "sha256") -> tuple[Digest, int]:
        """Store a blob; see `ImageSink.write_blob`."""
        hasher = hashlib.new(algorithm)
        size = 0

        def hashed() -> Iterator[bytes]:
            for chunk in chunks:
                hasher.update(chunk)
                yield chunk

        with _draft(self._path) as draft:
            for chunk in made_ahead(hashed()):
                size += len(chunk)
                draft.file.write(chunk)
            digest = Digest(algorithm, hasher.hexdigest())
            target = self._blob(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            draft.place(target, durable=False)
        return digest, size

    def write_manifest(self, raw: bytes, media_type: str, tag: str = "") -> Digest:
        """Store a manifest and list it in the index, replacing what had the same reference name.

        Nameless manifests that an index names are listed by that index alone, as other tools leave it.
        """
        digest, size = self.write_blob([raw])
        entry: dict[str, Any] = {"mediaType": media_type, "digest": str(digest), "size": size}  # Any: JSON
        if tag:
            entry["annotations"] = {REF_NAME: tag}
        children: set[str] = set()
        if media_type in INDEX_TYPES:
            with contextlib.suppress(ImageRefused):  # whoever reads it is told that it is none
                children = {str(child.digest) for child in parse_index(raw, media_type=media_type).manifests}
        self._list_entry(entry, children)
        return digest

    def referrers(self, digest: Digest) -> Iterator[Descriptor]:
        """Return what the index lists by itself or under the fallback tag; see `ImageSource.referrers`."""
        return layout_referrers(self, self._index(), digest)

    def write_referrer(self, raw: bytes, media_type: str) -> bool:
        """Store a manifest and list it in the index without a name, as oras does; see `ImageSink.write_referrer`."""
        self.write_blob([raw])
        self._list_entry(describe_referrer(parse_either(raw, media_type=media_type)))
        return True

    def images(self) -> tuple[Descriptor, ...]:
        """Return the entries of the index that are images, each digest once, not what was stored beside one."""
        found = {entry.digest: entry for entry in self._index().manifests if not _is_companion(entry)}
        return tuple(found.values())

    def has_companions(self) -> bool:
        """Whether signatures or the like were stored beside the images."""
        return any(_is_companion(entry) for entry in self._index().manifests)

    def write_index(self, raw: bytes) -> None:
        """Replace the index.

        Raises:
            ImageRefused: `oci.manifest.*`: it is none.
        """
        parse_index(raw)
        self._replace(_INDEX, raw)

    def link_blob(self, digest: Digest, target: Path) -> None:
        """Give a blob's file another name in the same file system.

        Raises:
            ImageRefused: `oci.layout.blob_missing`.
        """
        if not self.has_blob(digest):
            raise ImageRefused(f"{_CODE}.blob_missing", "store does not have a blob", path=str(digest))
        os.link(self._blob(digest), target, follow_symlinks=False)

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield name and place of every file of the layout, in the order of their names."""
        for directory in sorted((self._path / "blobs").iterdir()):
            for path in sorted(directory.iterdir()):
                yield f"blobs/{directory.name}/{path.name}", path
        for name in (_INDEX, _MARKER):
            yield name, self._path / name

    def _list_entry(self, entry: dict[str, Any], children: Set[str] = frozenset()) -> None:  # Any: JSON
        document = parse_document(self._index().raw, ceiling=MANIFEST_BYTES, code=_CODE)
        kept = [
            item
            for item in document["manifests"]
            if not _is_replaced(item, entry["digest"], _name_of(entry))
            and (_name_of(item) or item["digest"] not in children)
        ]
        document["manifests"] = [*kept, entry]
        self._replace(_INDEX, encode_document(document))

    def _create(self) -> None:
        try:
            (self._path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            self._replace(_INDEX, encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}))
            self._replace(_MARKER, encode_document({"imageLayoutVersion": LAYOUT_VERSION}))
        except OSError as err:
            raise Unavailable(f"{_CODE}.write_failed", "cannot make the layout", path=str(self._path)) from err

    def _replace(self, name: str, content: bytes) -> None:
        with _draft(self._path) as draft:
            draft.file.write(content)
            draft.place(self._path / name, durable=False)

    def _index(self) -> ImageIndex:
        raw = read_plain(self._path / _INDEX, MANIFEST_BYTES)
        if raw is None:
            raise ImageRefused(f"{_CODE}.not_a_layout", "layout has no index", path=str(self._path / _INDEX))
        return parse_index(raw)

    def _blob(self, digest: Digest) -> Path:
        return self._path / "blobs" / digest.algorithm / digest.hex

    def _blob_by_text(self, text: str) -> Path:
        algorithm, _, value = text.partition(":")
        return self._blob(Digest(algorithm, value))


def check_layout_marker(raw: bytes) -> None:
    """Refuse a layout of another version (`oci.layout.version`)."""
    version = parse_document(raw, ceiling=4 * KIB, code=_CODE).get("imageLayoutVersion")
    if version != LAYOUT_VERSION:
        raise ImageRefused(
            f"{_CODE}.version", "layout version is not known", expected=LAYOUT_VERSION, actual=str(version)[:40]
        )


def select_entry(index: ImageIndex, selector: str) -> Descriptor | None:
    """Return the entry of a layout's index with a digest or reference name, or the only image for an empty name.

    What was stored beside an image, signatures above all, is no other image: it has a tag made of a digest, or a type
    of artifact, and is found by name only.

    Raises:
        ImageRefused: `oci.layout.ambiguous`: none was named and there are several, or several have the name.
    """
    if selector:
        found = [entry for entry in index.manifests if selector in (entry.annotations.get(REF_NAME), str(entry.digest))]
    else:
        found = [entry for entry in index.manifests if not _is_companion(entry)] or list(index.manifests)
    if len({entry.digest for entry in found}) > 1:
        names = sorted({entry.annotations.get(REF_NAME, str(entry.digest)) for entry in found})
        raise ImageRefused(
            f"{_CODE}.ambiguous", "layout holds several such images", expected="one", actual=", ".join(names)[:200]
        )
    return found[0] if found else None


def listed_manifest(raw: bytes, entry: Descriptor, *, code: str) -> StoredManifest:
    """Return the manifest that an index lists, which a name led to: the index is to be believed in the name only.

    Raises:
        ImageRefused: `<code>.digest_mismatch`.
    """
    verifier = DigestVerifier(entry.digest, None, code=code, path=f"manifest {entry.digest}")
    verifier.update(raw)
    verifier.finish()
    return StoredManifest(raw, entry.media_type)


def layout_referrers(source: ImageSource, index: ImageIndex, digest: Digest) -> Iterator[Descriptor]:
    """Yield what refers to `digest` in a layout with `index`: by its own word, or listed under the fallback tag.

    Manifests that cannot be read refer to nothing; whoever asks for them by digest is told what is wrong with them.
    """
    for entry in index.manifests:
        if entry.media_type not in (*MANIFEST_TYPES, *INDEX_TYPES):
            continue
        try:
            stored = source.get_manifest(str(entry.digest))
            document = parse_either(stored.raw, media_type=stored.media_type) if stored else None
        except ImageRefused:
            continue
        if document is not None and document.subject is not None and document.subject.digest == digest:
            yield entry
    tagged = source.get_manifest(referrers_tag(digest))
    if tagged is not None:
        yield from parse_index(tagged.raw, media_type=tagged.media_type).manifests


def _is_companion(entry: Descriptor) -> bool:
    return bool(entry.artifact_type or re.fullmatch(_COMPANION_TAG, entry.annotations.get(REF_NAME, "")))


def _is_replaced(item: dict[str, Any], digest: str, tag: str) -> bool:  # Any: JSON
    return bool(_name_of(item) == tag and (tag or item.get("digest") == digest))


def _name_of(item: dict[str, Any]) -> str:  # Any: JSON
    return str((item.get("annotations") or {}).get(REF_NAME, ""))


@contextmanager
def _draft(directory: Path) -> Iterator[Draft]:
    """Give a new file of the layout, gone unless it is placed."""
    try:
        with Draft(directory, mode=_MODE) as draft:
            yield draft
    except OSError as err:
        raise Unavailable(
            f"{_CODE}.write_failed", "cannot write to the layout", path=str(directory), actual=str(err.strerror)
        ) from err


def open_plain(path: Path, *, code: str = _CODE) -> BinaryIO:
    """Open a file without following a link, if it is a plain one.

    Raises:
        ImageRefused: `<code>.blob_missing`, `<code>.not_a_file`.
        Unavailable: `<code>.read_failed`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise ImageRefused(f"{code}.blob_missing", "store does not have a blob", path=str(path)) from err
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise ImageRefused(f"{code}.not_a_file", "blob is a symbolic link", path=str(path)) from err
        raise Unavailable(
            f"{code}.read_failed", "cannot read a file of the store", path=str(path), actual=str(err.strerror)
        ) from err
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageRefused(f"{code}.not_a_file", "blob is not a plain file", path=str(path))
    return os.fdopen(fd, "rb", buffering=0)


def read_plain(path: Path, ceiling: int, *, code: str = _CODE) -> bytes | None:
    """Return the content of a small plain file, or None when there is none.

    Raises:
        ImageRefused: `<code>.too_long`, `<code>.not_a_file`.
        Unavailable: `<code>.read_failed`.
    """
    if not path.exists():
        return None
    with open_plain(path, code=code) as file:
        raw = file.read(ceiling + 1)
    if len(raw) > ceiling:
        raise ImageRefused(f"{code}.too_long", "file is too long", path=str(path), expected=f"at most {ceiling} bytes")
    return raw
