"""Image manifests, indexes and configurations as typed values (OCI image specification 1.1; Docker schema 2 as
input).

The bytes are the truth: they are what has a digest and what is signed, so every value keeps them and nothing is
re-encoded. Members the specification does not define are ignored, as it asks (`considerations.md`, "Extensibility"),
and stay in the bytes. A document that claims to be a manifest and an index at once is refused (CVE-2021-41190).
Parsing says nothing about authenticity: `cloister.oci.signing` turns manifest bytes into verified ones. Trusts
nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.document import Members, parse_document
from cloister.wire.limits import (
    ANNOTATION_BYTES,
    ANNOTATIONS,
    IMAGE_CONFIG_BYTES,
    INDEX_ENTRIES,
    LAYER_BYTES,
    LAYERS,
    MANIFEST_BYTES,
    POLICY_LIST_ITEMS,
)

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES: Final = (OCI_INDEX, DOCKER_INDEX)
ENCRYPTED_SUFFIX: Final = "+encrypted"

_CODE: Final = "oci.manifest"
_OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_OCI_FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_DOCKER: Final = "application/vnd.docker."


class LayerType(msgspec.Struct, frozen=True):
    """What a layer's media type says: compression (``""``, ``gzip``, ``zstd``), whether it is encrypted, and whether it
    is foreign: fetched from elsewhere, not from the registry."""

    compression: str
    encrypted: bool
    foreign: bool = False

    @property
    def media_type(self) -> str:
        """The OCI name of this type; Docker's names are read, never written."""
        compressed = f"+{self.compression}" if self.compression else ""
        name = _OCI_FOREIGN if self.foreign else _OCI_LAYER
        return f"{name}{compressed}{ENCRYPTED_SUFFIX if self.encrypted else ''}"


