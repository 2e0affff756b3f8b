"""Builders for tests of images: archives byte by byte (also ones no tool would write), layouts, and registries in
process."""

from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cloister.crypto.signer import ECDSAP256Signer
from cloister.host.registry.app import RegistryApp
from cloister.host.registry.store import RegistryStore
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.document import encode_document
from cloister.oci.encryption.annotations import parse_layer_encryption
from cloister.oci.encryption.authenticate import AuthenticatedLayer, SpooledBlob, authenticate_layer, spool_blob
from cloister.oci.encryption.packet import unwrap_private_options
from cloister.oci.encryption.wrapping import PacketWrapper
from cloister.oci.layer import DeviceNodes, UnpackOptions
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor, LayerType
from cloister.oci.reference import parse_reference
from cloister.oci.signing.simplesigning import read_candidates
from cloister.oci.signing.verify import ExactRepository, VerifiedImage, verify_manifest
from cloister.oci.store import ImageSource, read_blob, read_manifest
from cloister.oci.transport import Response

BLOCK = 512
END = bytes(2 * BLOCK)
KEK = bytes(range(32))
KEK_ID = "kbs:///default/image-kek/1"
RECIPIENTS = [PacketWrapper(KEK_ID, KEK)]
REFERENCE = parse_reference("images.test/team/app:v1")
OPTIONS = UnpackOptions(ownership=False, devices=DeviceNodes.REFUSE)


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_700_000_000,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    device: tuple[int, int] = (0, 0),
    fields: Mapping[tuple[int, int], bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """Return one 512-byte header; `fields` overwrites byte ranges before the checksum is made."""
    block = bytearray(
        name.ljust(100, b"\0")
        + b"%07o\0%07o\0%07o\0" % (mode, uid, gid)
        + b"%011o\0%011o\0" % (size, mtime)
        + b" " * 8
        + kind
        + link.ljust(100, b"\0")
        + magic
        + bytes(64)
        + b"%07o\0%07o\0" % device
        + prefix.ljust(155, b"\0")
        + bytes(12)
    )
    for (start, end), value in (fields or {}).items():
        block[start:end] = value
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    assert len(block) == BLOCK
    return bytes(block)


def padded(content: bytes) -> bytes:
    """Return content filled up to a whole block."""
    return content + bytes(-len(content) % BLOCK)


def file(name: bytes, content: bytes = b"", **details: Any) -> bytes:
    return header(name, size=len(content), **details) + padded(content)


def directory(name: bytes, mode: int = 0o755, **details: Any) -> bytes:
    return header(name, kind=b"5", mode=mode, **details)


def symlink(name: bytes, target: bytes, **details: Any) -> bytes:
    return header(name, kind=b"2", link=target, **details)


def hard_link(name: bytes, target: bytes, **details: Any) -> bytes:
    return header(name, kind=b"1", link=target, **details)


def pax(records: Iterable[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    """Return an extended header."""
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest)
        while len(b"%d" % length) + len(rest) != length:
            length = len(b"%d" % length) + len(rest)
        body += b"%d" % length + rest
    return header(b"pax", kind=kind, size=len(body)) + padded(body)


def gnu(kind: bytes, value: bytes) -> bytes:
    """Return a GNU long name (`L`) or long link (`K`) header."""
    return header(b"././@LongLink", kind=kind, size=len(value) + 1, magic=b"ustar  \0") + padded(value + b"\0")


def archive(*members: bytes) -> bytes:
    return b"".join(members) + END


class Built(NamedTuple):
    """An image in a layout."""

    layout: OCILayout
    digest: Digest
    layers: tuple[bytes, ...]
    path: Path


def build_layout(
    path: Path, *archives: bytes, compression: str = "gzip", tag: str = "v1", run: Mapping[str, Any] | None = None
) -> Built:
    """Write an unsealed image with these layer archives."""
    layout = OCILayout(path, create=True)
    blobs = [gzip.compress(content, mtime=0) if compression == "gzip" else content for content in archives]
    config = encode_document(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": dict(run or {"Cmd": ["/bin/sh"]}),
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(content)) for content in archives]},
        }
    )
    layout.write_blob([config])
    for blob in blobs:
        layout.write_blob([blob])
    media_type = LayerType(compression, encrypted=False).media_type
    manifest = encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
            "layers": [{"mediaType": media_type, "digest": str(Digest.of(b)), "size": len(b)} for b in blobs],
        }
    )
    return Built(layout, layout.write_manifest(manifest, OCI_MANIFEST, tag), tuple(blobs), path)


