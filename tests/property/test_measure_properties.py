"""Files that predictions and explanations read: whatever their bytes, only refusals come out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.crypto.dsse import verify_envelope
from cloister.crypto.jwt import key_id
from cloister.crypto.references import sign_reference_set, verify_reference_set
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import FormatRefused, Refused
from cloister.imagetool.measure.snp import SNPFirmware
from cloister.imagetool.measure.tdx import mrtd
from cloister.rats.reference import Component, ReferenceEntry
from cloister.rats.referenceset import ReferenceSet, encode_reference_set, parse_reference_set
from cloister.sdk.measured import read_measured
from cloister.sdk.references import Platform
from cloister.testing.firmware import PAGE, fake_firmware

FIRMWARE = fake_firmware(size=PAGE)
STRUCTURED = (PAGE - 2048, PAGE)  # metadata and table of GUIDs lie here
NOW = datetime(2026, 11, 26, tzinfo=UTC)
SIGNER = ECDSAP256Signer.generate()
KEYS = {key_id(SIGNER.public_key): SIGNER.public_key}
DIGESTS = st.binary(min_size=20, max_size=64)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
ENTRIES = st.builds(
    ReferenceEntry,
    id=NAMES,
    tee=st.sampled_from(["tpm", "snp", "tdx"]),
    registers=st.dictionaries(NAMES, DIGESTS, min_size=1, max_size=3),
    not_after=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 1), timezones=st.just(UTC)),
    origin=NAMES,
    components=st.dictionaries(st.sampled_from(Component), NAMES),
)
SETS = st.builds(
    ReferenceSet,
    id=st.from_regex(r"[a-z0-9][a-z0-9._/-]{0,127}", fullmatch=True),
    version=st.integers(1, 2**53 - 1),
    issued_at=st.just(NOW),
    not_after=st.just(NOW + timedelta(days=30)),
    entries=st.lists(ENTRIES, min_size=1, max_size=4, unique_by=lambda entry: entry.id).map(tuple),
)


def launch(data: bytes) -> None:
    SNPFirmware(data).launch_digests(None, vcpus=[1])


@pytest.mark.parametrize("read", [launch, mrtd])
@given(at=st.integers(STRUCTURED[0], STRUCTURED[1] - 1), value=st.integers(0, 255))
def test_firmware_with_a_damaged_byte(read: object, at: int, value: int) -> None:
    changed = bytearray(FIRMWARE)
    changed[at] = value
    try:
        read(bytes(changed))  # type: ignore[operator]  # one of two functions
    except FormatRefused as err:
        assert err.code in {"imagetool.snp.firmware", "imagetool.tdx.firmware"}


@pytest.mark.parametrize("read", [launch, mrtd])
@given(data=st.binary(max_size=600))
@example(data=b"")
def test_firmware_of_any_bytes(read: object, data: bytes) -> None:
    for firmware in (data, data.rjust(PAGE, b"\0"), FIRMWARE[: len(data)] + data):
        with pytest.raises(FormatRefused):
            read(firmware)  # type: ignore[operator]  # one of two functions


@given(st.integers(0, PAGE - 1))
def test_firmware_cut_at_any_place(length: int) -> None:
    for data in (FIRMWARE[:length], FIRMWARE[PAGE - length :]):
        for read in (launch, mrtd):
            with pytest.raises(FormatRefused):
                read(data)


@given(SETS)
def test_sets_are_read_back_equal(values: ReferenceSet) -> None:
    data = encode_reference_set(values)
    assert parse_reference_set(data) == values
    verified = verify_reference_set(sign_reference_set(values, SIGNER), KEYS, at=NOW, seen={})
    assert verified.values == values


SIGNED = sign_reference_set(
    ReferenceSet(
        id="a",
        version=1,
        issued_at=NOW,
        not_after=NOW + timedelta(days=1),
        entries=(ReferenceEntry(id="e", tee="tpm", registers={"r": bytes(32)}, not_after=NOW, origin="o"),),
    ),
    SIGNER,
)


@given(st.integers(0, len(SIGNED) - 1), st.integers(0, 7))
def test_a_flipped_bit_of_a_signed_set_never_changes_what_is_accepted(at: int, bit: int) -> None:
    honest = verify_reference_set(SIGNED, KEYS, at=NOW, seen={}).values
    changed = bytearray(SIGNED)
    changed[at] ^= 1 << bit
    try:
        assert verify_reference_set(bytes(changed), KEYS, at=NOW, seen={}).values == honest  # white space
    except Refused as err:
        assert err.code.startswith(("crypto.dsse.", "rats.reference."))


@given(st.integers(0, len(SIGNED) - 4))
def test_a_signed_set_cut_at_any_place_is_refused(length: int) -> None:
    with pytest.raises(Refused):
        verify_reference_set(SIGNED[:length], KEYS, at=NOW, seen={})


@given(st.binary(max_size=200))
def test_any_bytes_are_no_set_no_envelope_and_no_evidence(data: bytes) -> None:
    with pytest.raises(Refused):
        parse_reference_set(data)
    with pytest.raises(Refused):
        verify_envelope(data, KEYS, payload_type="x", ceiling=1000)
    for platform in Platform:
        for text in (data, b"{" + data, b'{"quote": "' + data.hex().encode() + b'"}'):
            with pytest.raises(Refused):
                read_measured(text, platform)
