"""The embedded registry's HTTP interface as an ASGI application (OCI distribution specification 1.1, section
"Endpoints").

Ping, blobs (HEAD, GET with one range, DELETE), uploads (POST, monolithic and chunked PATCH, PUT, GET, DELETE,
mount), manifests (HEAD, GET, PUT, DELETE by tag and digest), tag list, referrers; the last two in pages. Without
accounts everybody may do everything: it listens on the loopback address and holds ciphertext. Bodies are bounded,
streamed and never held whole, but for manifests.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlencode

from cloister.errors import CloisterError, ImageRefused, RequestRefused, Unavailable
from cloister.host.registry.auth import AccessControl, action_of
from cloister.host.registry.store import RegistryStore, Upload
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.document import encode_document
from cloister.oci.manifest import OCI_INDEX, artifact_type_of, describe_referrer
from cloister.oci.reference import require_repository
from cloister.wire.limits import KIB, MANIFEST_BYTES

Message = MutableMapping[str, Any]  # Any: ASGI messages
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_PIECE_BYTES: Final = 256 * KIB
_ROUTE: Final = re.compile(r"/v2/(?P<name>.+)/(?P<kind>blobs/uploads|blobs|manifests|tags|referrers)/(?P<rest>[^/]*)")
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_CONTENT_RANGE: Final = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/.*)?")
_TAGS_PER_PAGE: Final = 1000
_REFERRERS_PER_PAGE: Final = 500
_FORM_BYTES: Final = 16 * KIB
# Codes of the specification, section "Error Codes".
_ERROR_CODES: Final = {
    "host.registry.digest_mismatch": "DIGEST_INVALID",
    "host.registry.too_long": "SIZE_INVALID",
    "host.registry.wrong_length": "SIZE_INVALID",
    "host.registry.out_of_order": "BLOB_UPLOAD_INVALID",
}


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


class _Request:
    """One request's line, headers and body."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive) -> None:  # Any: ASGI scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.queries: dict[str, list[str]] = parse_qs(
            scope.get("query_string", b"").decode("ascii", "replace"), max_num_fields=16
        )
        self._headers: dict[str, str] = {
            key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]
        }
        self.origin = f"{scope.get('scheme', 'http')}://{self.header('host')}"
        self._receive = receive

    def query(self, name: str) -> str:
        return self.queries.get(name, [""])[0]

    def header(self, name: str) -> str:
        return self._headers.get(name, "")

    async def body_into(self, upload: Upload) -> None:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Unavailable("host.registry.disconnected", "client went away")
            upload.append(message.get("body", b""))
            more = message.get("more_body", False)

    async def body(self, ceiling: int) -> bytes:
        pieces: list[bytes] = []
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Unavailable("host.registry.disconnected", "client went away")
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
            if sum(map(len, pieces)) > ceiling:
                raise RequestRefused("host.registry.too_long", "body is too long", expected=f"at most {ceiling} bytes")
        return b"".join(pieces)


