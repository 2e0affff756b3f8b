"""Wraps and unwraps layer keys by every scheme ocicrypt knows: the seam between images and kinds of keys.

An encrypted layer's descriptor carries the same private options several times, as one element for each way to open
them (ocicrypt, encryption.go). Whoever writes an element is a `KeyWrapper`, whoever opens one a `KeyUnwrapper`; images
are encrypted, decrypted and given to more recipients by these two alone. `open_recipients` and `open_keys` make them
from the texts that skopeo, buildah and nerdctl also take.

A scheme is a module of its own, imported when it is named. The guest reads packets of its key broker only and does not
hold this module. Elements come from an untrusted registry: an unwrapper raises nothing but `CloisterError` for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from cloister.errors import CloisterError, ImageRefused, Refused, Unavailable
from cloister.oci.encryption.annotations import PACKET_SCHEME, LayerEncryption
from cloister.oci.encryption.options import PrivateOptions, parse_private_options
from cloister.oci.encryption.packet import encode_packet, open_packet, parse_packet, require_kek, seal_packet
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri

KEKSource = Callable[[ResourcePath], bytes]
"""Gives the 32-byte key-encryption key at a place in the key broker; raises `CloisterError`."""

_UNWRAP_FAILED: Final = "oci.encryption.unwrap_failed"
_RECIPIENTS: Final = "jwe:FILE, pkcs7:FILE, pgp:NAME, pkcs11:FILE, provider:NAME[:PARAMS], kbs:///repository/type/tag"


class KeyWrapper(Protocol):
    """The owner's side: writes one element for a layer."""

    @property
    def scheme(self) -> str:
        """What stands behind `org.opencontainers.image.enc.keys.`."""
        ...

    def wrap(self, options: bytes) -> bytes:
        """Return the element that holds `options`, the private options' JSON.

        Raises:
            ImageRefused: this recipient cannot take them.
            Unavailable: a provider or token does not answer.
        """
        ...


class KeyUnwrapper(Protocol):
    """Whoever opens: one for each key held."""

    @property
    def scheme(self) -> str:
        """Whose elements this key may open."""
        ...

    def unwrap(self, element: bytes) -> bytes:
        """Return the private options' JSON.

        Raises:
            ImageRefused: `oci.encryption.unwrap_failed` when this key does not open it, `oci.encryption.*` when the
                element is none of its scheme.
            Unavailable: a broker, provider or token does not answer.
        """
        ...


class PacketWrapper:
    """Wraps for the key broker: CoCo's packet, under a KEK that the guest will ask for by its address."""

    scheme: Final = PACKET_SCHEME

    def __init__(self, kek_id: str, kek: bytes) -> None:
        """Take the KEK.

        Raises:
            ImageRefused: `oci.encryption.sample_kek`, `oci.encryption.kek_length`.
            FormatRefused: `kek_id` is not `kbs:///repository/type/tag`.
        """
        self._kek_id = parse_resource_uri(kek_id).uri
        require_kek(kek)
        self._kek = kek

    def __repr__(self) -> str:
        return f"PacketWrapper({self._kek_id})"

    def wrap(self, options: bytes) -> bytes:
        """Return a packet with a fresh nonce."""
        return encode_packet(seal_packet(options, kek_id=self._kek_id, kek=self._kek))


class PacketUnwrapper:
    """Opens packets with KEKs that `kek_at` gives."""

    scheme: Final = PACKET_SCHEME

    def __init__(self, kek_at: KEKSource) -> None:
        self._kek_at = kek_at

    def unwrap(self, element: bytes) -> bytes:
        """Ask for the packet's KEK and open it; see `KeyUnwrapper.unwrap`."""
        packet = parse_packet(element)
        kek = self._kek_at(packet.kek_path)
        require_kek(kek)
        return open_packet(packet, kek)


