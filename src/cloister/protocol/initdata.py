"""Init data: the one measured text that tells a generic pod VM which pod it is.

TOML as CoCo defines it (kbs/docs/initdata.md): `version`, `algorithm`, and a table `[data]` of text entries. The
digest is taken over the exact bytes, by the named algorithm, and must be what HOST_DATA / MRCONFIGID holds, or what
PCR 8 was extended with. The transport is a small block device in Kata's format: 8 bytes magic `initdata`, u64
little-endian length, gzip stream, zero padded to 512.

Entries Cloister uses: `aa.toml` (broker address and CA, in the shape of CoCo's attestation agent),
`pod-policy.json`, and `contract-id`. The host reads init data: it holds no secret.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from cloister.errors import FormatRefused
from cloister.wire.limits import INITDATA_BYTES, INITDATA_ENTRIES
from cloister.wire.stricttoml import parse_toml

_W = TypeVar("_W", bound=msgspec.Struct)
VERSION: Final = "0.1.0"
MAGIC: Final = b"initdata"
SECTOR: Final = 512
AGENT_ENTRY: Final = "aa.toml"
POLICY_ENTRY: Final = "pod-policy.json"
CONTRACT_ENTRY: Final = "contract-id"  # `sha256:` and 64 digits of the contract the pod runs under
_DIGESTS: Final = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
DIGEST_BYTES: Final = {name: digest().digest_size for name, digest in _DIGESTS.items()}
_HEADER_BYTES: Final = 16


class _InitDataWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: str
    algorithm: str
    data: dict[str, str]


class InitData(msgspec.Struct, frozen=True, kw_only=True):
    """Parsed init data.

    Attributes:
        text: the exact bytes that are measured.
        algorithm: `sha256`, `sha384` or `sha512`.
        entries: the `[data]` table.
    """

    text: bytes
    algorithm: str
    entries: Mapping[str, str]

    @property
    def digest(self) -> bytes:
        """The digest over the exact text."""
        return _DIGESTS[self.algorithm](self.text).digest()

    @property
    def digest_text(self) -> str:
        """The digest as `algorithm:hex`."""
        return f"{self.algorithm}:{self.digest.hex()}"

    def entry(self, name: str) -> str:
        """Return one entry.

        Raises:
            FormatRefused: absent (`protocol.initdata.missing_entry`).
        """
        if name not in self.entries:
            raise FormatRefused("protocol.initdata.missing_entry", "init data lacks an entry", path=f"data.{name}")
        return self.entries[name]


class ReleaseLogPins(msgspec.Struct, frozen=True, kw_only=True):
    """Which release log a guest believes, and who must have seen a release before the guest uses it.

    Attributes:
        key: the log's verifier key (C2SP signed-note); its name is the log's origin.
        witnesses: verifier keys of witnesses.
        cosignatures: how many of them must have cosigned.
    """

    key: str
    witnesses: tuple[str, ...] = ()
    cosignatures: int = 0


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the pod's key broker is and what about it is pinned.

    Attributes:
        url: https address.
        ca_pem: CA that its TLS certificate must chain to.
        release_log: log in which its releases must be; a guest refuses keys without it.
        insecure_no_release_log: the broker is not ours and keeps no log; its releases are believed without.
    """

    url: str
    ca_pem: str
    release_log: ReleaseLogPins | None = None
    insecure_no_release_log: bool = False


class _KBSConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    url: str
    cert: str