class RegistryApp:
    """The ASGI application over a store; with `access` not everybody may do everything."""

    def __init__(self, store: RegistryStore, access: AccessControl | None = None) -> None:
        self._store = store
        self._access = access

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:  # Any: ASGI scope
        if scope["type"] != "http":
            raise RuntimeError("the registry speaks HTTP only")
        request = _Request(scope, receive)
        try:
            answer = await self._route(request, send)
        except (RequestRefused, ImageRefused) as err:
            status = 413 if err.code == "host.registry.too_long" else 400
            answer = _error(status, _ERROR_CODES.get(err.code, "MANIFEST_INVALID"), err)
        except Unavailable as err:
            answer = _error(503, "TOOMANYREQUESTS", err)
        if answer is not None:
            await _send_answer(send, answer, head=request.method == "HEAD")

    async def _route(self, request: _Request, send: Send) -> _Answer | None:
        if request.path == "/token" and self._access is not None:
            return await self._token(request, self._access)
        if request.path in ("/v2", "/v2/"):
            return self._denial(request, "") or _Answer(200, {"Content-Type": "application/json"}, b"{}")
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            return _Answer(404)
        name, kind, rest = require_repository(match["name"]), match["kind"], match["rest"]
        denial = self._denial(request, name)
        if denial is not None:
            return denial
        if kind == "blobs":
            return await self._blob(request, send, parse_digest(rest))
        if kind == "blobs/uploads":
            return await self._upload(request, name, rest)
        if kind == "manifests":
            return await self._manifest(request, name, rest)
        if request.method != "GET":
            return _Answer(405)
        if kind == "tags":
            return self._tags(request, name) if rest == "list" else _Answer(404)
        return self._list_referrers(request, name, parse_digest(rest))

    # -- access ----------------------------------------------------------------------------------------------

    def _denial(self, request: _Request, name: str) -> _Answer | None:
        """Return the answer to who may not do this, if so."""
        action = action_of(request.method)
        if self._access is None or self._access.may(request.header("authorization"), name, action):
            return None
        challenge = self._access.challenge(request.origin, name, action)
        headers = {"Content-Type": "application/json", "WWW-Authenticate": challenge}
        return _Answer(401, headers, encode_document({"errors": [{"code": "UNAUTHORIZED"}]}))

    async def _token(self, request: _Request, access: AccessControl) -> _Answer:
        if request.method not in ("GET", "POST"):
            return _Answer(405)
        form = request.queries
        if request.method == "POST":
            text = (await request.body(_FORM_BYTES)).decode("utf-8", "replace")
            form = parse_qs(text, max_num_fields=16)
        issued = access.issue(request.header("authorization"), form, oauth=request.method == "POST")
        if issued is None:
            return _Answer(401, {"Content-Type": "application/json"}, b'{"errors":[{"code":"UNAUTHORIZED"}]}')
        return _Answer(200, {"Content-Type": "application/json"}, encode_document(issued))

    # -- blobs -----------------------------------------------------------------------------------------------

    async def _blob(self, request: _Request, send: Send, digest: Digest) -> _Answer | None:
        if request.method == "DELETE":
            return _Answer(202) if self._store.delete_blob(digest) else _unknown("BLOB_UNKNOWN")
        if request.method not in ("GET", "HEAD"):
            return _Answer(405)
        path = self._store.blob(digest)
        if path is None:
            return _unknown("BLOB_UNKNOWN")
        with path.open("rb") as file:
            size = path.stat().st_size
            wanted = _parse_range(request.header("range"), size)
            if wanted is None:
                return _Answer(416, {"Content-Range": f"bytes */{size}"})
            start, end = wanted
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(end - start),
                "Docker-Content-Digest": str(digest),
                "Accept-Ranges": "bytes",
            }
            partial = end - start != size
            if partial:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            if request.method == "HEAD":
                return _Answer(200, headers)
            await _start(send, 206 if partial else 200, headers)
            file.seek(start)
            left = end - start
            while left:
                piece = file.read(min(left, _PIECE_BYTES))
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": bool(left)})
            if end == start:
                await send({"type": "http.response.body", "body": b""})
        return None

    async def _upload(self, request: _Request, name: str, upload_id: str) -> _Answer:
        if not upload_id:
            return await self._begin_upload(request, name) if request.method == "POST" else _Answer(405)
        upload = self._store.upload(upload_id)
        if upload is None:
            return _unknown("BLOB_UPLOAD_UNKNOWN")
        if request.method == "GET":
            return _upload_state(204, name, upload_id, upload)
        if request.method == "DELETE":
            self._store.drop_upload(upload_id)
            return _Answer(204)
        if request.method not in ("PATCH", "PUT"):
            return _Answer(405)
        claimed = request.header("content-range")
        if claimed:
            match = _CONTENT_RANGE.fullmatch(claimed)
            if match is None or int(match[1]) != upload.size:
                return _upload_state(416, name, upload_id, upload)
            _require_length(request.header("content-length"), int(match[2]) + 1 - int(match[1]))
        digest = parse_digest(request.query("digest")) if request.method == "PUT" else None
        await request.body_into(upload)
        if digest is None:
            return _upload_state(202, name, upload_id, upload)
        return self._finish_upload(name, upload_id, digest)

    async def _begin_upload(self, request: _Request, name: str) -> _Answer:
        mounted = request.query("mount")
        if mounted and self._may_mount(request) and self._store.blob(parse_digest(mounted)) is not None:
            return _created(f"/v2/{name}/blobs/{mounted}", parse_digest(mounted))
        at_once = parse_digest(request.query("digest")) if request.query("digest") else None
        upload_id = self._store.begin_upload()
        upload = self._store.upload(upload_id)
        if upload is None:
            raise RuntimeError("an upload just begun is gone")
        if at_once is not None:
            await request.body_into(upload)
            return self._finish_upload(name, upload_id, at_once)
        return _upload_state(202, name, upload_id, upload)

    def _may_mount(self, request: _Request) -> bool:
        """Whether the blob may be read where it comes from; if not, it is uploaded like any other."""
        origin = request.query("from")
        if self._access is None:
            return True
        return bool(origin) and self._access.may(request.header("authorization"), origin, "pull")

    def _finish_upload(self, name: str, upload_id: str, digest: Digest) -> _Answer:
        self._store.finish_upload(upload_id, digest)
        return _created(f"/v2/{name}/blobs/{digest}", digest)

    # -- manifests -------------------------------------------------------------------------------------------

    async def _manifest(self, request: _Request, name: str, selector: str) -> _Answer:
        if request.method == "PUT":
            raw = await request.body(MANIFEST_BYTES)
            media_type = request.header("content-type").partition(";")[0].strip()
            digest, subject = self._store.put_manifest(name, selector, raw, media_type)
            answer = _created(f"/v2/{name}/manifests/{digest}", digest)
            return answer._replace(headers={**answer.headers, "OCI-Subject": str(subject)}) if subject else answer
        if request.method == "DELETE":
            deleted = self._store.delete_manifest(name, selector)
            return _Answer(202) if deleted else _unknown("MANIFEST_UNKNOWN")
        if request.method not in ("GET", "HEAD"):
            return _Answer(405)
        found = self._store.resolve(name, selector)
        if found is None:
            return _unknown("MANIFEST_UNKNOWN")
        raw, media_type = self._store.manifest(name, found)
        return _Answer(200, {"Content-Type": media_type, "Docker-Content-Digest": str(found)}, raw)

    def _tags(self, request: _Request, name: str) -> _Answer:
        tags = self._store.tags(name)
        if tags is None:
            return _unknown("NAME_UNKNOWN")
        after, wanted = request.query("last"), request.query("n")
        rest = [tag for tag in tags if tag > after]
        count = min(int(wanted), _TAGS_PER_PAGE) if wanted.isdigit() and len(wanted) < 6 else _TAGS_PER_PAGE
        page = rest[:count]
        headers = {"Content-Type": "application/json"}
        if page and len(rest) > count:
            headers["Link"] = f'</v2/{name}/tags/list?n={count}&last={page[-1]}>; rel="next"'
        return _Answer(200, headers, encode_document({"name": name, "tags": page}))

    def _list_referrers(self, request: _Request, name: str, subject: Digest) -> _Answer:
        wanted, after = request.query("artifactType"), request.query("last")
        found = [item for item in self._store.referrers(name, subject) if wanted in ("", artifact_type_of(item))]
        rest = [item for item in found if str(item.digest) > after]
        page = rest[:_REFERRERS_PER_PAGE]
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [describe_referrer(item) for item in page]}
        headers = {"Content-Type": OCI_INDEX} | ({"OCI-Filters-Applied": "artifactType"} if wanted else {})
        if len(rest) > len(page):
            query = urlencode({"last": str(page[-1].digest)} | ({"artifactType": wanted} if wanted else {}))
            headers["Link"] = f'</v2/{name}/referrers/{subject}?{query}>; rel="next"'
        return _Answer(200, headers, encode_document(body))