def seal_and_sign(built: Built, path: Path, signer: ECDSAP256Signer) -> tuple[OCILayout, Digest]:
    """Seal an image into another layout and sign it there."""
    sink = OCILayout(path, create=True)
    sealed = encrypt_image(built.layout, built.digest, sink, tag="v1", recipients=RECIPIENTS)
    sign_image(sink, sealed.digest, signer, repository=REFERENCE.name)
    return sink, sealed.digest


def verify(source: ImageSource, digest: Digest, signer: ECDSAP256Signer) -> VerifiedImage:
    """Do what the guest does before it fetches a layer."""
    verified = verify_manifest(
        read_manifest(source, digest).raw,
        expected=digest,
        candidates=read_candidates(source, digest),
        keys=[signer.public_key],
        repository=ExactRepository(REFERENCE.name),
    )
    return verified.bind_config(read_blob(source, verified.manifest.config, ceiling=1 << 20))


def spool(source: ImageSource, layer: Descriptor) -> SpooledBlob:
    """Fetch a layer into memory."""
    return spool_blob(source, layer, io.BytesIO())


def authenticate(source: ImageSource, image: VerifiedImage, index: int) -> AuthenticatedLayer:
    """Do what the guest does with one encrypted layer once it has the KEK."""
    layer = image.manifest.layers[index]
    private = unwrap_private_options(parse_layer_encryption(layer).packets()[0], KEK)
    return authenticate_layer(image, index, spool(source, layer), private)


class InProcessResponse:
    """What an ASGI application sent."""

    def __init__(self, messages: list[Mapping[str, Any]]) -> None:
        self.status: int = messages[0]["status"]
        self.headers = {key.decode(): value.decode() for key, value in messages[0]["headers"]}
        self._body = b"".join(message.get("body", b"") for message in messages[1:])

    def header(self, name: str) -> str:
        return self.headers.get(name.lower(), "")

    def read(self, count: int) -> bytes:
        piece, self._body = self._body[:count], self._body[count:]
        return piece

    def close(self) -> None:
        self._body = b""


class InProcessTransport:
    """Carries requests into an ASGI application, without a socket; `log` keeps method and path."""

    def __init__(self, app: RegistryApp) -> None:
        self._app = app
        self.log: list[str] = []

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        path, _, query = url.partition("://")[2].partition("/")[2].partition("?")
        self.log.append(f"{method} /{path}")
        scope = {
            "type": "http",
            "method": method,
            "path": f"/{path}",
            "query_string": query.encode(),
            "headers": [(key.lower().encode(), value.encode()) for key, value in headers.items()],
        }
        sent: list[Mapping[str, Any]] = []
        pieces = [(body or b"")[i : i + 65536] for i in range(0, len(body or b""), 65536)] or [b""]

        async def receive() -> Mapping[str, Any]:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        asyncio.run(self._app(scope, receive, send))  # type: ignore[arg-type]  # MutableMapping in name only
        return InProcessResponse(sent)


def registry_client(root: Path, name: str = "team/app") -> tuple[RegistryClient, InProcessTransport]:
    """Return a client of an embedded registry with its files in `root`."""
    transport = InProcessTransport(RegistryApp(RegistryStore(root)))
    return client_over(transport, name), transport


def client_over(transport: Any, name: str = "team/app", **options: Any) -> RegistryClient:
    """Return a client of `images.test` over some transport, that does not wait between repeats."""
    options = {"plain_http": True, "other_origins": False, "sleep": lambda _: None, **options}
    return RegistryClient(transport, parse_reference(f"images.test/{name}"), **options)