class _TokenConfigs(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    kbs: _KBSConfig


class _ReleaseLogConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    key: str = ""
    witnesses: tuple[str, ...] = ()
    cosignatures: int = 0
    insecure_no_release_log: bool = False


class _AgentConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    token_configs: _TokenConfigs
    release_log: _ReleaseLogConfig = _ReleaseLogConfig()


def parse_initdata(text: bytes) -> InitData:
    """Parse the TOML text.

    Raises:
        FormatRefused: too long, not TOML, unknown version, algorithm or field (`protocol.initdata.*`).
    """
    if len(text) > INITDATA_BYTES:
        raise FormatRefused("protocol.initdata.too_long", "init data too long", expected=f"at most {INITDATA_BYTES}")
    wire = _decode_toml(text, _InitDataWire, "")
    if wire.version != VERSION:
        raise FormatRefused("protocol.initdata.version", "unknown version", expected=VERSION, actual=wire.version[:20])
    if wire.algorithm not in _DIGESTS:
        raise FormatRefused(
            "protocol.initdata.algorithm", "unknown algorithm", expected=" ".join(_DIGESTS), actual=wire.algorithm[:20]
        )
    if len(wire.data) > INITDATA_ENTRIES:
        raise FormatRefused("protocol.initdata.too_long", "too many entries", expected=f"at most {INITDATA_ENTRIES}")
    return InitData(text=text, algorithm=wire.algorithm, entries=wire.data)


def build_initdata(entries: Mapping[str, str], *, algorithm: str = "sha256") -> InitData:
    """Write the TOML text for `entries`, sorted by name, and parse it back.

    Raises:
        FormatRefused: the entries cannot be written (size, algorithm).
    """
    lines = [f'version = "{VERSION}"', f'algorithm = "{algorithm}"', "", "[data]"]
    lines += [f"{_toml_string(name)} = {_toml_string(value)}" for name, value in sorted(entries.items())]
    return parse_initdata(("\n".join(lines) + "\n").encode())


def broker_entry(broker: BrokerAddress) -> str:
    """Return the `aa.toml` entry for `broker`."""
    lines = ["[token_configs.kbs]", f"url = {_toml_string(broker.url)}", f"cert = {_toml_string(broker.ca_pem)}"]
    log = broker.release_log
    if log is not None:
        witnesses = ", ".join(_toml_string(key) for key in log.witnesses)
        lines += ["[release_log]", f"key = {_toml_string(log.key)}", f"witnesses = [{witnesses}]"]
        lines += [f"cosignatures = {log.cosignatures}"]
    if broker.insecure_no_release_log:
        lines += ["[release_log]", "insecure_no_release_log = true"]
    return "\n".join(lines) + "\n"


def parse_broker_entry(init_data: InitData) -> BrokerAddress:
    """Return the key broker that `init_data` names.

    Raises:
        FormatRefused: no such entry, unknown field, no CA, an address that is not https, or neither a release log nor
            the word that there is none (`protocol.initdata.release_log`).
    """
    config = _decode_toml(init_data.entry(AGENT_ENTRY).encode(), _AgentConfig, f"data.{AGENT_ENTRY}")
    kbs = config.token_configs.kbs
    if not kbs.url.startswith("https://") or not kbs.cert.strip():
        raise FormatRefused(
            "protocol.initdata.broker", "the key broker needs an https address and a CA", path=f"data.{AGENT_ENTRY}"
        )
    log, url = config.release_log, kbs.url.rstrip("/")
    pins = ReleaseLogPins(key=log.key, witnesses=log.witnesses, cosignatures=log.cosignatures)
    if log.insecure_no_release_log and pins == ReleaseLogPins(key=""):
        return BrokerAddress(url=url, ca_pem=kbs.cert, insecure_no_release_log=True)
    if not log.key or log.insecure_no_release_log or not 0 <= log.cosignatures <= len(log.witnesses):
        raise FormatRefused(
            "protocol.initdata.release_log",
            "the key broker needs a release log",
            path=f"data.{AGENT_ENTRY}",
            expected="release_log.key, and not more cosignatures than witnesses",
            hint="write init data with `cloister run`; for a broker that is not Cloister's and keeps no log, "
            "`insecure_no_release_log = true` in the table `release_log`",
        )
    return BrokerAddress(url=url, ca_pem=kbs.cert, release_log=pins)


DEVICE_BYTES: Final = -(-(_HEADER_BYTES + INITDATA_BYTES) // SECTOR) * SECTOR  # room for the longest init data


def pack_device(init_data: InitData) -> bytes:
    """Return the block device image that carries `init_data` (a multiple of 512 bytes)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    packed = packer.compress(init_data.text) + packer.flush()
    image = MAGIC + len(packed).to_bytes(8, "little") + packed
    return image + bytes(-len(image) % SECTOR)


def device_bytes(head: bytes) -> int:
    """Return how many bytes of a device its init data takes, by the header in `head`; nothing about it is checked."""
    return _HEADER_BYTES + int.from_bytes(head[len(MAGIC) : _HEADER_BYTES], "little")


def unpack_device(image: bytes) -> InitData:
    """Parse a block device image.

    Raises:
        FormatRefused: other magic, length past the device, not one whole gzip stream, bomb, or malformed text.
    """
    if image[:8] != MAGIC or len(image) < _HEADER_BYTES:
        raise FormatRefused("protocol.initdata.device", "not an init data device", expected="magic initdata")
    length = int.from_bytes(image[8:_HEADER_BYTES], "little")
    if length > INITDATA_BYTES or _HEADER_BYTES + length > len(image):
        raise FormatRefused(
            "protocol.initdata.device",
            "length does not fit the device",
            expected=f"at most {len(image) - _HEADER_BYTES}",
        )
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        text = unpacker.decompress(image[_HEADER_BYTES : _HEADER_BYTES + length], INITDATA_BYTES + 1)
    except zlib.error as err:
        raise FormatRefused("protocol.initdata.device", "not a gzip stream") from err
    if len(text) > INITDATA_BYTES:
        raise FormatRefused("protocol.initdata.too_long", "init data too long", expected=f"at most {INITDATA_BYTES}")
    if not unpacker.eof or unpacker.unused_data:
        raise FormatRefused("protocol.initdata.device", "the gzip stream is cut short or followed by bytes")
    return parse_initdata(text)


def _decode_toml(text: bytes, kind: type[_W], path: str) -> _W:
    try:
        document = parse_toml(text, ceiling=INITDATA_BYTES, code="protocol.initdata.malformed", path=path)
        return msgspec.convert(document, kind)
    except (msgspec.ValidationError, RecursionError) as err:
        raise FormatRefused("protocol.initdata.malformed", f"not init data: {err}", path=path) from err


def _toml_string(value: str) -> str:
    """Return a TOML basic string (TOML 1.0 section String): JSON escapes are a subset, DEL must be escaped too."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
