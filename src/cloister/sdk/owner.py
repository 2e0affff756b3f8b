"""What an owner does on one machine: keep a signing key, seal images, approve pods, withdraw approval.

The owner's trust service is told three things about a pod before it starts, and nothing else lets a key out: which
platform roots to believe at which level, which measurements are reference values, and which init data (hence which
pod policy) may have which resource.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import Refused
from cloister.imagetool.encrypt import encrypt_image, is_sealed
from cloister.imagetool.layers import Progress
from cloister.imagetool.podvm import PodVMBundle, Shape
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.encryption.annotations import parse_layer_encryption
from cloister.oci.encryption.wrapping import PacketWrapper
from cloister.oci.location import ImageLocation, LocationKind, open_source, parse_location
from cloister.oci.manifest import ImageConfig, parse_config, parse_manifest
from cloister.oci.reference import OCIReference
from cloister.oci.store import ImageSource, read_blob, resolve_platform
from cloister.oci.transfer import copy_blobs
from cloister.oci.transport import HTTPTransport
from cloister.podpolicy.generate import pod_label
from cloister.podpolicy.model import ImageDefaults
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.reference import ReferenceEntry
from cloister.sdk.home import Home
from cloister.sdk.references import tpm_references
from cloister.sdk.registryaccess import open_transport as open_transport
from cloister.sdk.registryaccess import registry_access as registry_access
from cloister.wire.limits import IMAGE_CONFIG_BYTES

if TYPE_CHECKING:
    from cloister.trust.admin import TrustAdmin

IDENTITY_REGISTRY: Final = "cloister.local"  # names the repository in signatures; never connected to
APPRAISAL_POLICY: Final = "default"
PLATFORM: Final = "linux/amd64"
_REFERENCE_LIFETIME: Final = timedelta(days=90)
_KEY_BYTES: Final = 32
_TAG_CHARS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedReference:
    """A sealed and signed image in the owner's registry.

    Attributes:
        repository: name in the signature, `cloister.local/<name>`.
        digest: of the sealed manifest.
        source_digest: of the manifest it was made from.
        kek: where the key-encryption key is kept.
        config: the image config, which sealing leaves as it is.
        fresh: False when it was sealed by an earlier run.
        plain_bytes: size of the layers.
    """

    repository: str
    digest: Digest
    source_digest: Digest
    kek: tuple[ResourcePath, ...]
    config: ImageConfig
    fresh: bool
    plain_bytes: int

    @property
    def defaults(self) -> ImageDefaults:
        """The process defaults of the image."""
        return ImageDefaults(
            entrypoint=self.config.entrypoint,
            cmd=self.config.command,
            env=self.config.environment,
            cwd=self.config.working_directory,
            user=self.config.user,
        )


class Owner:
    """The owner's side of this machine.

    Args:
        home: where state is kept.
        state: state directory of the trust service; the one of `home` by default.
    """

    def __init__(self, home: Home, *, state: Path | None = None) -> None:
        self.home = home
        self.state = state or home.trust

    def admin(self) -> AbstractContextManager[TrustAdmin]:
        """Open the trust service's state."""
        from cloister.trust.admin import TrustAdmin  # brings the database library, while a pod may boot already

        return closing(TrustAdmin(self.state))

    def signer(self) -> ECDSAP256Signer:
        """Return the image signing key, made on first use."""
        path = self.home.signing_key
        if not path.exists():
            descriptor, draft = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(ECDSAP256Signer.generate().private_pem())
                with contextlib.suppress(FileExistsError):  # somebody was first: theirs is the key
                    os.link(draft, path)
            finally:
                Path(draft).unlink()
        return ECDSAP256Signer.from_pem(path.read_bytes())

    def seal(self, image: str, registry_port: int, *, progress: Progress | None = None) -> SealedReference:
        """Seal and sign `image` into the registry on this machine, unless that was done before.

        An image that is sealed already is copied and signed; its key must be in the owner's trust service.

        Args:
            image: `docker://REF`, `oci:PATH:TAG`, `oci-archive:`, `docker-archive:`, or a reference as `docker run`
            takes it.
            registry_port: of the embedded registry.
            progress: told about the work.

        Raises:
            ImageRefused, Unavailable: what source or format refuses.
        """
        location = parse_location(image)
        signer = self.signer()
        with open_transport() as transport, open_source(location, registry_access(location, transport)) as source:
            stored = resolve_platform(source, location.selector, PLATFORM)
            manifest = parse_manifest(stored.raw, media_type=stored.media_type)
            config = parse_config(read_blob(source, manifest.config, ceiling=IMAGE_CONFIG_BYTES))
            name = f"{IDENTITY_REGISTRY}/{image_name(location)}"
            store = _local_repository(name, registry_port, transport)
            tag = f"sealed-{manifest.digest.hex[:_TAG_CHARS]}"
            kek = ResourcePath(
                "default", "image-kek", f"{pod_label(image_name(location))}-{manifest.digest.hex[:_TAG_CHARS]}"
            )
            fresh = False
            if is_sealed(manifest):
                digest = _copy(source, store, manifest.raw, manifest.media_type, tag)
                keks = packet_keys(manifest.raw)
            else:
                digest, fresh = self._seal_fresh(source, manifest.digest, store, tag, kek, progress)
                keks = (kek,)
            sign_image(store, digest, signer, repository=name)
        return SealedReference(
            repository=name,
            digest=digest,
            source_digest=manifest.digest,
            kek=keks,
            config=config,
            fresh=fresh,
            plain_bytes=sum(layer.size for layer in manifest.layers),
        )

    def _seal_fresh(
        self,
        source: ImageSource,
        source_digest: Digest,
        store: RegistryClient,
        tag: str,
        kek: ResourcePath,
        progress: Progress | None,
    ) -> tuple[Digest, bool]:
        with self._sealing(kek), self.admin() as admin:
            known = any(entry.path == kek for entry in admin.list_resources())
            stored = store.get_manifest(tag)
            if known and stored is not None and _holds_layers(store, stored.raw):
                return Digest.of(stored.raw), False
            key = secrets.token_bytes(_KEY_BYTES)
            admin.put_resource(kek, key)
            sealed = encrypt_image(
                source,
                source_digest,
                store,
                tag=tag,
                recipients=[PacketWrapper(kek.uri, key)],
                progress=progress,
            )
        return sealed.digest, True

    @contextmanager
    def _sealing(self, kek: ResourcePath) -> Iterator[None]:
        """Let one process at a time seal an image: of two, each would replace the other's key or manifest."""
        descriptor = os.open(self.home.signing_key.with_name(f"{kek.tag}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def trust_platform(self, roots: Iterable[TrustedRoot], references: Sequence[ReferenceEntry]) -> None:
        """Believe these roots and reference values, at the levels below `hardware` that they bring."""
        roots = tuple(roots)
        levels = {root.level for root in roots} - {Level.HARDWARE}
        with self.admin() as admin:
            for root in roots:
                admin.add_root(root)
            if references:
                admin.add_reference_entries(references)
            admin.put_appraisal_policy(appraisal_policy({root.tee for root in roots}, levels))

    def new_stream_key(self, run_id: str) -> tuple[ResourcePath, bytes]:
        """Make the key that seals one pod's streams; only the pod and this owner will have it."""
        path = ResourcePath("default", "stream-key", run_id)
        key = secrets.token_bytes(_KEY_BYTES)
        with self.admin() as admin:
            admin.put_resource(path, key)
        return path, key

    def new_environment(self, run_id: str, env: Mapping[str, str]) -> ResourcePath | None:
        """Keep one pod's environment variables in the key broker; None when there are none."""
        if not env:
            return None
        path = ResourcePath("default", "env", run_id)
        with self.admin() as admin:
            admin.put_resource(path, msgspec.json.encode(dict(env)))
        return path

    def new_files(self, run_id: str, files: Mapping[str, bytes | str]) -> dict[str, ResourcePath]:
        """Keep the contents among one pod's secret files in the key broker; return where, by the file's path."""
        contents = [(place, source) for place, source in files.items() if isinstance(source, bytes)]
        kept = {place: ResourcePath("default", "file", f"{run_id}-{n}") for n, (place, _) in enumerate(contents)}
        if contents:
            with self.admin() as admin:
                for place, content in contents:
                    admin.put_resource(kept[place], content)
        return kept


def appraisal_policy(tees: Iterable[str], levels: Iterable[Level]) -> bytes:
    """Return an appraisal policy that accepts `tees`, and besides `hardware` the given levels, by name."""
    body = {
        "version": 1,
        "id": APPRAISAL_POLICY,
        "tees": sorted(tees),
        "insecure_accept_levels": sorted(level.value for level in levels),
    }
    return msgspec.json.encode(body)


def podvm_references(bundle: PodVMBundle, shape: Shape) -> tuple[ReferenceEntry, ...]:
    """Return the reference values of a pod-VM image at one shape, for both boot profiles, valid for 90 days."""
    return tpm_references(bundle, (shape,), not_after=datetime.now(UTC) + _REFERENCE_LIFETIME)


def image_name(location: ImageLocation) -> str:
    """Return the name an image goes by in the owner's registry: its repository, or the file's name."""
    if location.reference is not None:
        return location.reference.repository
    stem = Path(location.path).name.removesuffix(".tar")
    tag = location.selector.rpartition("/")[2].partition(":")[0] if location.kind is LocationKind.DOCKER_ARCHIVE else ""
    return pod_label(tag or stem)


def packet_keys(manifest: bytes) -> tuple[ResourcePath, ...]:
    """Return where the key-encryption keys of a sealed manifest are kept, each once.

    Raises:
        ImageRefused: a layer carries no packet for a key broker.
    """
    layers = parse_manifest(manifest).layers
    paths = {
        packet.kek_path
        for number, layer in enumerate(layers)
        for packet in parse_layer_encryption(layer, path=f"layers[{number}]").packets()
    }
    return tuple(sorted(paths))


def require_private(path: Path) -> None:
    """Refuse a directory that others can read.

    Raises:
        Refused: `sdk.home.not_private`.
    """
    if path.stat().st_mode & 0o077:
        raise Refused(
            "sdk.home.not_private", "directory is readable by others", path=str(path), hint=f"chmod 700 {path}"
        )


def _copy(source: ImageSource, store: RegistryClient, raw: bytes, media_type: str, tag: str) -> Digest:
    manifest = parse_manifest(raw, media_type=media_type)
    copy_blobs(source, store, (manifest.config, *manifest.layers))
    return store.write_manifest(raw, media_type, tag)


def _holds_layers(store: RegistryClient, manifest: bytes) -> bool:
    """Whether the layers are still there; whether they are unharmed is for the guest to find out."""
    return all(store.has_blob(layer.digest) for layer in parse_manifest(manifest).layers)


def _local_repository(name: str, port: int, transport: HTTPTransport) -> RegistryClient:
    repository = name.removeprefix(f"{IDENTITY_REGISTRY}/")
    reference = OCIReference(registry=f"127.0.0.1:{port}", repository=repository)
    return RegistryClient(transport, reference, plain_http=True, other_origins=False)
