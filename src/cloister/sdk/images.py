"""Encrypt, decrypt and rewrap images between places as people write them (`oci:PATH:TAG`, `docker://REF`, ..).

Key-encryption keys (`kbs:///repository/type/tag`) are those of a trust service, the owner's on this machine unless
another is given: an existing one is used, a new one is made and stored before anything is encrypted under it. A
destination is opened only when there is something to write to it, so that a source, recipient or key that is refused
leaves no file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cloister.imagetool.compression import Compress
from cloister.imagetool.layers import Progress
from cloister.oci.digest import Digest
from cloister.oci.encryption.wrapping import open_keys, open_recipients
from cloister.oci.location import ImageLocation, LocationKind, open_sink, open_source, parse_location
from cloister.oci.store import ImageSink, ImageSource, read_manifest
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.home import home_from_environment

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient
    from cloister.imagetool.decrypt import DecryptedImage
    from cloister.imagetool.encrypt import SealedImage
    from cloister.imagetool.keyprovider.keys import KEKStore
    from cloister.imagetool.platforms import SourceImage
    from cloister.imagetool.rewrap import RewrappedImage
    from cloister.oci.location import RegistryAccess

_NO_TAG: Final = "latest"


class KeyEncryptionKeys:
    """Key-encryption keys of `kbs:///` recipients.

    Args:
        file: holds the key of all of them, 32 bytes; None for those of a trust service.
        service: opens a client of that; by default of the owner's on this machine.

    Attributes:
        made: addresses of keys that were made and stored.
        found: addresses of keys that were there.
    """

    def __init__(
        self, file: Path | None = None, *, service: Callable[[], AbstractContextManager[AdminClient]] | None = None
    ) -> None:
        self._file = file
        self._service = service or _own_service
        self.made: list[str] = []
        self.found: list[str] = []

    def for_recipient(self, path: ResourcePath) -> bytes:
        """Return the key at `path`, made and stored if there is none.

        Raises:
            ImageRefused: `oci.encryption.kek_length`, `oci.encryption.sample_kek`.
            Refused: the trust service gives or takes no key from this token.
            Unavailable: the trust service, or the file (`imagetool.keyprovider.key_file`), cannot be read.
        """
        key = self._store().obtain(path)
        if self._file is None and path.uri not in self.made:
            self.found.append(path.uri)
        return key

    def at(self, path: ResourcePath) -> bytes:
        """Return the key at `path`.

        Raises:
            ImageRefused: `oci.encryption.kek_length`, `oci.encryption.sample_kek`.
            Refused: the trust service has none (`trust.resource.missing`), or gives none to this token.
            Unavailable: the trust service, or the file (`imagetool.keyprovider.key_file`), cannot be read.
        """
        return self._store().existing(path)

    def _store(self) -> KEKStore:
        # Only here: most images are for no key broker.
        from cloister.imagetool.keyprovider.keys import AdministeredKeys, OneKey, read_key

        if self._file is not None:
            return OneKey(read_key(self._file))
        return AdministeredKeys(self._service, made=lambda path: self.made.append(path.uri))


def _own_service() -> AbstractContextManager[AdminClient]:
    from cloister.sdk.administration import AdministrationTarget, open_administration

    state = home_from_environment().trust
    return open_administration(AdministrationTarget(server="", token_file=None, ca_file=None, tenant="", state=state))


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A source and a destination, parsed."""

    source: ImageLocation
    target: ImageLocation

    @property
    def tag(self) -> str:
        """The image's name at the destination."""
        return self.target.selector or _NO_TAG


def parse_places(source: str, destination: str) -> Place:
    """Parse both.

    Raises:
        ImageRefused: `oci.location.*`, `oci.reference.malformed`.
    """
    return Place(source=parse_location(source), target=parse_location(destination))


