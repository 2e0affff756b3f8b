"""Where an image is, as people write it for skopeo (containers-transports(5)): `docker://REF`, `oci:PATH[:TAG]`,
`oci-archive:PATH[:TAG]`, `docker-archive:PATH[:REF]`, `dir:PATH`; a text without such a prefix is a registry
reference, as `docker run` reads it.

As in skopeo, a path ends at the first colon, except that `dir:` takes the whole rest. Beside tags, `oci:PATH@DIGEST`
and `oci:PATH:DIGEST` name a manifest by its digest. What is one file or directory of one image is written beside its
place and renamed at the end: on any error there is no file, and an older one is as it was.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import ImageRefused, Unavailable
from cloister.oci.distribution import RegistryClient
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import Descriptor
from cloister.oci.reference import OCIReference, parse_reference
from cloister.oci.session import Credentials
from cloister.oci.store import ImageSource, ImageStore
from cloister.oci.transport import Transport
from cloister.wholefile import READABLE, whole_file

_CODE: Final = "oci.location"
# Places skopeo knows and Cloister does not; without this they would be read as names on Docker Hub.
_UNSUPPORTED: Final = ("docker-daemon:", "containers-storage:", "ostree:", "sif:", "tarball:", "atomic:")
_AT_DIGEST: Final = re.compile(r"(?P<path>.+?):?@(?P<digest>sha(?:256|512):[0-9a-f]{64,128})")


class LocationKind(enum.Enum):
    """The prefix of a location."""

    REGISTRY = "docker://"
    LAYOUT = "oci:"
    ARCHIVE = "oci-archive:"
    DOCKER_ARCHIVE = "docker-archive:"
    DIRECTORY = "dir:"


class ImageLocation(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed location: `reference` for a registry, `path` for files; `selector` is a tag, digest or empty."""

    kind: LocationKind
    selector: str
    path: str = ""
    reference: OCIReference | None = None

    def __str__(self) -> str:
        if self.reference is not None:
            return f"{self.kind.value}{self.reference}"
        return f"{self.kind.value}{self.path}" + (f":{self.selector}" if self.selector else "")


class RegistryPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A repository and how to reach it; see `RegistryClient` for the fields."""

    reference: OCIReference
    plain_http: bool
    other_origins: bool
    credentials: Credentials | None = None
    token_services: tuple[str, ...] = ()

    def client(self, transport: Transport) -> RegistryClient:
        """Return a client for the repository."""
        return RegistryClient(
            transport,
            self.reference,
            plain_http=self.plain_http,
            other_origins=self.other_origins,
            credentials=self.credentials,
            token_services=self.token_services,
        )


class RegistryAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach registries: any one like this, or the repository of a location at `places`, the last of which is its
    own and the others mirrors of it."""

    transport: Transport
    plain_http: bool
    other_origins: bool
    places: tuple[RegistryPlace, ...] = ()

    def client(self, reference: OCIReference) -> RegistryClient:
        """Return a client for the repository of `reference`."""
        return self._places(reference)[-1].client(self.transport)

    def source(self, reference: OCIReference) -> ImageSource:
        """Return what reads the repository of `reference`, from mirrors first."""
        clients = [place.client(self.transport) for place in self._places(reference)]
        if len(clients) == 1:
            return clients[0]
        from cloister.oci.mirrors import MirroredSource

        return MirroredSource(clients)

    def _places(self, reference: OCIReference) -> tuple[RegistryPlace, ...]:
        own = RegistryPlace(reference=reference, plain_http=self.plain_http, other_origins=self.other_origins)
        return self.places or (own,)


def parse_location(text: str) -> ImageLocation:
    """Parse a location.

    Raises:
        ImageRefused: `oci.location.no_path`, `oci.location.unsupported`, `oci.reference.malformed`.
    """
    for kind in LocationKind:
        if kind is not LocationKind.REGISTRY and text.startswith(kind.value):
            path, selector = _split_path(text[len(kind.value) :], kind)
            if not path:
                raise ImageRefused(f"{_CODE}.no_path", "location has no path", actual=text)
            return ImageLocation(kind=kind, path=path, selector=selector)
    if text.startswith(_UNSUPPORTED):
        raise ImageRefused(
            f"{_CODE}.unsupported",
            "this kind of place is not supported",
            expected=", ".join(kind.value for kind in LocationKind),
            actual=text[:80],
            hint="copy it to oci:PATH:TAG with skopeo first",
        )
    reference = parse_reference(text.removeprefix(LocationKind.REGISTRY.value))
    return ImageLocation(kind=LocationKind.REGISTRY, reference=reference, selector=reference.selector)


def _split_path(rest: str, kind: LocationKind) -> tuple[str, str]:
    if kind is LocationKind.DIRECTORY:
        return rest, ""
    match = _AT_DIGEST.fullmatch(rest) if kind is not LocationKind.DOCKER_ARCHIVE else None
    if match:
        return match["path"], match["digest"]
    path, _, selector = rest.partition(":")
    return path, selector


