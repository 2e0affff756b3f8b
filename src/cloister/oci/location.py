"""Where an image is, as people write it for skopeo: `docker://REF`, `oci:PATH[:TAG]`, `oci-archive:PATH[:TAG]`,
`docker-archive:PATH[:REF]`; a text without such a prefix is a registry reference, as `docker run` reads it.

As in skopeo, a path ends at the first colon. Opening a location for writing works for layouts and registries only:
an archive cannot be extended in place, and `docker-archive` has no place for what encryption needs to say.
"""

from __future__ import annotations

import enum
from contextlib import AbstractContextManager, closing, nullcontext

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.archive import DockerArchive, OCIArchive
from cloister.oci.distribution import RegistryClient
from cloister.oci.layout import OCILayout
from cloister.oci.reference import OCIReference, parse_reference
from cloister.oci.session import Credentials
from cloister.oci.store import ImageSource
from cloister.oci.transport import Transport


class LocationKind(enum.Enum):
    """The prefix of a location."""

    REGISTRY = "docker://"
    LAYOUT = "oci:"
    ARCHIVE = "oci-archive:"
    DOCKER_ARCHIVE = "docker-archive:"


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


class RegistryAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach registries; see `RegistryClient` for the fields."""

    transport: Transport
    plain_http: bool
    other_origins: bool
    credentials: Credentials | None = None

    def client(self, reference: OCIReference) -> RegistryClient:
        """Return a client for the repository of `reference`."""
        return RegistryClient(
            self.transport,
            reference,
            plain_http=self.plain_http,
            other_origins=self.other_origins,
            credentials=self.credentials,
        )


def parse_location(text: str) -> ImageLocation:
    """Parse a location.

    Raises:
        ImageRefused: `oci.location.no_path`, `oci.reference.malformed`.
    """
    for kind in (LocationKind.LAYOUT, LocationKind.ARCHIVE, LocationKind.DOCKER_ARCHIVE):
        if text.startswith(kind.value):
            path, _, selector = text[len(kind.value) :].partition(":")
            if not path:
                raise ImageRefused("oci.location.no_path", "location has no path", actual=text)
            return ImageLocation(kind=kind, path=path, selector=selector)
    reference = parse_reference(text.removeprefix(LocationKind.REGISTRY.value))
    return ImageLocation(kind=LocationKind.REGISTRY, reference=reference, selector=reference.selector)


def open_source(location: ImageLocation, access: RegistryAccess) -> AbstractContextManager[ImageSource]:
    """Open a location for reading; use the result in a `with` statement.

    Raises:
        ImageRefused, Unavailable: what the place itself refuses.
    """
    if location.reference is not None:
        return nullcontext(access.client(location.reference))
    if location.kind is LocationKind.LAYOUT:
        return nullcontext(OCILayout(location.path))
    if location.kind is LocationKind.ARCHIVE:
        return closing(OCIArchive(location.path))
    return closing(DockerArchive(location.path))


def open_sink(location: ImageLocation, access: RegistryAccess) -> OCILayout | RegistryClient:
    """Open a location for writing, which both can also read.

    Raises:
        ImageRefused: `oci.location.not_writable`, and nothing was written.
    """
    require_writable(location)
    if location.reference is not None:
        return access.client(location.reference)
    return OCILayout(location.path, create=True)


def require_writable(location: ImageLocation) -> None:
    """Return if an encrypted or signed image can be written to `location`.

    Raises:
        ImageRefused: `oci.location.not_writable`.
    """
    if location.reference is not None and location.reference.digest is not None:
        raise ImageRefused(
            "oci.location.not_writable",
            "cannot write to a digest, it follows from the content",
            actual=str(location),
        )
    if location.reference is None and location.kind is not LocationKind.LAYOUT:
        raise ImageRefused(
            "oci.location.not_writable",
            "this kind of place cannot hold an encrypted or signed image",
            expected="docker://REFERENCE or oci:PATH:TAG",
            actual=str(location),
        )
