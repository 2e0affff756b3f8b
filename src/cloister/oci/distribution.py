"""A client of registries: pull and push manifests and blobs (OCI distribution specification 1.1).

One client for guest and owner. It is an `ImageSource` and an `ImageSink`: what it delivers is checked by
`cloister.oci.store`. A registry can delay, refuse and lie, and is trusted with nothing else. It may not send the
guest to other servers: with `other_origins` false, a redirect, an upload address or a token service on another
origin is refused, so that no hostile registry reaches the pod's own loopback services through this client.

Every repeat has a ceiling. Bodies are streamed; a pull or push that broke off goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

from cloister.errors import ImageRefused, Unavailable
from cloister.oci.digest import Digest
from cloister.oci.document import Members, parse_document
from cloister.oci.manifest import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, Descriptor, ImageIndex, parse_index
from cloister.oci.reference import DEFAULT_REGISTRY, OCIReference
from cloister.oci.session import CODE, Credentials, RegistrySession, read_bounded
from cloister.oci.store import ImageSource, StoredManifest, too_many_referrers
from cloister.oci.transport import Response, Transport
from cloister.wire.limits import KIB, MANIFEST_BYTES, MIB, REFERRER_PAGES, REGISTRY_TAG_PAGES, REGISTRY_TAGS

_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_DOCKER_HUB: Final = "registry-1.docker.io"
_READ_BYTES: Final = 256 * KIB
_UPLOAD_BYTES: Final = 4 * MIB  # one chunk of an upload: what is held in memory
_NEXT_LINK: Final = r'<([^<>]{1,2000})>\s*;\s*rel="?next"?'
_REFERRERS_STATUSES: Final = (200, 400, 404, 405, 406)  # what registries without that API answer
_ABANDONED: Final = (200, 202, 204, 404, 405)
_LARGEST_CHUNK_BYTES: Final = 64 * MIB  # also where a registry asks for more
_HELD_RANGE: Final = r"(?:bytes=)?0-(\d{1,18})"


class _ReferrersPage(NamedTuple):
    """One answer of the referrers API, and where it goes on (empty: nowhere)."""

    listed: ImageIndex
    next_url: str


class RegistryClient:
    """One repository of one registry.

    Args:
        transport: carries the requests.
        reference: names registry and repository; its tag and digest are not looked at.
        plain_http: speak HTTP without TLS to this registry.
        other_origins: follow the registry to other servers (redirects to storage, token services).
        credentials: for the registry, or None for anonymous use.
        token_services: see `RegistrySession`.
        sleep: pauses between repeats, seconds.
    """

    code = CODE
    holds_back = False

    def __init__(
        self,
        transport: Transport,
        reference: OCIReference,
        *,
        plain_http: bool,
        other_origins: bool,
        credentials: Credentials | None = None,
        token_services: Collection[str] = (),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        host = _DOCKER_HUB if reference.registry == DEFAULT_REGISTRY else reference.registry
        origin = f"{'http' if plain_http else 'https'}://{host}"
        self._repository = reference.repository
        self._base = f"{origin}/v2/{reference.repository}"
        self._session = RegistrySession(
            transport,
            origin,
            other_origins=other_origins,
            credentials=credentials,
            token_services=token_services,
            sleep=sleep,
        )

    def get_manifest(self, selector: str) -> StoredManifest | None:
        """Return manifest or index bytes under a tag or digest, or None.

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`.
            ImageRefused: `oci.distribution.manifest_too_long`.
        """

        def get() -> StoredManifest | None:
            url = f"{self._base}/manifests/{selector}"
            response = self._session.send("GET", url, {"Accept": _ACCEPT}, accept=(200, 404))
            try:
                return None if response.status == 404 else _read_manifest(response, selector)
            finally:
                response.close()

        return self._session.repeat(get)

    def stream_blob(self, descriptor: Descriptor, *, start: int = 0) -> Iterator[bytes]:
        """Yield a blob's bytes from `start` on, unchecked, going on where an answer broke off.

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`.
            ImageRefused: `oci.distribution.blob_missing`.
        """
        done = start
        failures = 0
        while True:
            try:
                for chunk in self._stream_from(descriptor, done):
                    done += len(chunk)
                    yield chunk
                return
            except Unavailable as err:
                failures += 1
                self._session.pause_or_raise(err, failures)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the registry says that it has a blob."""

        def ask() -> bool:
            response = self._session.send("HEAD", f"{self._base}/blobs/{digest}", {}, accept=(200, 404))
            response.close()
            return response.status == 200

        return self._session.repeat(ask)

    def write_blob(self, chunks: Iterable[bytes]) -> tuple[Digest, int]:
        """Upload a blob in chunks of a few MiB; see `ImageSink.write_blob`.

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`.
        """
        upload = _Upload(self._session, *self._session.repeat(self._begin_upload), self.has_blob)
        try:
            return upload.run(chunks)
        except BaseException:
            upload.abandon()
            raise

    def mount_blob(self, source: ImageSource, digest: Digest) -> bool:
        """Have the registry take a blob over from another of its repositories, if `source` is one.

        Returns:
            False where the blob has to be uploaded.

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`.
        """
        if not isinstance(source, RegistryClient) or source._session.origin != self._session.origin:
            return False
        url = f"{self._base}/blobs/uploads/?mount={digest}&from={source._repository}"
        scope = f"repository:{source._repository}:pull"

        def mount() -> Response:
            response = self._session.send("POST", url, {}, accept=(201, 202), scope=scope)
            response.close()
            return response

        response = self._session.repeat(mount)
        if response.status == 202:  # an upload was begun instead; that it stays open harms nobody
            with contextlib.suppress(Unavailable):
                begun = self._session.resolve(url, response.header("Location"))
                self._session.send("DELETE", begun, {}, accept=_ABANDONED).close()
        return response.status == 201

    def list_tags(self) -> tuple[str, ...]:
        """Return the tags of the repository, in the registry's order.

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`.
            ImageRefused: `oci.distribution.too_many_tags`, `oci.distribution.tags.*`.
        """
        tags: dict[str, None] = {}
        url = f"{self._base}/tags/list"
        for _ in range(REGISTRY_TAG_PAGES):
            raw, following = self._session.repeat(partial(self._tags_page, url))
            if raw is not None:
                members = Members(
                    parse_document(raw, ceiling=MANIFEST_BYTES, code=f"{CODE}.tags"), path="", code=f"{CODE}.tags"
                )
                tags |= dict.fromkeys(members.texts("tags", ceiling=REGISTRY_TAGS))
            if raw is not None and not following and len(tags) <= REGISTRY_TAGS:
                return tuple(tags)
            if raw is None or len(tags) > REGISTRY_TAGS:
                break
            url = following
        raise ImageRefused(
            f"{CODE}.too_many_tags", "registry lists tags without end", expected=f"at most {REGISTRY_TAGS}"
        )

    def delete_manifest(self, selector: str) -> bool:
        """Have the registry forget a tag or a manifest; false when it had none.

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`; many registries delete nothing.
        """

        def delete() -> bool:
            response = self._session.send("DELETE", f"{self._base}/manifests/{selector}", {}, accept=(202, 404))
            response.close()
            return response.status == 202

        return self._session.repeat(delete)

    def write_manifest(self, raw: bytes, media_type: str, tag: str = "") -> Digest:
        """Store a manifest; see `ImageSink.write_manifest`.

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`.
            ImageRefused: `oci.distribution.digest_mismatch`: the registry says it stored other bytes.
        """
        self._put_manifest(raw, media_type, tag)
        return Digest.of(raw)

    def referrers(self, digest: Digest) -> Iterator[Descriptor] | None:
        """Return what the registry's referrers API lists, or None where it has none; see `ImageSource.referrers`.

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`.
            ImageRefused: `oci.referrers.too_many`, `oci.manifest.*`, also while the result is read.
        """
        url = f"{self._base}/referrers/{digest}"
        page = self._session.repeat(partial(self._referrers_page, url, digest))
        return None if page is None else self._referrers_pages(page, digest)

    def attached_signatures(self, digest: Digest) -> bytes | None:
        """Return what a registry that keeps simple-signing signatures itself says of a manifest, None where it does not
        (OpenShift's `/extensions/v2/<repository>/signatures/<digest>`).

        Raises:
            Unavailable: `oci.distribution.*`, `oci.transport.*`.
        """
        url = self._base.replace("/v2/", "/extensions/v2/", 1) + f"/signatures/{digest}"

        def get() -> bytes | None:
            response = self._session.send("GET", url, {}, accept=(200, 400, 404, 405))
            try:
                return read_bounded(response, MANIFEST_BYTES) if response.status == 200 else None
            finally:
                response.close()

        return self._session.repeat(get)

    def write_referrer(self, raw: bytes, media_type: str) -> bool:
        """Store a manifest that has a subject; see `ImageSink.write_referrer` and `write_manifest`."""
        return bool(self._put_manifest(raw, media_type, "").header("OCI-Subject"))

    def _referrers_pages(self, page: _ReferrersPage, digest: Digest) -> Iterator[Descriptor]:
        yield from page.listed.manifests
        for _ in range(REFERRER_PAGES - 1):
            url = page.next_url
            if not url:
                return
            following = self._session.repeat(partial(self._referrers_page, url, digest))
            if following is None:
                raise Unavailable(f"{CODE}.page_gone", "registry does not serve the rest of a list", path=url[:200])
            page = following
            yield from page.listed.manifests
        if page.next_url:
            raise too_many_referrers(digest)

    def _referrers_page(self, url: str, digest: Digest) -> _ReferrersPage | None:
        response = self._session.send("GET", url, {"Accept": OCI_INDEX}, accept=_REFERRERS_STATUSES)
        try:
            if response.status != 200 or _content_type(response) != OCI_INDEX:
                return None
            raw = read_bounded(response, MANIFEST_BYTES)
        finally:
            response.close()
        if raw is None:
            raise too_many_referrers(digest)
        return _ReferrersPage(parse_index(raw, media_type=OCI_INDEX), self._next_page(url, response))

    def _stream_from(self, descriptor: Descriptor, done: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={done}-"} if done else {}
        url = f"{self._base}/blobs/{descriptor.digest}"
        response = self._session.send("GET", url, headers, accept=(200, 206, 404, 416))
        try:
            if response.status == 404:
                raise ImageRefused(f"{CODE}.blob_missing", "registry does not have a blob", path=str(descriptor.digest))
            if response.status == 416:
                return  # nothing more: the check of the size says what that means
            if response.status == 206 and not response.header("Content-Range").startswith(f"bytes {done}-"):
                raise Unavailable(f"{CODE}.wrong_range", "registry answered another range", path=url)
            skip = 0 if response.status == 206 else done
            yield from _read_body(response, skip=skip, ceiling=descriptor.size - done + 1)
        finally:
            response.close()

    def _put_manifest(self, raw: bytes, media_type: str, tag: str) -> Response:
        digest = Digest.of(raw)

        def put() -> Response:
            url = f"{self._base}/manifests/{tag or digest}"
            response = self._session.send("PUT", url, {"Content-Type": media_type}, raw, accept=(201,))
            response.close()
            return response

        response = self._session.repeat(put)
        said = response.header("Docker-Content-Digest")
        if said and said != str(digest):
            raise ImageRefused(
                f"{CODE}.digest_mismatch", "registry stored other bytes", expected=str(digest), actual=said[:120]
            )
        return response

    def _tags_page(self, url: str) -> tuple[bytes | None, str]:
        """Return one answer, None when it is too long, and where the list goes on (empty: nowhere)."""
        response = self._session.send("GET", url, {}, accept=(200,))
        try:
            raw = read_bounded(response, MANIFEST_BYTES)
        finally:
            response.close()
        return raw, self._next_page(url, response)

    def _next_page(self, url: str, response: Response) -> str:
        link = re.search(_NEXT_LINK, response.header("Link"))
        return self._session.resolve(url, link.group(1)) if link else ""

    def _begin_upload(self) -> tuple[str, int]:
        """Return where to upload to, and how long a chunk has to be at least."""
        url = f"{self._base}/blobs/uploads/"
        response = self._session.send("POST", url, {}, accept=(202,))
        response.close()
        least = response.header("OCI-Chunk-Min-Length")
        return (
            self._session.resolve(url, response.header("Location")),
            int(least) if least.isdigit() and len(least) < 12 else 0,
        )


class _Upload:
    """One blob on its way into a registry."""

    def __init__(
        self, session: RegistrySession, url: str, least_chunk: int, is_stored: Callable[[Digest], bool]
    ) -> None:
        self._session = session
        self._url = url
        self._is_stored = is_stored
        self._chunk_bytes = min(max(_UPLOAD_BYTES, least_chunk), _LARGEST_CHUNK_BYTES)
        self._sent = 0

    def run(self, chunks: Iterable[bytes]) -> tuple[Digest, int]:
        """Send all chunks and have the registry store them."""
        hasher = hashlib.sha256()
        size = 0
        pending = bytearray()
        for chunk in chunks:
            hasher.update(chunk)
            size += len(chunk)
            pending += chunk
            while len(pending) > self._chunk_bytes:
                self._send_chunk(bytes(pending[: self._chunk_bytes]))
                del pending[: self._chunk_bytes]
        digest = Digest("sha256", hasher.hexdigest())
        if self._sent and pending:
            self._send_chunk(bytes(pending))
            pending.clear()
        self._finish(digest, bytes(pending))
        return digest, size

    def abandon(self) -> None:
        """Tell the registry to forget the upload; that it may not listen harms nobody."""
        try:
            self._session.send("DELETE", self._url, {}, accept=_ABANDONED).close()
        except Unavailable:
            return

    def _send_chunk(self, data: bytes) -> None:
        failures = 0
        while data:
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{self._sent}-{self._sent + len(data) - 1}",
            }
            try:
                response = self._session.send("PATCH", self._url, headers, data, accept=(202, 416))
                response.close()
                if response.status == 416:  # it has another part than we think: an answer was lost
                    raise Unavailable("oci.transport.interrupted", "registry is at another place of an upload")
            except Unavailable as err:
                failures += 1
                self._session.pause_or_raise(err, failures)
                data = data[self._advance_to_held(len(data)) :]
                continue
            self._url = self._session.resolve(self._url, response.header("Location"))
            self._sent += len(data)
            return

    def _advance_to_held(self, length: int) -> int:
        """Ask how much of the chunk the registry got before the connection broke, and count it as sent."""
        response = self._session.send("GET", self._url, {}, accept=(200, 202, 204))
        response.close()
        match = re.fullmatch(_HELD_RANGE, response.header("Range"))
        last = int(match.group(1)) if match else 0
        held = last + 1 if last else 0  # an empty upload answers "0-0" as well
        taken = held - self._sent
        if not 0 <= taken <= length:
            raise Unavailable(f"{CODE}.upload_lost", "registry lost part of an upload", path=self._url[:200])
        self._sent = held
        return taken

    def _finish(self, digest: Digest, body: bytes) -> None:
        """Close the upload; a small blob goes with the closing request, as its only one.

        Where the answer was lost the blob may be there all the same.
        """
        url = f"{self._url}{'&' if '?' in self._url else '?'}digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        failures = 0
        while True:
            try:
                self._session.send("PUT", url, headers, body, accept=(201, 204)).close()
            except Unavailable as err:
                failures += 1
                self._session.pause_or_raise(err, failures)
                if self._is_stored(digest):
                    return
            else:
                return


