"""Changes for whom an encrypted image is encrypted, without touching its blobs (ocicrypt, encryption.go).

A layer's private options are unwrapped with a key that is held and wrapped again for others; ciphertext, MAC and layer
key stay. So this takes nothing from whoever could open the image before and kept a copy of its manifest: to lock
somebody out, encrypt the original again. The new manifest has another digest and has to be signed again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import msgspec

from cloister.errors import ImageRefused
from cloister.imagetool.layers import Progress, Work, finish_manifest, layer_bytes, layer_types
from cloister.imagetool.platforms import RewrittenImage, read_image, write_image
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.annotations import (
    LayerEncryption,
    encryption_annotations,
    parse_layer_encryption,
    without_encryption,
)
from cloister.oci.encryption.options import PrivateOptions, encode_private_options
from cloister.oci.encryption.wrapping import KeyUnwrapper, KeyWrapper, unwrap_layer_key, wrap_layer_key
from cloister.oci.manifest import ImageManifest
from cloister.oci.store import ImageSink, ImageSource, copy_blob
from cloister.wire.limits import MANIFEST_BYTES


class RewrappedImage(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and how many layers got other recipients."""

    image: RewrittenImage
    layers: int

    @property
    def digest(self) -> Digest:
        """Of the manifest or index that was written."""
        return self.image.digest


class NewRecipients(msgspec.Struct, frozen=True, kw_only=True):
    """What is to change.

    Attributes:
        add: for whom layer keys are wrapped besides; needs a key that opens them.
        remove: schemes whose elements are left out (`jwe`, `provider.attestation-agent`).
        only_added: leave out all elements there are.
    """

    add: Sequence[KeyWrapper] = ()
    remove: Collection[str] = ()
    only_added: bool = False


def rewrap_image(
    source: ImageSource,
    selector: str | Digest,
    sink: ImageSink,
    *,
    tag: str,
    change: NewRecipients,
    keys: Sequence[KeyUnwrapper] = (),
    platform: str = "",
    progress: Progress | None = None,
) -> RewrappedImage:
    """Write an encrypted image with other recipients into `sink`, which may be where it comes from.

    Args:
        source: where the image is.
        selector: which one, by tag or digest.
        sink: where it goes; blobs it has are not copied.
        tag: its name there.
        change: what is to change.
        keys: one of them has to open each layer, where somebody is added.
        platform: `os/architecture`, to take one image out of an index; empty for all of them and a new index.
        progress: told about the work.

    Raises:
        ImageRefused: `oci.encryption.not_encrypted`, `oci.encryption.no_key`, `imagetool.rewrap.nothing`,
            `imagetool.rewrap.no_such_scheme`, `imagetool.rewrap.nobody_left`.
        Unavailable: source, sink, a recipient's or a key's provider cannot be used now.
    """
    if not change.add and not change.remove:
        raise ImageRefused(
            "imagetool.rewrap.nothing", "nobody to add and nothing to remove", hint="name --add or --remove"
        )
    image = read_image(source, selector, platform)
    work = Work(progress)
    changed = {manifest.digest: _rewrapped(manifest, change, keys) for manifest in image.manifests}
    count = sum(number for _, number in changed.values())
    if not count:
        raise ImageRefused(
            "oci.encryption.not_encrypted", "image is not encrypted", hint="use `cloister image encrypt`"
        )

    def store(manifest: ImageManifest) -> bytes:
        blobs = [manifest.config, *manifest.layers]
        foreign = [
            layer_type.foreign and not layer_type.encrypted for layer_type in layer_types(manifest, foreign=True)
        ]
        work.expect(layer_bytes(blobs))
        work.run(
            [
                partial(copy_blob, source, sink, blob, advance=work.advance)
                for blob, elsewhere in zip(blobs, [False, *foreign], strict=True)
                if not elsewhere
            ]
        )
        return changed[manifest.digest][0]

    return RewrappedImage(image=write_image(image, sink, tag, store), layers=count)


def _rewrapped(manifest: ImageManifest, change: NewRecipients, keys: Sequence[KeyUnwrapper]) -> tuple[bytes, int]:
    """Return the new manifest, and how many of its layers changed."""
    document = parse_document(manifest.raw, ceiling=MANIFEST_BYTES, code="oci.manifest")
    count = 0
    types = layer_types(manifest, foreign=True)
    for number, (layer, layer_type) in enumerate(zip(manifest.layers, types, strict=True)):
        if layer_type.encrypted:
            path = f"layers[{number}]"
            encryption = parse_layer_encryption(layer, path=path)
            annotations = encryption_annotations(encryption.public, _elements(encryption, change, keys, path))
            document["layers"][number]["annotations"] = without_encryption(layer.annotations) | annotations
            count += 1
    finish_manifest(document)
    return encode_document(document), count


def _elements(
    encryption: LayerEncryption, change: NewRecipients, keys: Sequence[KeyUnwrapper], path: str
) -> dict[str, tuple[bytes, ...]]:
    missing = set(change.remove) - set(encryption.wrapped)
    if missing:
        raise ImageRefused(
            "imagetool.rewrap.no_such_scheme",
            "image has no recipient of a scheme that is to be removed",
            path=path,
            expected=", ".join(sorted(encryption.wrapped))[:200],
            actual=", ".join(sorted(missing))[:200],
        )
    kept = {
        scheme: elements
        for scheme, elements in encryption.wrapped.items()
        if scheme not in change.remove and not change.only_added
    }
    if change.add:
        private = unwrap_layer_key(encryption, keys, path=path)
        try:
            added = wrap_layer_key(_encoded(private, encryption), change.add)
        finally:
            private.wipe()
        for scheme, elements in added.items():
            kept[scheme] = (*kept.get(scheme, ()), *elements)
    if not kept:
        raise ImageRefused(
            "imagetool.rewrap.nobody_left",
            "nobody could open the image any more",
            path=path,
            hint="add somebody with --add, or keep one of its recipients",
        )
    return kept


def _encoded(private: PrivateOptions, encryption: LayerEncryption) -> bytes:
    """Return the private options as they are wrapped; the public nonce counts, if there is one, and stays there."""
    nonce = encryption.public.nonce or private.nonce
    if nonce is None:
        raise ImageRefused("oci.encryption.missing_nonce", "encrypted layer has no nonce", path=encryption.path)
    return encode_private_options(PrivateOptions(key=private.key, digest=private.digest, nonce=nonce))
