"""Init data: exact bytes are measured, the device has one spelling, everything else refuses."""

from __future__ import annotations

import gzip
import hashlib
import zlib

import pytest

from cloister.errors import FormatRefused
from cloister.protocol import initdata
from cloister.protocol.initdata import (
    BrokerAddress,
    ReleaseLogPins,
    broker_entry,
    build_initdata,
    pack_device,
    parse_broker_entry,
    parse_initdata,
    unpack_device,
)
from cloister.wire.limits import INITDATA_BYTES, INITDATA_ENTRIES

TEXT = b'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n"a" = "1"\n'
BROKER = BrokerAddress(
    url="https://10.0.2.2:7070",
    ca_pem="-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n",
    release_log=ReleaseLogPins(key="log.example+00+AA", witnesses=("w1+00+AA", "w2+00+AA"), cosignatures=1),
)
UNLOGGED = BrokerAddress(url="https://a", ca_pem="PEM", insecure_no_release_log=True)


def device(packed: bytes, *, magic: bytes = b"initdata", length: int | None = None) -> bytes:
    image = magic + (len(packed) if length is None else length).to_bytes(8, "little") + packed
    return image + bytes(-len(image) % 512)


# --- text ---


def test_digest_is_over_the_exact_bytes() -> None:
    assert parse_initdata(TEXT).digest == hashlib.sha256(TEXT).digest()
    assert parse_initdata(TEXT + b"\n").digest != parse_initdata(TEXT).digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_digest_is_by_the_named_algorithm(algorithm: str) -> None:
    built = build_initdata({"a": "1"}, algorithm=algorithm)
    assert built.digest == hashlib.new(algorithm, built.text).digest()
    assert built.digest_text == f"{algorithm}:{built.digest.hex()}"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "plain",
        'quote " and \\ backslash',
        "line\nbreak\r\n\ttab",
        "\x00\x01\x1f\x7f",
        "é 漢 \U0001f600",
        "'''",
        '"""',
    ],
)
def test_entries_survive_writing(value: str) -> None:
    assert build_initdata({"name": value}).entries == {"name": value}


def test_entry_names_survive_writing() -> None:
    entries = {"aa.toml": "1", 'odd "name"': "2", "": "3", "a\nb": "4"}
    assert build_initdata(entries).entries == entries


