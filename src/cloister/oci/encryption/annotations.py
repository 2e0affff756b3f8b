"""The annotations by which a layer descriptor says that, how and for whom it is encrypted (ocicrypt, encryption.go).

`..enc.pubopts` holds base64 of the public options; `..enc.keys.<scheme>` a comma-separated list of base64 wrappings
of the same private options. Schemes for which a reader holds no key are skipped, as the format asks; here that is
every scheme but the `attestation-agent` provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.encryption.options import PublicOptions, encode_public_options, parse_public_options
from cloister.oci.encryption.packet import AnnotationPacket, encode_packet, parse_packet
from cloister.oci.manifest import Descriptor
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import ANNOTATION_BYTES

PREFIX: Final = "org.opencontainers.image.enc."
PUBLIC_OPTIONS: Final = f"{PREFIX}pubopts"
KEYS_PREFIX: Final = f"{PREFIX}keys."
PROVIDER_KEYS: Final = f"{KEYS_PREFIX}provider.attestation-agent"
_RECIPIENTS: Final = 16


class LayerEncryption(msgspec.Struct, frozen=True, kw_only=True):
    """What a descriptor says about its encryption; `packets` are alternatives, in the order to try them."""

    public: PublicOptions
    packets: tuple[AnnotationPacket, ...]


def parse_layer_encryption(layer: Descriptor, *, path: str = "") -> LayerEncryption:
    """Read the encryption annotations of `layer`.

    Raises:
        ImageRefused: `oci.encryption.missing_pubopts`, `oci.encryption.no_recipient` when no wrapping is for a key
            broker, `oci.encryption.too_many_recipients`, or what the parts themselves refuse.
        FormatRefused: an annotation is not base64.
    """
    annotations = layer.annotations
    encoded = annotations.get(PUBLIC_OPTIONS)
    if not encoded:
        raise ImageRefused("oci.encryption.missing_pubopts", "encrypted layer has no public options", path=path)
    wrapped = annotations.get(PROVIDER_KEYS)
    if not wrapped:
        schemes = sorted(key.removeprefix(KEYS_PREFIX) for key in annotations if key.startswith(KEYS_PREFIX))
        raise ImageRefused(
            "oci.encryption.no_recipient",
            "layer key is not wrapped for a key broker",
            path=path,
            expected="provider.attestation-agent",
            actual=", ".join(schemes)[:200],
            hint="seal the image with `cloister image encrypt`",
        )
    elements = wrapped.split(",")
    if len(elements) > _RECIPIENTS:
        raise ImageRefused(
            "oci.encryption.too_many_recipients", "too many wrapped keys", path=path, expected=str(_RECIPIENTS)
        )
    place = f"{path}.annotations"
    return LayerEncryption(
        public=parse_public_options(decode_b64(encoded, path=f"{place}.{PUBLIC_OPTIONS}", ceiling=ANNOTATION_BYTES)),
        packets=tuple(
            parse_packet(decode_b64(element, path=f"{place}.{PROVIDER_KEYS}[{number}]", ceiling=ANNOTATION_BYTES))
            for number, element in enumerate(elements)
        ),
    )


def encryption_annotations(public: PublicOptions, packet: AnnotationPacket) -> dict[str, str]:
    """Return the annotations that `parse_layer_encryption` reads."""
    return {
        PROVIDER_KEYS: encode_b64(encode_packet(packet)),
        PUBLIC_OPTIONS: encode_b64(encode_public_options(public)),
    }


def without_encryption(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return `annotations` without those of encryption, as a decryptor leaves them."""
    return {key: value for key, value in annotations.items() if not key.startswith(PREFIX)}