def _read_manifest(response: Response, selector: str) -> StoredManifest:
    raw = read_bounded(response, MANIFEST_BYTES)
    if raw is None:
        raise ImageRefused(
            f"{CODE}.manifest_too_long",
            "manifest is too long",
            path=selector,
            expected=f"at most {MANIFEST_BYTES} bytes",
        )
    return StoredManifest(raw, _content_type(response))


def _content_type(response: Response) -> str:
    return response.header("Content-Type").partition(";")[0].strip()


def _read_body(response: Response, *, skip: int, ceiling: int) -> Iterator[bytes]:
    """Yield a body behind its first `skip` bytes, at most `ceiling` of them.

    Raises:
        Unavailable: `oci.transport.interrupted` when it is shorter than its own header says.
    """
    declared = response.header("Content-Length")
    missing = int(declared) if declared.isdigit() and len(declared) < 19 else 0
    while skip:
        piece = response.read(min(skip, _READ_BYTES))
        if not piece:
            break
        skip -= len(piece)
        missing -= len(piece)
    while ceiling:
        piece = response.read(min(ceiling, _READ_BYTES))
        if not piece:
            break
        ceiling -= len(piece)
        missing -= len(piece)
        yield piece
    if ceiling and missing > 0:
        raise Unavailable("oci.transport.interrupted", "registry broke off its answer")