_LAYER_TYPES: Final = {
    f"{name}{mark}{compression}": LayerType(compression, False, foreign)
    for name, separator, foreign in (
        (_OCI_LAYER, "+", False),
        (_OCI_FOREIGN, "+", True),
        (_DOCKER_LAYER, ".", False),
        (_DOCKER_FOREIGN, ".", True),
    )
    for mark, compression in (("", ""), (separator, "gzip"), (separator, "zstd"))
}


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A typed, sized, digested pointer to content (descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    platform: str = ""  # "os/architecture[/variant]", only in an index
    artifact_type: str = ""


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One image for one platform; `raw` are the bytes that `digest` names."""

    raw: bytes
    digest: Digest
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    subject: Descriptor | None = None
    artifact_type: str = ""


class ImageIndex(msgspec.Struct, frozen=True, kw_only=True):
    """A list of manifests, usually one per platform."""

    raw: bytes
    digest: Digest
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    subject: Descriptor | None = None
    artifact_type: str = ""


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says about how to run it (config.md); the guest takes argv, environment and user from here."""

    raw: bytes
    digest: Digest
    architecture: str
    os: str
    diff_ids: tuple[Digest, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = ""
    working_directory: str = ""
    stop_signal: str = ""


def parse_layer_type(media_type: str, *, path: str = "", foreign: bool = False) -> LayerType:
    """Return what `media_type` says about a layer.

    Args:
        media_type: of its descriptor.
        path: names the layer in errors.
        foreign: accept a foreign layer. Guests do not: it may not be distributed, and so cannot be protected.

    Raises:
        ImageRefused: `oci.manifest.foreign_layer`; `oci.manifest.unknown_layer_type` for everything not listed in
            layer.md.
    """
    plain = media_type.removesuffix(ENCRYPTED_SUFFIX)
    encrypted = plain != media_type
    found = _LAYER_TYPES.get(plain)
    if found is None or (encrypted and plain.startswith(_DOCKER)):
        raise ImageRefused(
            f"{_CODE}.unknown_layer_type", "layer media type is not known", path=path, actual=media_type[:120]
        )
    if found.foreign and not foreign:
        raise ImageRefused(
            f"{_CODE}.foreign_layer",
            "layer is fetched from elsewhere, not from the registry",
            path=path,
            actual=media_type,
        )
    return LayerType(found.compression, encrypted, found.foreign)


def parse_manifest(raw: bytes, *, media_type: str = "") -> ImageManifest:
    """Parse an image manifest.

    Args:
        raw: the bytes as stored or received.
        media_type: what the transport said they are, or empty; must then equal what they say themselves.

    Raises:
        ImageRefused: `oci.manifest.*`; `oci.manifest.is_index` where an index stands instead.
    """
    members, said = _settle_kind(raw, media_type)
    if said in INDEX_TYPES:
        raise ImageRefused(
            f"{_CODE}.is_index",
            "an index of several platforms stands where one image is needed",
            hint="name the image of one platform by its digest",
        )
    layers = members.array("layers", ceiling=LAYERS, required=True)
    return ImageManifest(
        raw=raw,
        digest=Digest.of(raw),
        media_type=said,
        config=_parse_descriptor(members.members("config"), ceiling=IMAGE_CONFIG_BYTES),
        layers=tuple(
            _parse_descriptor(Members(layer, path=f"layers[{number}]", code=_CODE), ceiling=LAYER_BYTES)
            for number, layer in enumerate(layers)
        ),
        annotations=_annotations(members),
        subject=_subject(members),
        artifact_type=members.text("artifactType", ""),
    )


def parse_index(raw: bytes, *, media_type: str = "") -> ImageIndex:
    """Parse an image index or Docker manifest list; arguments and errors as `parse_manifest`."""
    members, said = _settle_kind(raw, media_type)
    if said in MANIFEST_TYPES:
        raise ImageRefused(f"{_CODE}.is_manifest", "a single image stands where an index is needed")
    entries = members.array("manifests", ceiling=INDEX_ENTRIES, required=True)
    return ImageIndex(
        raw=raw,
        digest=Digest.of(raw),
        media_type=said,
        manifests=tuple(
            _parse_descriptor(Members(entry, path=f"manifests[{number}]", code=_CODE), ceiling=MANIFEST_BYTES)
            for number, entry in enumerate(entries)
        ),
        annotations=_annotations(members),
        subject=_subject(members),
        artifact_type=members.text("artifactType", ""),
    )


def is_index(raw: bytes, *, media_type: str = "") -> bool:
    """Whether the document is an index rather than a manifest; refuses one that is neither or both."""
    return _settle_kind(raw, media_type)[1] in INDEX_TYPES


def parse_either(raw: bytes, *, media_type: str = "") -> ImageManifest | ImageIndex:
    """Parse a manifest or index, whichever it is; arguments and errors as `parse_manifest`."""
    if is_index(raw, media_type=media_type):
        return parse_index(raw, media_type=media_type)
    return parse_manifest(raw, media_type=media_type)


def describe_referrer(document: ImageManifest | ImageIndex) -> dict[str, Any]:  # Any: JSON
    """Return the entry that lists `document` among the referrers of its subject (specification, same section)."""
    entry: dict[str, Any] = {  # Any: JSON
        "mediaType": document.media_type,
        "digest": str(document.digest),
        "size": len(document.raw),
    }
    if artifact_type_of(document):
        entry["artifactType"] = artifact_type_of(document)
    if document.annotations:
        entry["annotations"] = dict(document.annotations)
    return entry


def artifact_type_of(document: ImageManifest | ImageIndex) -> str:
    """Return what kind of artifact a manifest says it is, empty for an index that does not say."""
    return document.artifact_type or (document.config.media_type if isinstance(document, ImageManifest) else "")


def parse_config(raw: bytes) -> ImageConfig:
    """Parse an image configuration.

    Raises:
        ImageRefused: `oci.config.*`.
    """
    code = "oci.config"
    top = Members(parse_document(raw, ceiling=IMAGE_CONFIG_BYTES, code=code), path="", code=code)
    rootfs = top.members("rootfs")
    if rootfs.text("type") != "layers":
        raise ImageRefused(f"{code}.unknown_rootfs", "root filesystem is not made of layers", path="rootfs.type")
    run = top.members("config") if "config" in top else Members({}, path="config", code=code)
    working_directory = run.text("WorkingDir", "")
    if working_directory and not working_directory.startswith("/"):
        raise ImageRefused(f"{code}.working_directory", "working directory is not absolute", path="config.WorkingDir")
    config = ImageConfig(
        raw=raw,
        digest=Digest.of(raw),
        architecture=top.text("architecture"),
        os=top.text("os"),
        diff_ids=tuple(parse_digest(text) for text in rootfs.texts("diff_ids", ceiling=LAYERS)),
        entrypoint=run.texts("Entrypoint", ceiling=POLICY_LIST_ITEMS),
        command=run.texts("Cmd", ceiling=POLICY_LIST_ITEMS),
        environment=run.texts("Env", ceiling=POLICY_LIST_ITEMS),
        user=run.text("User", ""),
        working_directory=working_directory,
        stop_signal=run.text("StopSignal", ""),
    )
    _check_run_values(config, code)
    return config


def _check_run_values(config: ImageConfig, code: str) -> None:
    for number, entry in enumerate(config.environment):
        if entry.find("=") < 1:
            raise ImageRefused(
                f"{code}.environment", "environment entry is not NAME=VALUE", path=f"config.Env[{number}]"
            )
    values = (*config.environment, *config.entrypoint, *config.command, config.user, config.working_directory)
    if any("\0" in value for value in values):
        raise ImageRefused(f"{code}.nul_byte", "a value to run with holds a NUL byte", path="config")


def _settle_kind(raw: bytes, transport_type: str) -> tuple[Members, str]:
    """Parse a manifest or index and settle which of the two it is."""
    members = Members(parse_document(raw, ceiling=MANIFEST_BYTES, code=_CODE), path="", code=_CODE)
    version = members.unsigned("schemaVersion")
    if version != 2:
        raise ImageRefused(
            f"{_CODE}.schema_version",
            "manifest schema is not supported",
            path="schemaVersion",
            expected="2",
            actual=str(version),
            hint="push the image again with a current tool",
        )
    if "layers" in members and "manifests" in members:
        raise ImageRefused(f"{_CODE}.ambiguous", "document is a manifest and an index at once")
    said = members.text("mediaType", "") or transport_type or (OCI_INDEX if "manifests" in members else OCI_MANIFEST)
    if transport_type and said != transport_type:
        raise ImageRefused(
            f"{_CODE}.media_type_mismatch",
            "document says another media type than its transport",
            path="mediaType",
            expected=transport_type[:80],
            actual=said[:80],
        )
    if said not in (*MANIFEST_TYPES, *INDEX_TYPES):
        raise ImageRefused(
            f"{_CODE}.unknown_media_type", "not an image manifest or index", path="mediaType", actual=said[:80]
        )
    if ("manifests" in members) != (said in INDEX_TYPES):
        raise ImageRefused(f"{_CODE}.ambiguous", "media type and content of the document disagree", actual=said)
    return members, said


def _parse_descriptor(members: Members, *, ceiling: int) -> Descriptor:
    return Descriptor(
        media_type=members.text("mediaType"),
        digest=parse_digest(members.text("digest")),
        size=members.unsigned("size", ceiling=ceiling),
        annotations=_annotations(members),
        platform=_platform(members.members("platform")) if "platform" in members else "",
        artifact_type=members.text("artifactType", ""),
    )


def _subject(members: Members) -> Descriptor | None:
    return _parse_descriptor(members.members("subject"), ceiling=MANIFEST_BYTES) if "subject" in members else None


def _platform(members: Members) -> str:
    parts = [members.text("os"), members.text("architecture"), members.text("variant", "")]
    return "/".join(part for part in parts if part)


def _annotations(members: Members) -> dict[str, str]:
    return members.text_map("annotations", ceiling=ANNOTATIONS, value_ceiling=ANNOTATION_BYTES)