def wrap_layer_key(options: bytes, wrappers: Iterable[KeyWrapper]) -> dict[str, tuple[bytes, ...]]:
    """Return the elements of `wrappers` by scheme, as `encryption_annotations` writes them."""
    wrapped: dict[str, tuple[bytes, ...]] = {}
    for wrapper in wrappers:
        wrapped[wrapper.scheme] = (*wrapped.get(wrapper.scheme, ()), wrapper.wrap(options))
    return wrapped


def unwrap_layer_key(
    encryption: LayerEncryption, unwrappers: Sequence[KeyUnwrapper], *, path: str = ""
) -> PrivateOptions:
    """Open the layer's private options with the first key that opens an element. Wipe them after use.

    Every element of every scheme a key is held for is tried, left to right. When none opens, the refusal that says
    more than "not this key" is the one told.

    Raises:
        ImageRefused: `oci.encryption.no_key` when no key fits, or the first other reason an element was refused for.
        Unavailable: nothing opened, and a broker, provider or token did not answer.
    """
    reasons: list[CloisterError] = []
    for unwrapper in unwrappers:
        for element in encryption.wrapped.get(unwrapper.scheme, ()):
            try:
                return parse_private_options(unwrapper.unwrap(element))
            except CloisterError as err:
                reasons.append(err)
    for telling in (
        *(err for err in reasons if isinstance(err, Unavailable)),
        *(err for err in reasons if err.code != _UNWRAP_FAILED),
    ):
        raise telling
    held = sorted({unwrapper.scheme for unwrapper in unwrappers})
    raise ImageRefused(
        "oci.encryption.no_key",
        "no key given opens this layer",
        path=path,
        expected="a key for " + ", ".join(sorted(encryption.wrapped))[:200],
        actual=", ".join(held) or "no key",
        hint="give the key of one of its recipients; `cloister image inspect` lists them",
    )


def open_recipients(texts: Sequence[str], *, kek_for: KEKSource | None = None) -> list[KeyWrapper]:
    """Make wrappers from recipients as the command line names them.

    Args:
        texts: `kbs:///repository/type/tag`. Recipients of one scheme that can share an element do.
        kek_for: gives the key-encryption key of a `kbs:` recipient, existing or made for this.

    Raises:
        Refused: `oci.encryption.recipient`, or what the key says.
    """
    grouped: dict[str, list[str]] = {}
    for text in texts:
        scheme, mark, place = text.partition(":")
        if not mark or scheme not in _OPENERS:
            raise refuse_recipient(text)
        grouped.setdefault(scheme, []).append(place)
    return [wrapper for scheme, places in grouped.items() for wrapper in _OPENERS[scheme](places, kek_for)]


def open_keys(texts: Sequence[str], *, kek_at: KEKSource | None = None) -> list[KeyUnwrapper]:
    """Make unwrappers from keys as the command line names them.

    Args:
        texts: `kbs` for the keys of our broker.
        kek_at: gives the key-encryption key at an address in the broker.

    Raises:
        Refused: `oci.encryption.key`, or what the key says.
    """
    return [_open_key(text, kek_at) for text in texts]


def refuse_recipient(text: str) -> Refused:
    """Return the refusal of a recipient that is none."""
    return Refused(
        "oci.encryption.recipient",
        "not a recipient of images",
        expected=_RECIPIENTS,
        actual=text[:80] or "nothing",
    )


def _open_key(text: str, kek_at: KEKSource | None) -> KeyUnwrapper:
    if text == "kbs" and kek_at is not None:
        return PacketUnwrapper(kek_at)
    raise Refused("oci.encryption.key", "not a key for images", expected="kbs", actual=text[:80] or "nothing")


def _packet_wrappers(places: Sequence[str], kek_for: KEKSource | None) -> list[KeyWrapper]:
    if kek_for is None:
        raise refuse_recipient("kbs:" + places[0])
    paths = [parse_resource_uri("kbs:" + place) for place in places]
    return [PacketWrapper(path.uri, kek_for(path)) for path in paths]


_OPENERS: Final[Mapping[str, Callable[[Sequence[str], KEKSource | None], list[KeyWrapper]]]] = {
    "kbs": _packet_wrappers,
}
