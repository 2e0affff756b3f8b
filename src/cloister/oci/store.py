"""Places that hold images, as seen by whoever reads or writes one: layouts and registries have the same two
interfaces.

A store's bytes are untrusted, also those of a local directory: the functions here check every manifest and blob
against the digest it is asked by, and are the only way the rest of Cloister reads a store. What is asked by tag is
whatever the store says it is; only a verified signature or a digest from policy makes it the image that was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol, runtime_checkable

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest, DigestVerifier, parse_digest
from cloister.oci.manifest import Descriptor, parse_index
from cloister.oci.manifest import is_index as document_is_index
from cloister.wire.limits import REFERRERS

_REFERRERS_TAG_HEX: Final = 64


class StoredManifest(msgspec.Struct, frozen=True):
    """Manifest or index bytes and the media type the store gave them (empty when it gave none)."""

    raw: bytes
    media_type: str

    @property
    def is_index(self) -> bool:
        """Whether this is an index of several images."""
        return document_is_index(self.raw, media_type=self.media_type)


class ImageSource(Protocol):
    """Reads from a store, unchecked; `code` prefixes the errors about its content."""

    code: str

    def get_manifest(self, selector: str) -> StoredManifest | None:
        """Return what the store holds under a tag or digest, or None."""
        ...

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the bytes the store holds for a blob, whatever they are."""
        ...

    def referrers(self, digest: Digest) -> Iterable[Descriptor] | None:
        """Return what the store itself lists as referring to `digest`, or None where only a tag can say so.

        For `cloister.oci.referrers`, which has the ceiling on their number.
        """
        ...


class ImageSink(Protocol):
    """Writes to a store."""

    @property
    def holds_back(self) -> bool:
        """Whether nothing of a blob leaves this machine, or is to be had under any blob's name, before it is whole."""
        ...

    def has_blob(self, digest: Digest) -> bool:
        """Whether the store says that it holds a blob."""
        ...

    def write_blob(self, chunks: Iterable[bytes]) -> tuple[Digest, int]:
        """Store a blob and return its SHA-256 digest and size; an error raised by `chunks` leaves no blob behind."""
        ...

    def write_manifest(self, raw: bytes, media_type: str, tag: str = "") -> Digest:
        """Store a manifest whose blobs are stored, under its digest and, unless empty, `tag`."""
        ...

    def write_referrer(self, raw: bytes, media_type: str) -> bool:
        """Store a manifest that has a subject; false where the store does not list it there by itself."""
        ...


@runtime_checkable
class _Mounting(Protocol):
    """A sink that may take a blob over from a source without its bytes coming by."""

    def mount_blob(self, source: ImageSource, digest: Digest) -> bool:
        """Take a blob over; false where it has to be written."""
        ...


class ImageStore(ImageSource, ImageSink, Protocol):
    """A store that can be read and written: a layout or a registry."""


def read_manifest(source: ImageSource, selector: str | Digest) -> StoredManifest:
    """Return a manifest or index; one asked by digest has it, also when the digest is given as text.

    Raises:
        ImageRefused: `<source>.manifest_missing`, `<source>.digest_mismatch`.
        Unavailable: the store cannot be read now.
    """
    stored = source.get_manifest(str(selector))
    if stored is None:
        raise ImageRefused(f"{source.code}.manifest_missing", "store holds no such image", path=str(selector))
    digest = _digest_in(selector)
    if digest is not None:
        verifier = DigestVerifier(digest, None, code=source.code, path=f"manifest {digest}")
        verifier.update(stored.raw)
        verifier.finish()
    return stored


def referrers_tag(digest: Digest) -> str:
    """Return the tag that lists what refers to `digest` where nothing else does (distribution specification 1.1,
    "Referrers Tag Schema")."""
    return f"{digest.algorithm}-{digest.hex[:_REFERRERS_TAG_HEX]}"


def too_many_referrers(digest: Digest) -> ImageRefused:
    """Return the refusal of a list that no honest store has."""
    return ImageRefused(
        "oci.referrers.too_many",
        "more refers to the image than can be",
        path=str(digest),
        expected=f"at most {REFERRERS}",
    )


def _digest_in(selector: str | Digest) -> Digest | None:
    """Return the digest that `selector` is; a tag, or an archive's `repository:tag`, is none."""
    if isinstance(selector, Digest):
        return selector
    try:
        return parse_digest(selector)
    except ImageRefused:
        return None


