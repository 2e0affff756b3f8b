"""The files of the embedded registry: blobs by digest, and per repository its manifests, tags and referrers.

    blobs/<algorithm>/<hex>
    repositories/<name>/_manifests/<algorithm>/<hex>       holds the media type; the bytes are a blob
    repositories/<name>/_tags/<tag>                        holds the digest
    repositories/<name>/_referrers/<algorithm>-<hex>/<algorithm>-<hex>     empty: subject / referrer
    uploads/<id>

A repository's name cannot hold a part that starts with `_`, so names and these directories do not collide. Every
name from outside is checked by `cloister.oci` before it becomes a path. Files appear by renaming. Blobs are not
owned by a repository: whoever knows a digest may read it, which is enough for a registry that serves one machine's
ciphertext.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from pathlib import Path
from typing import Final

from cloister.errors import RequestRefused, Unavailable
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.manifest import ImageIndex, ImageManifest, parse_either
from cloister.oci.reference import require_repository, require_tag
from cloister.wire.limits import LAYER_BYTES, MIB

_CODE: Final = "host.registry"
_UPLOADS: Final = 64
_UPLOAD_SECONDS: Final = 3600.0
_ID_CHARS: Final = 32


class Upload:
    """A blob that is being received; no file stays open between two pieces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        path.touch(exist_ok=False)

    def append(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            RequestRefused: `host.registry.too_long`.
        """
        self.size += len(data)
        if self.size > LAYER_BYTES:
            raise RequestRefused(f"{_CODE}.too_long", "blob is too long", expected=f"at most {LAYER_BYTES} bytes")
        with self.path.open("ab") as file:
            file.write(data)
        self._hash.update(data)

    def digest(self, algorithm: str) -> Digest:
        """Return the digest of what was received."""
        if algorithm == "sha256":
            return Digest(algorithm, self._hash.hexdigest())
        hasher = hashlib.new(algorithm)
        with self.path.open("rb") as file:
            while chunk := file.read(MIB):
                hasher.update(chunk)
        return Digest(algorithm, hasher.hexdigest())

    def discard(self) -> None:
        """Forget what was received."""
        self.path.unlink(missing_ok=True)


class RegistryStore:
    """The registry's files under `root`, which is made if it is not there. Uploads that rested for an hour go;
    younger ones may be another registry's on the same files.

    Methods raise `RequestRefused` for what cannot be taken, and `ImageRefused` for names and manifests that are none.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uploads: dict[str, Upload] = {}
        (root / "uploads").mkdir(parents=True, exist_ok=True)
        for leftover in (root / "uploads").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the other registry may be done with it meanwhile
                if time.time() - leftover.stat().st_mtime > _UPLOAD_SECONDS:
                    leftover.unlink()

    # -- blobs -----------------------------------------------------------------------------------------------

    def blob(self, digest: Digest) -> Path | None:
        """Return the file of a blob, or None."""
        path = self._blob_path(digest)
        return path if path.is_file() else None

    def delete_blob(self, digest: Digest) -> bool:
        """Remove a blob; false when it was not there."""
        path = self.blob(digest)
        if path is not None:
            path.unlink()
        return path is not None

    def begin_upload(self) -> str:
        """Return the id of a new upload.

        Raises:
            Unavailable: `host.registry.too_many_uploads`.
        """
        if len(self._uploads) >= _UPLOADS:
            raise Unavailable(f"{_CODE}.too_many_uploads", "too many uploads at once", expected=str(_UPLOADS))
        upload_id = secrets.token_hex(_ID_CHARS // 2)
        self._uploads[upload_id] = Upload(self._root / "uploads" / upload_id)
        return upload_id

    def upload(self, upload_id: str) -> Upload | None:
        """Return an upload in progress."""
        return self._uploads.get(upload_id)

    def drop_upload(self, upload_id: str) -> bool:
        """Forget an upload; false when there was none."""
        upload = self._uploads.pop(upload_id, None)
        if upload is not None:
            upload.discard()
        return upload is not None

    def finish_upload(self, upload_id: str, digest: Digest) -> None:
        """Make an upload the blob `digest`.

        Raises:
            RequestRefused: `host.registry.digest_mismatch`; the upload is gone.
        """
        upload = self._uploads.pop(upload_id)
        try:
            actual = upload.digest(digest.algorithm)
            if actual != digest:
                raise RequestRefused(
                    f"{_CODE}.digest_mismatch", "upload has another digest", expected=str(digest), actual=str(actual)
                )
            target = self._blob_path(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            upload.path.rename(target)
        finally:
            upload.discard()

    # -- manifests -------------------------------------------------------------------------------------------

    def resolve(self, name: str, selector: str) -> Digest | None:
        """Return the digest of a manifest of repository `name` by tag or digest, or None."""
        if ":" in selector:
            digest = parse_digest(selector)
        else:
            text = _read_text(self._repository(name) / "_tags" / require_tag(selector))
            if text is None:
                return None
            digest = parse_digest(text)
        return digest if self._manifest_path(name, digest).is_file() else None

    def manifest(self, name: str, digest: Digest) -> tuple[bytes, str]:
        """Return bytes and media type of a manifest that `resolve` found."""
        return self._blob_path(digest).read_bytes(), self._manifest_path(name, digest).read_text(encoding="ascii")

    def put_manifest(self, name: str, selector: str, raw: bytes, media_type: str) -> tuple[Digest, Digest | None]:
        """Store a manifest under a tag or its digest and return its digest and subject.

        Raises:
            ImageRefused: not a manifest or index.
            RequestRefused: `host.registry.digest_mismatch`.
        """
        by_digest = parse_digest(selector) if ":" in selector else None
        digest = Digest.of(raw, by_digest.algorithm if by_digest else "sha256")
        if by_digest not in (None, digest):
            raise RequestRefused(f"{_CODE}.digest_mismatch", "manifest has another digest", actual=str(digest))
        tag = "" if by_digest else require_tag(selector)
        document = parse_either(raw, media_type=media_type)
        subject = document.subject.digest if document.subject else None
        _write(self._blob_path(digest), raw)
        _write(self._manifest_path(name, digest), document.media_type.encode("ascii"))
        if tag:
            _write(self._repository(name) / "_tags" / tag, str(digest).encode("ascii"))
        if subject is not None:
            _write(self._referrers(name, subject) / f"{digest.algorithm}-{digest.hex}", b"")
        return digest, subject

    def delete_manifest(self, name: str, selector: str) -> bool:
        """Remove a tag, or a manifest by digest with the tags that name it; false when there is none."""
        digest = self.resolve(name, selector)
        if digest is None:
            return False
        tags = self._repository(name) / "_tags"
        if ":" not in selector:
            (tags / selector).unlink()
            return True
        self._manifest_path(name, digest).unlink()
        for tag in tags.glob("*"):
            if _read_text(tag) == str(digest):
                tag.unlink()
        return True

    def tags(self, name: str) -> list[str] | None:
        """Return the tags of a repository in order, or None when there is no such repository."""
        if not (self._repository(name) / "_manifests").is_dir():
            return None
        return sorted(path.name for path in (self._repository(name) / "_tags").glob("*"))

    def referrers(self, name: str, subject: Digest) -> list[ImageManifest | ImageIndex]:
        """Return the manifests whose subject is `subject`, in the order of their digests."""
        found = []
        for path in sorted(self._referrers(name, subject).glob("*")):
            algorithm, _, value = path.name.partition("-")
            digest = Digest(algorithm, value)
            if self._manifest_path(name, digest).is_file():
                raw, media_type = self.manifest(name, digest)
                found.append(parse_either(raw, media_type=media_type))
        return found

    def _blob_path(self, digest: Digest) -> Path:
        return self._root / "blobs" / digest.algorithm / digest.hex

    def _repository(self, name: str) -> Path:
        return self._root / "repositories" / require_repository(name)

    def _manifest_path(self, name: str, digest: Digest) -> Path:
        return self._repository(name) / "_manifests" / digest.algorithm / digest.hex

    def _referrers(self, name: str, subject: Digest) -> Path:
        return self._repository(name) / "_referrers" / f"{subject.algorithm}-{subject.hex}"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    incomplete = path.with_name(f".incomplete-{secrets.token_hex(8)}")
    incomplete.write_bytes(content)
    incomplete.rename(path)


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="ascii") if path.is_file() else None