def open_source(location: ImageLocation, access: RegistryAccess | None) -> AbstractContextManager[ImageSource]:
    """Open a location for reading; use the result in a `with` statement.

    Args:
        location: the place.
        access: reaches registries; may be None for a place on disk.

    Raises:
        ImageRefused, Unavailable: what the place itself refuses.
    """
    if location.reference is not None:
        return nullcontext(_required(access).source(location.reference))
    if location.kind is LocationKind.LAYOUT:
        return nullcontext(OCILayout(location.path))
    if location.kind is LocationKind.ARCHIVE:
        from cloister.oci.archive import OCIArchive

        return closing(OCIArchive(location.path))
    if location.kind is LocationKind.DIRECTORY:
        from cloister.oci.directory import ImageDirectory

        return nullcontext(ImageDirectory(location.path))
    from cloister.oci.archive import DockerArchive

    return closing(DockerArchive(location.path))


def _required(access: RegistryAccess | None) -> RegistryAccess:
    if access is None:
        raise RuntimeError("a registry is opened without a way to reach it")
    return access


def open_sink(
    location: ImageLocation, access: RegistryAccess | None, *, sealed: bool = False, extend: bool = False
) -> AbstractContextManager[ImageStore]:
    """Open a location for writing; use the result in a `with` statement, whose normal end makes files appear.

    What is written there can also be read there. A file or directory of one image is replaced as a whole.

    Args:
        location: the place.
        access: reaches registries; may be None for a place on disk.
        sealed: what comes is encrypted, so that a place without room for it is refused before the work.
        extend: something is stored beside what is there (a signature), which stays.

    Raises:
        ImageRefused: `oci.location.not_writable`, `oci.location.several`, `oci.archive.encrypted`, `oci.directory.*`;
            nothing was written.
        Unavailable: `oci.location.write_failed`, or what the place itself says.
    """
    if location.reference is not None:
        if location.reference.digest is not None and not extend:
            raise _not_writable(location, "cannot write to a digest, it follows from the content")
        return nullcontext(_required(access).client(location.reference))
    if location.selector.startswith(("sha256:", "sha512:")) and not extend:
        raise _not_writable(location, "cannot write to a digest, it follows from the content")
    if location.kind is LocationKind.LAYOUT:
        return nullcontext(OCILayout(location.path, create=not extend))
    if location.kind is LocationKind.ARCHIVE:
        return _open_archive(location, extend=extend)
    if extend:
        raise _not_writable(location, "this kind of place has no room for anything beside the image")
    if location.kind is LocationKind.DIRECTORY:
        return _open_directory(location)
    if sealed:
        raise _not_writable(location, "a docker archive cannot hold an encrypted image")
    return _open_docker_archive(location)


# -- places of one file or directory --------------------------------------------------------------------------------


@contextmanager
def _open_archive(location: ImageLocation, *, extend: bool) -> Iterator[ImageStore]:
    from cloister.oci.archive import OCIArchive
    from cloister.oci.archivefile import write_oci_archive

    target = Path(location.path)
    with _staged(target) as layout:
        if extend:
            with closing(OCIArchive(target)) as held:
                held.copy_into(layout)
        yield layout
        with whole_file(target, mode=READABLE) as file:
            write_oci_archive(layout, file)


@contextmanager
def _open_docker_archive(location: ImageLocation) -> Iterator[ImageStore]:
    from cloister.oci.archivefile import write_docker_archive

    name = str(parse_reference(location.selector)) if location.selector else ""
    target = Path(location.path)
    with _staged(target) as layout:
        yield layout
        with whole_file(target, mode=READABLE) as file:
            write_docker_archive(layout, _only_image(layout, location), file, name=name)


@contextmanager
def _open_directory(location: ImageLocation) -> Iterator[ImageStore]:
    from cloister.oci.directory import require_replaceable, write_directory

    target = Path(location.path)
    if target.exists():
        require_replaceable(target)
    with _staged(target) as layout:
        yield layout
        draft = target.with_name(f".{target.name}.{os.urandom(8).hex()}.incomplete")
        try:
            write_directory(layout, _only_image(layout, location), draft)
            if target.exists():
                _exchange(draft, target)
            else:
                draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    aside = one.with_suffix(".aside")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


@contextmanager
def _staged(target: Path) -> Iterator[OCILayout]:
    """Give a layout beside `target` to write into, which is gone in the end.

    Raises:
        Unavailable: `oci.location.write_failed`.
    """
    if not target.parent.is_dir():
        raise Unavailable(f"{_CODE}.write_failed", "directory to write to is not there", path=str(target.parent))
    staging = target.with_name(f".{target.name}.{os.urandom(8).hex()}.layout")
    try:
        yield OCILayout(staging, create=True)
    except OSError as err:
        raise Unavailable(
            f"{_CODE}.write_failed", "cannot write the image", path=str(target), actual=str(err.strerror or err)[:120]
        ) from err
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _only_image(layout: OCILayout, location: ImageLocation) -> Descriptor:
    images = layout.images()
    if len(images) != 1 or layout.has_companions():
        raise ImageRefused(
            f"{_CODE}.several",
            "this kind of place holds one image and nothing beside it",
            expected="one image",
            actual=f"{len(images)} images" + (" and signatures" if layout.has_companions() else ""),
            path=str(location),
            hint="write to oci:PATH:TAG or oci-archive:PATH:TAG",
        )
    return images[0]


def _not_writable(location: ImageLocation, reason: str) -> ImageRefused:
    return ImageRefused(
        f"{_CODE}.not_writable",
        reason,
        expected="docker://REFERENCE, oci:PATH:TAG or oci-archive:PATH:TAG",
        actual=str(location),
    )
