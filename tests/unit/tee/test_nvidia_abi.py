"""Reports of NVIDIA devices, byte by byte: layout, opaque data, identifiers and the firmware id in certificates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509

from cloister.crypto.x509path import verify_path
from cloister.errors import EndorsementError, FormatRefused, Refused
from cloister.tee.nvidia_gpu import abi, opaque
from cloister.tee.nvidia_gpu.abi import encode_report, parse_report, signed_part
from cloister.tee.nvidia_gpu.certificate import DeviceIdentity, read_identity
from cloister.tee.nvidia_gpu.endorsements import (
    PINS,
    document_id,
    driver_rim_id,
    rim_url,
    switch_rim_id,
    vbios_rim_id,
)
from cloister.testing import nvidia
from cloister.testing.nvidia import NOW, DevicePKI, DeviceProfile, FakeDevice
from cloister.wire.limits import SPDM_BYTES

REPORT = abi.Report(
    nonce=bytes(range(32)),
    slot=0,
    blocks=(abi.Block(index=1, kind=1, value=b"m" * 48), abi.Block(index=3, kind=0x81, value=b"n" * 32)),
    responder_nonce=bytes(32),
    opaque=((3, b"1.20\0"), (4096, b"")),
    signature=bytes(96),
)
RESPONSE = 37


@pytest.fixture(scope="module")
def pki() -> DevicePKI:
    return DevicePKI()


def refusal(data: bytes) -> str:
    with pytest.raises(FormatRefused) as caught:
        parse_report(data)
    return caught.value.code


def patched(offset: int, value: bytes) -> bytes:
    data = encode_report(REPORT)
    return data[:offset] + value + data[offset + len(value) :]


def test_a_report_reads_back() -> None:
    data = encode_report(REPORT)
    assert parse_report(data) == REPORT
    assert signed_part(data, REPORT) == data[:-96] == abi.encode_signed(REPORT)
    assert data[:4] == bytes.fromhex("11e001ff")
    assert data[RESPONSE : RESPONSE + 4] == bytes.fromhex("11600000")


def test_one_zero_byte_pads_to_an_even_length_and_nothing_else_does() -> None:
    odd = replace(REPORT, opaque=((3, b"1.2\0"), (4096, b"")))
    data = encode_report(odd)
    assert len(data) % 2 == 1
    padded = replace(odd, padded=True)
    assert encode_report(padded) == data + b"\0"
    assert parse_report(data + b"\0") == padded
    assert signed_part(data + b"\0", padded) == data[:-96]
    for behind in (b"\x01", b"\0\0", b"\0\0\0", b"\n"):
        assert refusal(data + behind) == "tee.nvidia_gpu.report.trailing_bytes"
    even = encode_report(REPORT)
    assert len(even) % 2 == 0
    assert refusal(even + b"\0") == "tee.nvidia_gpu.report.trailing_bytes"
    with pytest.raises(RuntimeError):
        encode_report(replace(REPORT, padded=True))


def test_every_cut_refuses() -> None:
    data = encode_report(REPORT)
    for length in range(len(data)):
        assert refusal(data[:length]).startswith("tee.nvidia_gpu.report.")


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"\x12"),  # SPDM 1.2 signs another way
        (1, b"\xe1"),
        (2, b"\x00"),  # no signature asked for
        (2, b"\x03"),
        (3, b"\x01"),  # one measurement only
        (36, b"\x01"),  # answered from another slot than asked
        (36, b"\x08"),
        (RESPONSE, b"\x12"),
        (RESPONSE + 1, b"\x61"),
        (RESPONSE + 2, b"\x01"),
        (RESPONSE + 3, b"\x01"),
        (RESPONSE + 4, b"\x01"),  # fewer blocks than there are
        (RESPONSE + 4, b"\x03"),
        (RESPONSE + 8, b"\x00"),  # index 0
        (RESPONSE + 9, b"\x02"),  # not DMTF
        (RESPONSE + 10, b"\x34"),  # block longer than its value
        (RESPONSE + 8 + 55, b"\x01"),  # the same index again
    ],
)
def test_what_is_not_this_message_refuses(offset: int, value: bytes) -> None:
    assert refusal(patched(offset, value)) == "tee.nvidia_gpu.report.malformed"


def test_lengths_and_counts() -> None:
    assert refusal(patched(RESPONSE + 5, b"\xff\xff\xff")) == "tee.nvidia_gpu.report.too_long"
    assert refusal(bytes(SPDM_BYTES + 1)) == "tee.nvidia_gpu.report.too_long"
    assert refusal(encode_report(replace(REPORT, blocks=()))) == "tee.nvidia_gpu.report.malformed"
    assert refusal(encode_report(replace(REPORT, opaque=((3, b"a"), (3, b"a"))))) == "tee.nvidia_gpu.report.malformed"
    long = (abi.Block(index=1, kind=1, value=bytes(65)),)
    assert refusal(encode_report(replace(REPORT, blocks=long))) == "tee.nvidia_gpu.report.malformed"
    over = ((3, bytes(1021)),)
    assert refusal(encode_report(replace(REPORT, opaque=over))) == "tee.nvidia_gpu.report.too_long"
    backwards = replace(REPORT, blocks=REPORT.blocks[::-1])
    assert refusal(encode_report(backwards)) == "tee.nvidia_gpu.report.malformed"


def test_opaque_data_of_a_gpu() -> None:
    found = opaque.read_opaque(
        (
            (3, b"550.90.07\0"),
            (6, bytes.fromhex("009f009601000000")),
            (11, b"\x55"),
            (17, b"1010\0"),
            (22, bytes(8) + bytes(range(8)) * 2),
            (36, b"\x02\0"),
            (999, b"?"),
        ),
        switch=False,
    )
    assert (found.driver_version, found.vbios_version, found.project) == ("550.90.07", "96.00.9F.00.01", "1010")
    assert found.nvdec0_disabled
    assert found.switch_pdis == {bytes(range(7, -1, -1))}
    assert found.mode == "PPCIE"
    assert found.config["nvdec0_status"] == "U"
    assert found.config["vbios_version"] == "96.00.9f.00.01"
    assert (found.own_pdi, found.gpu_pdis, found.fwid) == (b"", frozenset(), b"")


def test_opaque_data_of_a_switch() -> None:
    found = opaque.read_opaque(
        ((6, b"96.10.73.00.01"), (22, b"12345678"), (26, b"abcdefgh" * 2 + bytes(48) + b"ports")), switch=True
    )
    assert found.vbios_version == "96.10.73.00.01"
    assert (found.own_pdi, found.gpu_pdis, found.switch_pdis) == (b"12345678", {b"abcdefgh"}, frozenset())
    assert not found.nvdec0_disabled


@pytest.mark.parametrize(
    ("kind", "value", "switch"),
    [
        (3, b"550 90", False),
        (3, b"550\0.90", False),
        (3, b"../../etc", False),
        (3, b"\xff", False),
        (3, b"1" * 65, False),
        (6, bytes(7), False),
        (6, b"96/10", True),
        (12, bytes(5), False),
        (20, bytes(47), False),
        (22, bytes(9), False),
        (22, bytes(16), True),
        (26, bytes(63), True),
        (36, b"\x03\0", False),
    ],
)
def test_a_value_without_the_form_of_its_type_refuses(kind: int, value: bytes, switch: bool) -> None:
    with pytest.raises(FormatRefused) as caught:
        opaque.read_opaque(((kind, value),), switch=switch)
    assert caught.value.code == "tee.nvidia_gpu.opaque.malformed"


def identity_of(pki: DevicePKI, device: FakeDevice) -> DeviceIdentity:
    certificates = [item.certificate for item in device.chain]
    path = verify_path(
        certificates[0], anchors=[pki.root.certificate], intermediates=certificates[1:-1], at=NOW, code="test"
    )
    return read_identity(path)


@pytest.mark.parametrize(
    ("profile", "chip", "arch"),
    [(nvidia.GPU, "GH100", "HOPPER"), (nvidia.BLACKWELL, "GB100", "BLACKWELL"), (nvidia.SWITCH, "LS10", "LS10")],
)
def test_identity_in_a_chain(pki: DevicePKI, profile: DeviceProfile, chip: str, arch: str) -> None:
    identity = identity_of(pki, pki.device(replace(profile, pdi=b"8 bytes!")))
    assert (identity.chip, identity.arch, identity.pdi) == (chip, arch, b"8 bytes!")
    assert identity.fwids == (profile.fwid,)
    assert identity.switch is (arch == "LS10")
    assert not identity.debug


@pytest.mark.parametrize(
    ("flags", "debug"),
    [
        ("80000001", False),
        ("00000000", False),
        ("10000000", True),  # bit 3 as DICE counts, from the first byte's highest
        ("00000008", True),  # bit 3 from the other end
        ("90000001", True),
        ("10", True),
    ],
)
def test_debug_flag_of_either_bit_order(pki: DevicePKI, flags: str, debug: bool) -> None:
    device = pki.device(replace(nvidia.BLACKWELL, flags=bytes.fromhex(flags)))
    assert identity_of(pki, device).debug is debug


def test_a_certificate_without_flags_says_nothing_of_debug(pki: DevicePKI) -> None:
    identity = identity_of(pki, pki.device(replace(nvidia.BLACKWELL, flags=None)))
    assert (identity.flags, identity.debug) == (None, False)


def test_both_extensions_must_agree(pki: DevicePKI) -> None:
    identity = identity_of(pki, pki.device(replace(nvidia.GPU, dice="both")))
    assert identity.fwids == (nvidia.GPU.fwid,)
    assert identity.flags == bytes.fromhex("80000001")


def test_a_zero_firmware_id_matches_nothing(pki: DevicePKI) -> None:
    assert identity_of(pki, pki.device(replace(nvidia.BLACKWELL, fwid=bytes(48)))).fwids == ()


@pytest.mark.parametrize(
    "profile",
    [
        replace(nvidia.GPU, leaf_name="GH100 A01 GSP BROM LF"),
        replace(nvidia.GPU, leaf_name="GB100 A01 GSP FMC LF"),  # of another chip than its BROM
        replace(nvidia.GPU, leaf_name="CONNECTX-7 DEVICE ID"),
        replace(nvidia.GPU, chip="GA100"),
        replace(nvidia.GPU, dice="none"),
    ],
)
def test_a_chain_of_another_use_refuses(pki: DevicePKI, profile: DeviceProfile) -> None:
    with pytest.raises(EndorsementError) as caught:
        identity_of(pki, pki.device(profile))
    assert caught.value.code == "tee.nvidia_gpu.chain.role"


def test_a_root_of_another_name_is_not_a_device_root(pki: DevicePKI) -> None:
    device = pki.device()
    certificates = tuple(item.certificate for item in device.chain)
    other = nvidia.issue("NVIDIA CoRIM signing Root CA").certificate
    for path in ((*certificates[:4], other), certificates[:4], (*certificates, other)):
        with pytest.raises(EndorsementError) as caught:
            read_identity(path)
        assert caught.value.code == "tee.nvidia_gpu.chain.role"


def test_a_burnt_in_key_without_an_identifier_refuses(pki: DevicePKI) -> None:
    leaf, brom, *rest = (item.certificate for item in pki.device().chain)
    for serial in ("", "41" + "0" * 14, "41" + "g" * 16):
        nameless = nvidia.issue("GH100 A01 GSP BROM", pki.provisioner("GH100"), serial_number=serial).certificate
        assert brom.subject != nameless.subject
        with pytest.raises(EndorsementError) as caught:
            read_identity((leaf, nameless, *rest))
        assert caught.value.code == "tee.nvidia_gpu.chain.role"


COMPOSITE, TCB_INFO = "2.23.133.5.4.1", "2.23.133.5.4.1.1"


@pytest.mark.parametrize(
    ("oid", "der"),
    [
        (COMPOSITE, b""),
        (COMPOSITE, b"\x30\x00"),
        (COMPOSITE, b"\x30\x03\x02\x01\x01"),
        (COMPOSITE, b"\x30\x80\x00\x00"),  # indefinite length
        (COMPOSITE, b"\x30\x81\x03\x02\x01\x01"),  # length not in its shortest form
        (COMPOSITE, b"\x3f\x81\x00\x00"),  # tag of several bytes
        (COMPOSITE, b"\x30\x07\x02\x01\x01\x30\x00\x30\x00"),  # firmware id without an algorithm
        (TCB_INFO, b"\x30\x00"),
        (TCB_INFO, b"\x30\x02\xa6\x00"),  # no firmware id
        (TCB_INFO, b"\x30\x04\xa6\x00\xa6\x00"),
        (TCB_INFO, b"\x30\x04\x87\x02\x00\x00"),
    ],
)
def test_other_firmware_extensions_refuse(pki: DevicePKI, oid: str, der: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        identity_of(pki, leaf_with(pki, oid, der))
    assert caught.value.code == "tee.nvidia_gpu.chain.dice"


def test_a_firmware_id_of_another_hash_refuses(pki: DevicePKI) -> None:
    short = pki.device(replace(nvidia.GPU, fwid=bytes(47)))
    with pytest.raises(FormatRefused) as caught:
        identity_of(pki, short)
    assert caught.value.code == "tee.nvidia_gpu.chain.dice"


def test_flags_that_are_no_bits_refuse(pki: DevicePKI) -> None:
    for flags in (b"", bytes(5)):
        with pytest.raises(FormatRefused):
            identity_of(pki, pki.device(replace(nvidia.BLACKWELL, flags=flags)))


def leaf_with(pki: DevicePKI, oid: str, value: bytes) -> FakeDevice:
    device = pki.device()
    item = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
    leaf = nvidia.issue("GH100 A01 GSP FMC LF", device.chain[1], ca=False, extensions=[item])
    return replace(device, chain=(leaf, *device.chain[1:]))


@pytest.mark.parametrize("oid", ["2.23.133.5.4.1", "2.23.133.5.4.1.1"])
def test_every_cut_and_flip_of_the_firmware_extension_is_a_refusal_or_another_id(pki: DevicePKI, oid: str) -> None:
    profile = nvidia.BLACKWELL if oid.endswith(".1.1") else nvidia.GPU
    source = pki.device(profile).chain[0].certificate
    good = source.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    assert isinstance(good, x509.UnrecognizedExtension)
    der = good.value
    damaged = [der[:length] for length in range(len(der))] + [der + b"\0"]
    damaged += [der[:place] + bytes([der[place] ^ 0x41]) + der[place + 1 :] for place in range(len(der))]
    unharmed = 0
    for value in damaged[::3]:  # each needs two signatures
        try:
            unharmed += identity_of(pki, leaf_with(pki, oid, value)).fwids == (profile.fwid,)
        except Refused as err:
            assert err.code in ("tee.nvidia_gpu.chain.dice", "tee.nvidia_gpu.chain.role")
    # Names, versions and the key beside the firmware id are not read; the id itself always is.
    assert unharmed < len(damaged[::3])


def test_identifiers_of_manifests() -> None:
    assert driver_rim_id(arch="HOPPER", chip="GH100", version="550.90.07") == "NV_GPU_DRIVER_GH100_550.90.07"
    assert driver_rim_id(arch="BLACKWELL", chip="GB100", version="590.48.01") == "NV_GPU_CC_DRIVER_GB100_590.48.01"
    identity = vbios_rim_id(project="g525", project_sku="0220", chip_sku="886", version="97.00.E4.00.11")
    assert identity == "NV_GPU_VBIOS_G525_0220_886_9700E40011"
    assert switch_rim_id(version="96.10.73.00.01") == "NV_SWITCH_BIOS_5612_0002_890_9610730001"
    assert rim_url(identity) == f"https://rim.attestation.nvidia.com/v1/rim/{identity}"
    assert document_id("1010_0200_882_96005E0001_PROD.swidtag") == "NV_GPU_VBIOS_1010_0200_882_96005E0001"
    for name in ("NV_GPU_DRIVER_GH100_550.90.07", "rims/nv_gpu_driver_gh100_550.90.07.xml"):
        assert document_id(name) == "NV_GPU_DRIVER_GH100_550.90.07"


def test_pins_are_two_roots() -> None:
    assert [pin.sha256.hex()[:8] for pin in PINS] == ["102bf659", "12977b51"]