def encrypt_between(
    place: Place,
    recipients: Sequence[str],
    *,
    keks: KeyEncryptionKeys,
    platform: str = "",
    compress: Compress = Compress.NONE,
    leave_foreign: bool = False,
    progress: Progress | None = None,
) -> SealedImage:
    """Encrypt; see `cloister.imagetool.encrypt.encrypt_image` and `open_recipients`."""
    from cloister.imagetool.encrypt import encrypt_image

    with _opened(place, sealed=True) as (source, sink):
        read_manifest(source, place.source.selector)  # a source that is not there is told before a key is made for it
        return encrypt_image(
            source,
            place.source.selector,
            sink,
            tag=place.tag,
            recipients=open_recipients(recipients, kek_for=keks.for_recipient),
            platform=platform,
            compress=compress,
            leave_foreign=leave_foreign,
            progress=progress,
        )


def decrypt_between(
    place: Place,
    keys: Sequence[str],
    *,
    keks: KeyEncryptionKeys,
    platform: str = "",
    check_diff_ids: bool = False,
    check: Callable[[ImageSource, SourceImage], None] | None = None,
    progress: Progress | None = None,
) -> DecryptedImage:
    """Decrypt; see `cloister.imagetool.decrypt.decrypt_image` and `open_keys`."""
    from cloister.imagetool.decrypt import decrypt_image

    with _opened(place, sealed=False) as (source, sink):
        return decrypt_image(
            source,
            place.source.selector,
            sink,
            tag=place.tag,
            keys=open_keys(keys, kek_at=keks.at),
            platform=platform,
            check_diff_ids=check_diff_ids,
            check=check,
            progress=progress,
        )


def rewrap_between(
    place: Place,
    *,
    add: Sequence[str],
    remove: Sequence[str],
    only_added: bool,
    keys: Sequence[str],
    keks: KeyEncryptionKeys,
    platform: str = "",
    progress: Progress | None = None,
) -> RewrappedImage:
    """Change recipients; see `cloister.imagetool.rewrap.rewrap_image`."""
    from cloister.imagetool.rewrap import NewRecipients, rewrap_image

    with _opened(place, sealed=True) as (source, sink):
        return rewrap_image(
            source,
            place.source.selector,
            sink,
            tag=place.tag,
            change=NewRecipients(
                add=open_recipients(add, kek_for=keks.for_recipient), remove=frozenset(remove), only_added=only_added
            ),
            keys=open_keys(keys, kek_at=keks.at),
            platform=platform,
            progress=progress,
        )


@contextmanager
def _opened(place: Place, *, sealed: bool) -> Iterator[tuple[ImageSource, ImageSink]]:
    # Each has its own connections: they are used by different threads.
    with ExitStack() as stack:
        accesses = [_access(location, stack) for location in (place.source, place.target)]
        open_target = partial(open_sink, place.target, accesses[1], sealed=sealed)
        # Refused now, and written to when it is entered; only a layout is made at once, and it is never refused.
        known = None if place.target.kind is LocationKind.LAYOUT else open_target()
        source = stack.enter_context(open_source(place.source, accesses[0]))
        yield source, _LateSink(lambda: stack.enter_context(known or open_target()))


def _access(location: ImageLocation, stack: ExitStack) -> RegistryAccess | None:
    """Return how to reach the registry of a location until `stack` ends; files need none, and load nothing for it."""
    if location.reference is None:
        return None
    from cloister.sdk.registryaccess import open_transport, registry_access

    return registry_access(location, stack.enter_context(open_transport()))


class _LateSink:
    """A sink that is opened when the first thing is asked of it, by whichever thread."""

    def __init__(self, opening: Callable[[], ImageSink]) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._sink: ImageSink | None = None

    def _open(self) -> ImageSink:
        with self._lock:
            if self._sink is None:
                self._sink = self._opening()
            return self._sink

    @property
    def holds_back(self) -> bool:
        return self._open().holds_back

    def has_blob(self, digest: Digest) -> bool:
        return self._open().has_blob(digest)

    def write_blob(self, chunks: Iterable[bytes]) -> tuple[Digest, int]:
        return self._open().write_blob(chunks)

    def write_manifest(self, raw: bytes, media_type: str, tag: str = "") -> Digest:
        return self._open().write_manifest(raw, media_type, tag)

    def write_referrer(self, raw: bytes, media_type: str) -> bool:
        return self._open().write_referrer(raw, media_type)