def resolve_platform(source: ImageSource, selector: str | Digest, platform: str) -> StoredManifest:
    """Return the manifest for `platform` (`linux/amd64`), looking through an index if there is one.

    Raises:
        ImageRefused: `oci.manifest.no_platform`, or as `read_manifest`.
    """
    return manifest_for(source, read_manifest(source, selector), platform)


def manifest_for(source: ImageSource, stored: StoredManifest, platform: str) -> StoredManifest:
    """Return `stored`, or where that is an index, the manifest for `platform` that it names.

    Raises:
        ImageRefused: `oci.manifest.no_platform`, or as `read_manifest`.
    """
    if not stored.is_index:
        return stored
    entries = parse_index(stored.raw, media_type=stored.media_type).manifests
    chosen = choose_platform(entries, platform)
    if chosen is None:
        raise ImageRefused(
            "oci.manifest.no_platform",
            "image has no variant for this platform",
            expected=platform,
            actual=", ".join(sorted({entry.platform for entry in entries}))[:200],
        )
    return read_manifest(source, chosen.digest)


def choose_platform(entries: Sequence[Descriptor], platform: str) -> Descriptor | None:
    """Return the entry of an index that runs on `platform`, as containerd chooses.

    With a variant (`linux/arm/v7`): the same, or else the highest lower one, or else one without. Without: one without
    a variant, or else the lowest one, which runs everywhere. Of equal ones the first.
    """
    wanted = platform.split("/")
    base, variant = "/".join(wanted[:2]), "/".join(wanted[2:])
    fitting = []
    for entry in entries:
        parts = entry.platform.split("/")
        os_and_architecture, its = "/".join(parts[:2]), "/".join(parts[2:])
        if os_and_architecture == base and (not variant or not its or _level(its) <= _level(variant)):
            fitting.append((entry, _level(its)))
    if not fitting:
        return None
    if variant:
        return max(fitting, key=lambda pair: pair[1])[0]
    return min(fitting, key=lambda pair: pair[1])[0]


def _level(variant: str) -> int:
    """Return the number of a variant (`v7`), 0 for none, and for others one that nothing asks for."""
    number = variant.removeprefix("v")
    if not variant:
        return 0
    return int(number) if number.isdigit() and len(number) < 4 else 1000


def checked_blob(source: ImageSource, descriptor: Descriptor, *, read_ahead: bool = False) -> Iterator[bytes]:
    """Yield a blob's bytes and raise behind the last one unless digest and size are as described.

    Args:
        source: where it is.
        descriptor: names it.
        read_ahead: read it beside taking its digest.

    Raises:
        ImageRefused: `<source>.digest_mismatch`, `<source>.size_mismatch`, `<source>.blob_missing`.
    """
    verifier = DigestVerifier(descriptor.digest, descriptor.size, code=source.code, path=f"blob {descriptor.digest}")
    stream = source.stream_blob(descriptor)
    if read_ahead:
        from cloister.oci.ahead import made_ahead  # not before a guest needs it

        stream = made_ahead(stream)
    try:
        yield from verifier.checked(stream)
    finally:
        close = getattr(stream, "close", None)  # a generator may hold a connection, which a refusal gives back at once
        if close is not None:
            close()


def read_blob(source: ImageSource, descriptor: Descriptor, *, ceiling: int) -> bytes:
    """Return a small blob (a configuration, a signature payload) once it is checked.

    Raises:
        ImageRefused: `<source>.blob_too_long`, or as `checked_blob`.
    """
    if descriptor.size > ceiling:
        raise ImageRefused(
            f"{source.code}.blob_too_long",
            "blob is longer than any real one of its kind",
            path=f"blob {descriptor.digest}",
            expected=f"at most {ceiling} bytes",
            actual=str(descriptor.size),
        )
    return b"".join(checked_blob(source, descriptor))


def copy_blob(
    source: ImageSource, sink: ImageSink, descriptor: Descriptor, *, advance: Callable[[int], None] | None = None
) -> None:
    """Copy a blob, unless the sink has it; other bytes than described are never stored.

    A registry takes it over from another of its repositories by itself where it can.
    """
    if sink.has_blob(descriptor.digest):
        return
    if isinstance(sink, _Mounting) and sink.mount_blob(source, descriptor.digest):
        return
    sink.write_blob(_observed(checked_blob(source, descriptor), advance))


def _observed(chunks: Iterable[bytes], advance: Callable[[int], None] | None) -> Iterator[bytes]:
    for chunk in chunks:
        if advance is not None:
            advance(len(chunk))
        yield chunk
