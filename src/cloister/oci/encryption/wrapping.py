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
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cloister.errors import CloisterError, ImageRefused, Refused, Unavailable
from cloister.oci.encryption.annotations import PACKET_SCHEME, LayerEncryption
from cloister.oci.encryption.options import PrivateOptions, parse_private_options
from cloister.oci.encryption.packet import encode_packet, open_packet, parse_packet, require_kek, seal_packet
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri

if TYPE_CHECKING:
    from cloister.oci.encryption.keyfiles import KeyEncryptionKey, OpeningKey, SecretKeyring, TokenKeyFile
    from cloister.oci.encryption.providerclient import KeyProvider

KEKSource = Callable[[ResourcePath], bytes]
"""Gives the 32-byte key-encryption key at a place in the key broker; raises `CloisterError`."""

KeyringSource = Callable[[], bytes]
"""Gives an OpenPGP keyring of public keys; raises `CloisterError`."""

_BROKER: Final = "kbs"
_PROVIDER: Final = "provider:"
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


def open_recipients(
    texts: Sequence[str], *, kek_for: KEKSource | None = None, keyring: KeyringSource | None = None
) -> list[KeyWrapper]:
    """Make wrappers from recipients as the command line names them.

    Args:
        texts: `jwe:FILE` (a public key), `pkcs7:FILE` (a certificate), `pgp:NAME` (exact name, e-mail address or
            fingerprint), `pkcs11:FILE` (a public key, or YAML of a key in a token), `provider:NAME[:PARAMS]` (a key
            provider that `OCICRYPT_KEYPROVIDER_CONFIG` says how to reach), `kbs:///repository/type/tag`.
            Recipients of one scheme that can share an element do.
        kek_for: gives the key-encryption key of a `kbs:` recipient, existing or made for this.
        keyring: gives the public keyring of `pgp:` recipients, as `gpg --export` writes it; without it gpg is
            asked.

    Raises:
        Refused: `oci.encryption.recipient`, `oci.encryption.key_file.*`, or what the key says.
    """
    sources = _Sources(kek_for, keyring)
    grouped: dict[str, list[str]] = {}
    for text in texts:
        scheme, mark, place = text.partition(":")
        if not mark or not place or scheme not in _OPENERS:
            raise refuse_recipient(text)
        grouped.setdefault(scheme, []).append(place)
    return [wrapper for scheme, places in grouped.items() for wrapper in _OPENERS[scheme](places, sources)]


def open_keys(texts: Sequence[str], *, kek_at: KEKSource | None = None) -> list[KeyUnwrapper]:
    """Make unwrappers from keys as the command line names them.

    Args:
        texts: `FILE[:PASSWORD]`, the password also as `pass=TEXT`, `file=FILE` or `fd=NUMBER`; `provider:NAME[:PARAMS]`
            for a key provider that `OCICRYPT_KEYPROVIDER_CONFIG` says how to reach; or `kbs` for the keys of our
            broker. What is in a file is told by its content (`cloister.oci.encryption.keyfiles`). A certificate may
            stand beside its private key, as skopeo wants it for PKCS #7; it adds nothing.
        kek_at: gives the key-encryption key at an address in the broker.

    Raises:
        Refused: `oci.encryption.key`, `oci.encryption.key_file.*`, or what the key says.
    """
    opened: list[KeyUnwrapper] = []
    if _BROKER in texts:
        if kek_at is None:
            raise Refused("oci.encryption.key", "no key broker is known here", actual=_BROKER)
        opened.append(PacketUnwrapper(kek_at))
    opened += [_open_provider(text.removeprefix(_PROVIDER)) for text in texts if text.startswith(_PROVIDER)]
    files = [text for text in texts if text != _BROKER and not text.startswith(_PROVIDER)]
    return opened + _open_files(files) if files else opened


def refuse_recipient(text: str) -> Refused:
    """Return the refusal of a recipient that is none."""
    return Refused(
        "oci.encryption.recipient",
        "not a recipient of images",
        expected=_RECIPIENTS,
        actual=text[:80] or "nothing",
    )


class _Sources(NamedTuple):
    """What recipients are made from, besides the texts."""

    kek_for: KEKSource | None
    keyring: KeyringSource | None