def test_entries_are_written_in_one_order() -> None:
    assert build_initdata({"b": "2", "a": "1"}).text == build_initdata({"a": "1", "b": "2"}).text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "malformed"),
        (b"\xff", "malformed"),
        (b"not toml", "malformed"),
        (TEXT + b'more = "x"\n[other]\n', "malformed"),
        (TEXT.replace(b"version", b"versionx"), "malformed"),
        (b'unknown = "x"\n' + TEXT, "malformed"),
        (TEXT.replace(b'"1"', b"1"), "malformed"),
        (TEXT.replace(b'"1"', b'["1"]'), "malformed"),
        (TEXT.replace(b'\n"a" = "1"', b'\n"a" = "1"\n"a" = "2"'), "malformed"),
        (b'version = "0.1.0"\nalgorithm = "sha256"\n', "malformed"),
        (b'version = "0.1.0"\nalgorithm = "sha256"\ndata = "x"\n', "malformed"),
        (TEXT.replace(b"0.1.0", b"0.2.0"), "version"),
        (TEXT.replace(b"0.1.0", b""), "version"),
        (TEXT.replace(b"sha256", b"sha1"), "algorithm"),
        (TEXT.replace(b"sha256", b"SHA256"), "algorithm"),
        (TEXT.replace(b"sha256", b"sha-256"), "algorithm"),
        (TEXT + b"#" * INITDATA_BYTES, "too_long"),
        (TEXT + b"".join(b"e%d = ''\n" % i for i in range(INITDATA_ENTRIES)), "too_long"),
        (b"a = " + b"[" * 50_000, "malformed"),
    ],
)
def test_other_texts_are_refused(text: bytes, code: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse_initdata(text)
    assert refusal.value.code == f"protocol.initdata.{code}"


def test_missing_entry_is_named() -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse_initdata(TEXT).entry("aa.toml")
    assert refusal.value.code == "protocol.initdata.missing_entry"
    assert refusal.value.path == "data.aa.toml"


# --- broker entry ---


@pytest.mark.parametrize("broker", [BROKER, UNLOGGED])
def test_broker_entry_round_trip(broker: BrokerAddress) -> None:
    assert parse_broker_entry(build_initdata({initdata.AGENT_ENTRY: broker_entry(broker)})) == broker


def test_a_broker_without_a_log_must_be_called_so() -> None:
    """Nothing at all is what init data of others say: the guest does not take it for "no log"."""
    entry = broker_entry(BrokerAddress(url="https://a", ca_pem="PEM"))
    with pytest.raises(FormatRefused, match=r"protocol\.initdata\.release_log"):
        parse_broker_entry(build_initdata({initdata.AGENT_ENTRY: entry}))


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (broker_entry(BrokerAddress(url="http://10.0.2.2", ca_pem="PEM")), "broker"),
        (broker_entry(BrokerAddress(url="https://10.0.2.2", ca_pem=" \n")), "broker"),
        (broker_entry(BrokerAddress(url="", ca_pem="PEM")), "broker"),
        (broker_entry(BROKER) + 'insecure_skip = "true"\n', "malformed"),
        (broker_entry(BROKER) + "insecure_no_release_log = true\n", "release_log"),
        (broker_entry(BROKER).replace("cosignatures = 1", "cosignatures = 3"), "release_log"),
        (broker_entry(BROKER).replace("cosignatures = 1", "cosignatures = -1"), "release_log"),
        (broker_entry(BROKER).replace("log.example+00+AA", ""), "release_log"),
        (broker_entry(UNLOGGED).replace("true", "false"), "release_log"),
        (broker_entry(UNLOGGED).replace("true", '"true"'), "malformed"),
        (broker_entry(UNLOGGED) + "cosignatures = 1\n", "release_log"),
        ("[token_configs.kbs]\nurl = 'https://a'\n", "malformed"),
        ("[other]\n", "malformed"),
        ("", "malformed"),
        ("= =", "malformed"),
    ],
)
def test_broker_needs_https_and_a_pinned_ca(entry: str, code: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse_broker_entry(build_initdata({initdata.AGENT_ENTRY: entry}))
    assert refusal.value.code == f"protocol.initdata.{code}"
    assert "aa.toml" in refusal.value.path


# --- device ---


def test_device_round_trip_in_whole_sectors() -> None:
    built = build_initdata({"a": "1" * 5000})
    image = pack_device(built)
    assert len(image) % 512 == 0
    assert unpack_device(image) == built


def test_device_is_reproducible() -> None:
    assert pack_device(parse_initdata(TEXT)) == pack_device(parse_initdata(TEXT))


def test_device_may_be_larger_than_its_content() -> None:
    assert unpack_device(pack_device(parse_initdata(TEXT)) + bytes(4096)).text == TEXT


def test_truncation_at_every_offset_is_refused() -> None:
    packed = gzip.compress(TEXT, mtime=0)
    image = device(packed)
    for length in range(16 + len(packed)):
        with pytest.raises(FormatRefused) as refusal:
            unpack_device(image[:length])
        assert refusal.value.code == "protocol.initdata.device"


def test_every_shortened_length_field_is_refused() -> None:
    packed = gzip.compress(TEXT, mtime=0)
    for length in range(len(packed)):
        with pytest.raises(FormatRefused) as refusal:
            unpack_device(device(packed, length=length))
        assert refusal.value.code == "protocol.initdata.device"


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (b"", "device"),
        (bytes(512), "device"),
        (device(gzip.compress(TEXT), magic=b"INITDATA"), "device"),
        (device(gzip.compress(TEXT), length=2**64 - 1), "device"),
        (device(gzip.compress(TEXT), length=INITDATA_BYTES + 1), "device"),
        (device(gzip.compress(TEXT) + b"x"), "device"),
        (device(gzip.compress(TEXT) + gzip.compress(TEXT)), "device"),
        (device(zlib.compress(TEXT)), "device"),
        (device(TEXT), "device"),
        (device(gzip.compress(bytes(64 * 1024 * 1024))), "too_long"),
        (device(gzip.compress(b" " * (INITDATA_BYTES + 1))), "too_long"),
        (device(gzip.compress(b"some content")), "malformed"),
    ],
    ids=[
        "empty",
        "no magic",
        "other magic",
        "length wraps",
        "length past ceiling",
        "byte after stream",
        "second stream",
        "zlib, not gzip",
        "not compressed",
        "bomb",
        "one byte too long",
        "not toml",
    ],
)
def test_other_devices_are_refused(image: bytes, code: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        unpack_device(image)
    assert refusal.value.code == f"protocol.initdata.{code}"


def test_every_flipped_bit_of_the_stream_is_refused_or_changes_nothing_measured() -> None:
    """gzip has header fields nobody reads (time, system); a flip there must still give the very same text."""
    packed = bytearray(gzip.compress(TEXT, mtime=0))
    for place in range(len(packed) * 8):
        packed[place // 8] ^= 1 << place % 8
        try:
            assert unpack_device(device(bytes(packed))).text == TEXT
        except FormatRefused as refusal:
            assert refusal.code.startswith("protocol.initdata.")
        packed[place // 8] ^= 1 << place % 8


def test_longest_text_fits() -> None:
    text = TEXT + b"#" * (INITDATA_BYTES - len(TEXT))
    assert unpack_device(device(gzip.compress(text))).text == text
