"""The annotations by which a layer descriptor says that, how and for whom it is encrypted (ocicrypt, encryption.go).

`..enc.pubopts` holds base64 of the public options; `..enc.keys.<scheme>` a comma-separated list of base64 wrappings
of the same private options, each an element for one or more recipients. Readers skip schemes for which they hold no
key, as the format asks, so an element is parsed by its scheme alone (`cloister.oci.encryption.wrapping`); here number
and size of elements are bounded. The guest knows one scheme, the packets of the `attestation-agent` provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.encryption.options import PublicOptions, encode_public_options, parse_public_options
from cloister.oci.encryption.packet import AnnotationPacket, parse_packet
from cloister.oci.manifest import Descriptor
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import ANNOTATION_BYTES, WRAPPED_KEY_BYTES, WRAPPED_KEY_ELEMENTS, WRAPPED_KEY_SCHEMES

PREFIX: Final = "org.opencontainers.image.enc."
PUBLIC_OPTIONS: Final = f"{PREFIX}pubopts"
KEYS_PREFIX: Final = f"{PREFIX}keys."
PACKET_SCHEME: Final = "provider.attestation-agent"
PROVIDER_KEYS: Final = f"{KEYS_PREFIX}{PACKET_SCHEME}"


class LayerEncryption(msgspec.Struct, frozen=True, kw_only=True):
    """What a descriptor says about its encryption; `wrapped` has the elements of each scheme, in the order to try."""

    public: PublicOptions
    wrapped: Mapping[str, tuple[bytes, ...]]
    path: str = ""

    def packets(self) -> tuple[AnnotationPacket, ...]:
        """Return the packets for a key broker, in the order to try them.

        Raises:
            ImageRefused: `oci.encryption.no_recipient` when there is none, `oci.encryption.packet.*`.
        """
        elements = self.wrapped.get(PACKET_SCHEME)
        if not elements:
            raise ImageRefused(
                "oci.encryption.no_recipient",
                "layer key is not wrapped for a key broker",
                path=self.path,
                expected=PACKET_SCHEME,
                actual=", ".join(sorted(self.wrapped))[:200],
                hint="add `kbs:///repository/type/tag` as a recipient",
            )
        return tuple(parse_packet(element) for element in elements)


def parse_layer_encryption(layer: Descriptor, *, path: str = "") -> LayerEncryption:
    """Read the encryption annotations of `layer`.

    Raises:
        ImageRefused: `oci.encryption.missing_pubopts`, `oci.encryption.no_recipient` when the key is wrapped for
            nobody, `oci.encryption.too_many_recipients`, or what the public options refuse.
        FormatRefused: an annotation is not base64, or an element longer than any scheme writes.
    """
    annotations = layer.annotations
    encoded = annotations.get(PUBLIC_OPTIONS)
    if not encoded:
        raise ImageRefused("oci.encryption.missing_pubopts", "encrypted layer has no public options", path=path)
    place = f"{path}.annotations"
    texts = {
        key.removeprefix(KEYS_PREFIX): value.split(",")
        for key, value in annotations.items()
        if key.startswith(KEYS_PREFIX) and value
    }
    _require_bounded({scheme: len(elements) for scheme, elements in texts.items()}, path)
    return LayerEncryption(
        public=parse_public_options(decode_b64(encoded, path=f"{place}.{PUBLIC_OPTIONS}", ceiling=ANNOTATION_BYTES)),
        wrapped={
            scheme: tuple(
                decode_b64(element, path=f"{place}.{KEYS_PREFIX}{scheme[:80]}[{number}]", ceiling=WRAPPED_KEY_BYTES)
                for number, element in enumerate(elements)
            )
            for scheme, elements in texts.items()
        },
        path=path,
    )


def encryption_annotations(public: PublicOptions, wrapped: Mapping[str, Sequence[bytes]]) -> dict[str, str]:
    """Return the annotations that `parse_layer_encryption` reads.

    Raises:
        ImageRefused: `oci.encryption.no_recipient`, `oci.encryption.too_many_recipients`.
    """
    _require_bounded({scheme: len(elements) for scheme, elements in wrapped.items() if elements}, "")
    keys = {
        f"{KEYS_PREFIX}{scheme}": ",".join(encode_b64(element) for element in elements)
        for scheme, elements in sorted(wrapped.items())
        if elements
    }
    return keys | {PUBLIC_OPTIONS: encode_b64(encode_public_options(public))}


def without_encryption(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return `annotations` without those of encryption, as a decryptor leaves them."""
    return {key: value for key, value in annotations.items() if not key.startswith(PREFIX)}


def _require_bounded(counts: Mapping[str, int], path: str) -> None:
    if not counts:
        raise ImageRefused("oci.encryption.no_recipient", "layer key is wrapped for nobody", path=path)
    if len(counts) > WRAPPED_KEY_SCHEMES or max(counts.values()) > WRAPPED_KEY_ELEMENTS:
        raise ImageRefused(
            "oci.encryption.too_many_recipients",
            "too many wrapped keys",
            path=path,
            expected=f"at most {WRAPPED_KEY_SCHEMES} schemes of {WRAPPED_KEY_ELEMENTS}",
        )