def _packet_wrappers(places: Sequence[str], sources: _Sources) -> list[KeyWrapper]:
    if sources.kek_for is None:
        raise refuse_recipient("kbs:" + places[0])
    paths = [parse_resource_uri("kbs:" + place) for place in places]
    return [PacketWrapper(path.uri, sources.kek_for(path)) for path in paths]


def _jwe_wrapper(places: Sequence[str], sources: _Sources) -> list[KeyWrapper]:
    from cloister.oci.encryption.jwe import JWEWrapper
    from cloister.oci.encryption.keyfiles import parse_recipient_key, read_key_file

    return [JWEWrapper([parse_recipient_key(read_key_file(place), path=place) for place in places])]


def _pkcs7_wrapper(places: Sequence[str], sources: _Sources) -> list[KeyWrapper]:
    from cloister.oci.encryption.keyfiles import parse_certificate, read_key_file
    from cloister.oci.encryption.pkcs7 import PKCS7Wrapper

    return [PKCS7Wrapper([parse_certificate(read_key_file(place), path=place) for place in places])]


def _pgp_wrapper(places: Sequence[str], sources: _Sources) -> list[KeyWrapper]:
    from cloister.oci.encryption.keyfiles import read_public_keyring
    from cloister.oci.encryption.pgp import PGPWrapper

    return [PGPWrapper(places, (sources.keyring or read_public_keyring)())]


def _pkcs11_wrapper(places: Sequence[str], sources: _Sources) -> list[KeyWrapper]:
    from cloister.oci.encryption.pkcs11 import PKCS11Wrapper, open_pkcs11_recipient

    return [PKCS11Wrapper([open_pkcs11_recipient(place) for place in places])]


def _open_files(texts: Sequence[str]) -> list[KeyUnwrapper]:
    from cryptography import x509

    from cloister.oci.encryption.keyfiles import OpeningKey, parse_key_file, read_key_file, split_key_text

    parsed = []
    for text in texts:
        path, password = split_key_text(text)
        parsed.append((path, parse_key_file(read_key_file(path), password, path=path)))
    public = [item.key.public_key() for _, item in parsed if isinstance(item, OpeningKey)]
    opened: list[KeyUnwrapper] = []
    for path, item in parsed:
        if not isinstance(item, x509.Certificate):
            opened += _unwrappers(item)
        elif item.public_key() not in public:
            raise Refused(
                "oci.encryption.key",
                "a certificate opens nothing without its private key",
                path=path[:200],
                hint="give the key as well",
            )
    return opened


def _unwrappers(item: OpeningKey | SecretKeyring | TokenKeyFile | KeyEncryptionKey) -> list[KeyUnwrapper]:
    from cryptography.hazmat.primitives.asymmetric import rsa

    from cloister.oci.encryption import keyfiles

    if isinstance(item, keyfiles.OpeningKey):
        from cloister.oci.encryption.jwe import JWEUnwrapper
        from cloister.oci.encryption.pkcs7 import PKCS7Unwrapper

        jwe: list[KeyUnwrapper] = [JWEUnwrapper(item)]
        return [*jwe, PKCS7Unwrapper(item.key)] if isinstance(item.key, rsa.RSAPrivateKey) else jwe
    if isinstance(item, keyfiles.SecretKeyring):
        from cloister.oci.encryption.pgp import PGPUnwrapper

        return [PGPUnwrapper(item)]
    if isinstance(item, keyfiles.TokenKeyFile):
        from cloister.oci.encryption.pkcs11 import PKCS11Unwrapper, open_token_key

        return [PKCS11Unwrapper(open_token_key(item))]
    kek = item.key
    require_kek(kek)
    return [PacketUnwrapper(lambda _: kek)]


def _provider_wrappers(places: Sequence[str], sources: _Sources) -> list[KeyWrapper]:
    return [_open_provider(place) for place in places]


def _open_provider(place: str) -> KeyProvider:
    from cloister.oci.encryption.providerclient import open_provider

    return open_provider(place)


_OPENERS: Final[Mapping[str, Callable[[Sequence[str], _Sources], list[KeyWrapper]]]] = {
    "kbs": _packet_wrappers,
    "jwe": _jwe_wrapper,
    "pkcs7": _pkcs7_wrapper,
    "pgp": _pgp_wrapper,
    "pkcs11": _pkcs11_wrapper,
    "provider": _provider_wrappers,
}