def _require_length(header: str, length: int) -> None:
    if header and header != str(length):
        raise RequestRefused(
            "host.registry.wrong_length", "body has not the length its range says", expected=str(length), actual=header
        )


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and end of the bytes wanted (RFC 9110 section 14.2), or None for a range that is not there."""
    match = _RANGE.fullmatch(header)
    if match is None or match[0] == "bytes=-":
        return 0, size
    if not match[1]:
        return (max(0, size - int(match[2])), size) if int(match[2]) else None
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    return (start, end) if start < size and start < end else None


def _upload_state(status: int, name: str, upload_id: str, upload: Upload) -> _Answer:
    return _Answer(
        status,
        {
            "Location": f"/v2/{name}/blobs/uploads/{upload_id}",
            "Range": f"0-{max(0, upload.size - 1)}",
            "Docker-Upload-UUID": upload_id,
        },
    )


def _created(location: str, digest: Digest) -> _Answer:
    return _Answer(201, {"Location": location, "Docker-Content-Digest": str(digest)})


def _unknown(code: str) -> _Answer:
    return _Answer(404, {"Content-Type": "application/json"}, encode_document({"errors": [{"code": code}]}))


def _error(status: int, code: str, err: CloisterError) -> _Answer:
    body = {"errors": [{"code": code, "message": str(err)}]}
    return _Answer(status, {"Content-Type": "application/json"}, encode_document(body))


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    pairs = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    pairs.append((b"docker-distribution-api-version", b"registry/2.0"))
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _send_answer(send: Send, answer: _Answer, *, head: bool) -> None:
    headers = dict(answer.headers)
    headers.setdefault("Content-Length", str(len(answer.body)))
    await _start(send, answer.status, headers)
    await send({"type": "http.response.body", "body": b"" if head else answer.body})
