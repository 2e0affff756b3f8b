"""The SGX extension of PCK certificates, and the chain in a quote."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509

from cloister.errors import EndorsementError, FormatRefused
from cloister.tee.dcap.chain import PCK_CAS, common_name, parse_quote_chain
from cloister.tee.dcap.pck import EXTENSION, _read_extension, parse_pck_extension
from cloister.testing.dcap import FMSPC, FakeIntel, FakePlatform, Machine, pem


def test_all_members(intel: FakeIntel) -> None:
    machine = Machine(components=tuple(range(16)), pce_svn=0x1234)
    found = parse_pck_extension(FakePlatform(intel, machine=machine).pck)
    assert found.components == tuple(range(16))
    assert (found.pce_svn, found.fmspc, found.pce_id, found.ppid) == (0x1234, FMSPC, bytes(2), b"\x77" * 16)
    assert found.cpu_svn == bytes(range(16))
    assert (found.sgx_type, found.platform_instance) == ("Scalable", b"\x66" * 16)
    assert (found.dynamic_platform, found.cached_keys, found.smt_enabled) == (True, False, True)


def test_a_single_socket_platform_has_fewer(intel: FakeIntel) -> None:
    found = parse_pck_extension(FakePlatform(intel, machine=Machine(platform_instance=b"")).pck)
    assert (found.sgx_type, found.platform_instance, found.dynamic_platform) == ("Standard", b"", None)


def test_a_certificate_without_it_is_refused(intel: FakeIntel) -> None:
    with pytest.raises(EndorsementError) as caught:
        parse_pck_extension(intel.tcb_signing.certificate)
    assert caught.value.code == "tee.dcap.pck.extension"


def _value(intel: FakeIntel) -> bytes:
    value = FakePlatform(intel).pck.extensions.get_extension_for_oid(EXTENSION).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def test_every_truncation_and_a_trailing_byte_are_refused(intel: FakeIntel) -> None:
    der = _value(intel)
    for changed in (*(der[:end] for end in range(len(der))), der + b"\0"):
        with pytest.raises(EndorsementError):
            _read_extension(changed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (bytes.fromhex("0a0101"), bytes.fromhex("0a0103")),  # unknown SGX type
        (bytes.fromhex("2a864886f84d010d0104"), bytes.fromhex("2a864886f84d010d0103")),  # PCE id twice, no FMSPC
        (bytes.fromhex("2a864886f84d010d010203020105"), bytes.fromhex("2a864886f84d010d010203020185")),  # negative
        (bytes.fromhex("0406") + FMSPC, bytes.fromhex("0306") + FMSPC),  # FMSPC of another type
        (bytes.fromhex("2a864886f84d010d01020a"), bytes.fromhex("2a864886f84d010d01030a")),  # OID of another prefix
    ],
)
def test_odd_members_are_refused(intel: FakeIntel, old: bytes, new: bytes) -> None:
    der = _value(intel)
    assert der.count(old) == 1
    with pytest.raises(EndorsementError) as caught:
        _read_extension(der.replace(old, new))
    assert caught.value.code == "tee.dcap.pck.extension"


def test_a_long_form_length_must_be_the_shortest() -> None:
    for der in ("30810100", "3082000100", "308300000100", "3080"):
        with pytest.raises(EndorsementError):
            _read_extension(bytes.fromhex(der))


def test_a_version_out_of_range_is_refused(intel: FakeIntel) -> None:
    for machine in (Machine(pce_svn=0x10000), replace(Machine(), fmspc=bytes(5))):
        with pytest.raises(EndorsementError):
            _read_extension(machine.extension())


def test_the_chain_of_a_quote(intel: FakeIntel) -> None:
    platform = FakePlatform(intel)
    text = pem(*platform.chain).encode()
    for form in (text, text + b"\0", text.replace(b"\n", b"\r\n")):
        assert parse_quote_chain(form) == platform.chain
    assert common_name(platform.chain[1]) == PCK_CAS[0]


def test_nothing_may_stand_between_the_blocks(intel: FakeIntel) -> None:
    text = pem(*FakePlatform(intel).chain).encode()
    first = text.index(b"-----END")
    for changed in (
        b"",
        b" " + text,
        b"text\n" + text,
        text + b"text",
        text + b"\0\0",
        text.replace(b"-----\n-----", b"-----\n#\n-----", 1),
        text[:first] + b"\x0b" + text[first:],
        text.replace(b"CERTIFICATE", b"PUBLIC KEY"),
        text.replace(b"\n", b"", 2),
        text.replace(b"A", b"B", 1),
    ):
        with pytest.raises(FormatRefused) as caught:
            parse_quote_chain(changed)
        assert caught.value.code == "tee.dcap.pck_chain.malformed"


def test_one_certificate_is_no_chain_and_seven_are_none(intel: FakeIntel) -> None:
    platform = FakePlatform(intel)
    for certificates in ((platform.pck,), platform.chain * 3):
        with pytest.raises(FormatRefused):
            parse_quote_chain(pem(*certificates).encode())
