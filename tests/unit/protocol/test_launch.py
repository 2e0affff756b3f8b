"""Launch blob: canonical text, PCR arithmetic, refusals."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatRefused, Refused
from cloister.protocol.launch import (
    LaunchMeasurement,
    LaunchProfile,
    digest_text,
    hcrtm_start_value,
    parse_launch_blob,
)
from cloister.wire.canonicaljson import encode_canonical


def launch(**changes: Any) -> LaunchMeasurement:
    base = LaunchMeasurement(
        profile=LaunchProfile.SEABIOS,
        vcpus=2,
        memory_mib=512,
        firmware=digest_text(b"firmware"),
        kernel=digest_text(b"kernel"),
        initrd=digest_text(b"initrd"),
        cmdline=digest_text(b"console=ttyS0"),
        option_roms={"linuxboot_dma.bin": digest_text(b"rom")},
    )
    return replace(base, **changes)


def uki(**changes: Any) -> LaunchMeasurement:
    return launch(**{"profile": LaunchProfile.UKI, "initrd": None, "cmdline": None, "option_roms": {}, **changes})


def test_blob_is_sorted_compact_ascii() -> None:
    blob = launch().blob()
    value = json.loads(blob)
    assert blob == json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
    assert value["version"] == 1
    assert value["profile"] == "seabios"
    assert value["machine"] == "q35"
    assert value["cmdline"] == "sha256:" + hashlib.sha256(b"console=ttyS0").hexdigest()


@given(
    st.sampled_from(LaunchProfile),
    st.integers(1, 64),
    st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True), st.just(digest_text(b"rom")), max_size=4
    ),
)
def test_blob_is_what_the_general_encoder_gives(profile: LaunchProfile, vcpus: int, roms: dict[str, str]) -> None:
    make = uki if profile is LaunchProfile.UKI else launch
    blob = make(vcpus=vcpus, option_roms=roms).blob()
    assert blob == encode_canonical(json.loads(blob))


def test_known_registers() -> None:
    """The first is computed with printf, xxd and sha256sum alone."""
    assert hcrtm_start_value(b"").hex() == "6d5d02e322f054209780964921fb62321645d4577482feb6d9f7391ea46882cb"
    start = hashlib.sha256(bytes(31) + b"\x04" + hashlib.sha256(launch().blob()).digest()).digest()
    assert launch().hcrtm_start_value() == start
    assert launch().pcr0_seabios() == hashlib.sha256(start + hashlib.sha256(b"\xff\xff\xff\xff").digest()).digest()


@pytest.mark.parametrize("made", [launch(), launch(option_roms={}), uki()])
def test_round_trip(made: LaunchMeasurement) -> None:
    assert parse_launch_blob(made.blob()) == made
    assert made.digest() == digest_text(made.blob())


@pytest.mark.parametrize(
    "change",
    [
        {"vcpus": 4},
        {"memory_mib": 1024},
        {"firmware": digest_text(b"x")},
        {"kernel": digest_text(b"x")},
        {"initrd": digest_text(b"x")},
        {"cmdline": digest_text(b"x")},
        {"option_roms": {}},
    ],
)
def test_every_field_changes_the_register(change: dict[str, Any]) -> None:
    assert launch(**change).pcr0_seabios() != launch().pcr0_seabios()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"vcpus": 0}, "protocol.launch.range"),
        ({"vcpus": 257}, "protocol.launch.range"),
        ({"memory_mib": 0}, "protocol.launch.range"),
        ({"firmware": "sha256:00"}, "protocol.launch.digest"),
        ({"kernel": "sha512:" + "0" * 64}, "protocol.launch.digest"),
        ({"initrd": "sha256:" + "A" * 64}, "protocol.launch.digest"),
        ({"initrd": None}, "protocol.launch.profile"),
        ({"cmdline": None}, "protocol.launch.profile"),
        ({"profile": LaunchProfile.UKI}, "protocol.launch.profile"),
        ({"machine": "pc"}, "protocol.launch.machine"),
        ({"option_roms": {"../rom": digest_text(b"x")}}, "protocol.launch.name"),
        ({"option_roms": {"rom": "x"}}, "protocol.launch.digest"),
        ({"option_roms": {f"r{n}": digest_text(b"x") for n in range(9)}}, "protocol.launch.range"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, Any], code: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        launch(**change)
    assert caught.value.code == code


def test_pcr0_of_other_firmware_is_not_guessed() -> None:
    with pytest.raises(FormatRefused) as caught:
        uki().pcr0_seabios()
    assert caught.value.code == "protocol.launch.profile"


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda v: {**v, "extra": 1}, "protocol.launch.malformed"),
        (lambda v: {**v, "version": 2}, "protocol.launch.version"),
        (lambda v: {**v, "profile": "pvh"}, "protocol.launch.malformed"),
        (lambda v: {k: x for k, x in v.items() if k != "initrd"}, "protocol.launch.malformed"),
        (lambda v: {**v, "vcpus": "2"}, "protocol.launch.malformed"),
    ],
)
def test_other_schemas_are_refused(edit: Any, code: str) -> None:
    value = edit(json.loads(launch().blob()))
    with pytest.raises(FormatRefused) as caught:
        parse_launch_blob(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
    assert caught.value.code == code


@pytest.mark.parametrize("change", [lambda b: b + b"\n", lambda b: b.replace(b":", b": ", 1)])
def test_only_canonical_bytes_are_accepted(change: Any) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_launch_blob(change(launch().blob()))
    assert caught.value.code == "protocol.launch.not_canonical"


def test_too_long_is_refused() -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_launch_blob(b" " * 5000)
    assert caught.value.code == "protocol.launch.too_long"


def test_truncation_at_every_offset_is_refused() -> None:
    blob = launch().blob()
    for end in range(len(blob)):
        with pytest.raises(FormatRefused):
            parse_launch_blob(blob[:end])


@given(st.binary(max_size=600))
def test_any_bytes_never_crash(data: bytes) -> None:
    try:
        parse_launch_blob(data)
    except Refused:
        return
    raise AssertionError("random bytes parsed")
