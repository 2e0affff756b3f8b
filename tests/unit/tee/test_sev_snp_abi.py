"""Layouts of SNP: the report, the certificate table, product lines, CoCo's JSON shape, the certificate's extensions."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import EndorsementError, EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.sev_snp.abi import P384_ORDER, VCEK, VLEK, Report, encode_report, parse_report
from cloister.tee.sev_snp.certtable import GUIDS, encode_certificate_table, parse_certificate_table
from cloister.tee.sev_snp.cocoshape import encode_body, encode_shape
from cloister.tee.sev_snp.evidence import parse_evidence, read_evidence
from cloister.tee.sev_snp.products import (
    CLASSIC,
    PRODUCTS,
    WITH_FMC,
    product_of_cpu,
    product_of_name,
    silicon_of_cpu,
)
from cloister.tee.sev_snp.vek import VEK, load_vek
from cloister.testing.snp import CPUS, TCBS, FakeAMD, FakeChip, der_ia5, der_integer
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import SNP_CERTIFICATES


@pytest.fixture(scope="module")
def genoa() -> FakeChip:
    """A chip."""
    return FakeChip.made_by(FakeAMD("Genoa"))


@pytest.fixture(scope="module")
def turin() -> FakeChip:
    """A chip with a short id and an FMC."""
    return FakeChip.made_by(FakeAMD("Turin"))


def refused(data: bytes) -> str:
    with pytest.raises(FormatRefused) as caught:
        parse_report(data)
    return caught.value.code.removeprefix("tee.sev_snp.report.")


def changed(report: bytes, offset: int, value: bytes) -> bytes:
    return report[:offset] + value + report[offset + len(value) :]


# --- the report ---


@pytest.mark.parametrize("version", [2, 3, 5])
def test_a_report_of_each_version_is_read_where_the_specification_puts_it(version: int, genoa: FakeChip) -> None:
    data = genoa.report(version=version, vmpl=3, guest_svn=7, platform_info=0x21)
    report = parse_report(data)
    assert (report.version, report.vmpl, report.guest_svn) == (version, 3, 7)
    assert struct.unpack_from("<I", data, 0x30) == (3,)
    assert data[0x90:0xC0] == report.measurement
    assert data[0x50:0x90] == report.report_data
    assert data[0x1A0:0x1E0] == report.chip_id == genoa.chip_id
    assert data[0x180:0x188] == report.reported_tcb
    assert report.cpuid == (CPUS["Genoa"] if version >= 3 else None)
    assert data[0x188:0x18B] == (bytes(CPUS["Genoa"]) if version >= 3 else bytes(3))
    assert data[0x1E8:0x1EB] == bytes([1, 58, 1])  # build, minor, major
    assert report.current == (1, 58, 1)
    assert struct.unpack_from("<Q", data, 0x1F8) == (report.launch_mitigations,)
    assert report.launch_mitigations == (0x1F if version >= 5 else 0)
    assert encode_report(report) == data


def test_the_order_of_the_curve() -> None:
    """(n-1)G is -G: the same x, another y."""
    one, last = (
        ec.derive_private_key(number, ec.SECP384R1()).public_key().public_numbers() for number in (1, P384_ORDER - 1)
    )
    assert one.x == last.x
    assert one.y != last.y


def test_a_report_has_exactly_its_length(genoa: FakeChip) -> None:
    data = genoa.report()
    assert refused(data[:-1]) == "truncated"
    assert refused(b"") == "truncated"
    assert refused(data + b"\0") == "trailing_bytes"


@pytest.mark.parametrize("version", [0, 1, 4, 6, 2**32 - 1])
def test_other_versions_are_refused(version: int, genoa: FakeChip) -> None:
    assert refused(changed(genoa.report(), 0, struct.pack("<I", version))) == "version"


@pytest.mark.parametrize("algorithm", [0, 2, 0x101])
def test_other_algorithms_are_refused(algorithm: int, genoa: FakeChip) -> None:
    assert refused(genoa.report(signature_algorithm=algorithm)) == "algorithm"


@pytest.mark.parametrize("offset", [0x4B, 0x4C, 0x4F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x208, 0x29F, 0x330, 0x49F])
def test_reserved_bytes_are_zero(offset: int, genoa: FakeChip) -> None:
    assert refused(changed(genoa.report(version=5), offset, b"\x80")) == "malformed"


def test_what_a_newer_version_added_is_reserved_in_an_older_one(genoa: FakeChip) -> None:
    for offset in (0x188, 0x189, 0x18A, 0x1F8, 0x207):
        assert refused(changed(genoa.report(version=2), offset, b"\x01")) == "malformed"
    for offset in (0x1F8, 0x1FF, 0x200, 0x207):
        assert refused(changed(genoa.report(version=3), offset, b"\x01")) == "malformed"


@pytest.mark.parametrize("policy", [0, 0x10000, 0x30000 | 1 << 26, 0x30000 | 1 << 63])
def test_policy_bits_that_nobody_defined(policy: int, genoa: FakeChip) -> None:
    assert refused(genoa.report(policy=policy)) == "malformed"


def test_the_signature_is_a_pair_of_numbers_of_the_curve(genoa: FakeChip) -> None:
    report = parse_report(genoa.report())
    good = encode_report(report)
    for offset in (0x2A0, 0x2E8):
        for number in (0, P384_ORDER, P384_ORDER + 1, 1 << 384, 1 << 575):
            assert refused(changed(good, offset, number.to_bytes(72, "little"))) == "signature_range"


def test_bits_of_key_information(genoa: FakeChip) -> None:
    assert parse_report(genoa.report(key_info=VLEK << 2)).signing_key == VLEK
    assert parse_report(genoa.report(key_info=0b11)).signing_key == VCEK
    assert parse_report(genoa.report(key_info=7 << 2)).signing_key == 7
    assert refused(genoa.report(key_info=1 << 5)) == "malformed"


# --- product lines ---


@pytest.mark.parametrize(
    ("family", "model", "stepping", "line", "silicon"),
    [
        (0x19, 0x01, 1, "Milan", "Milan"),
        (0x19, 0x01, 2, "Milan", "Milan-X"),
        (0x19, 0x11, 1, "Genoa", "Genoa"),
        (0x19, 0x11, 2, "Genoa", "Genoa-X"),
        (0x19, 0xA0, 2, "Genoa", "Bergamo"),
        (0x1A, 0x02, 1, "Turin", "Turin"),
        (0x1A, 0x11, 0, "Turin", "Turin Dense"),
    ],
)
def test_which_line_a_cpu_is_of(family: int, model: int, stepping: int, line: str, silicon: str) -> None:
    product = product_of_cpu(family, model)
    assert product is not None
    assert product.line == line
    assert silicon_of_cpu(family, model, stepping) == silicon


@pytest.mark.parametrize(("family", "model"), [(0x17, 0x31), (0x19, 0x20), (0x19, 0xB0), (0x1A, 0x12), (0x1A, 0x50)])
def test_a_cpu_of_no_line(family: int, model: int) -> None:
    assert product_of_cpu(family, model) is None
    assert silicon_of_cpu(family, model, 0) == ""


def test_names_of_lines_in_certificates() -> None:
    lines = {name: getattr(product_of_name(name), "line", None) for name in ("Milan-B0", "Milan", "Genoa-A1", "Turin")}
    assert lines == {"Milan-B0": "Milan", "Milan": "Milan", "Genoa-A1": "Genoa", "Turin": "Turin"}
    assert [product_of_name(name) for name in ("", "Rome", "milan", "Milanese", "-Milan")] == [None] * 5


def test_tcb_layouts() -> None:
    assert CLASSIC.decode(bytes([10, 0, 0, 0, 0, 0, 23, 84]), code="x.y") == {
        "bootloader": 10, "tee": 0, "snp": 23, "microcode": 84,
    }  # fmt: skip
    turin = {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 74}
    assert WITH_FMC.encode(turin) == bytes([1, 2, 3, 4, 0, 0, 0, 74])
    assert WITH_FMC.decode(WITH_FMC.encode(turin), code="x.y") == turin
    with pytest.raises(FormatRefused) as caught:
        CLASSIC.decode(WITH_FMC.encode(turin), code="x.y")
    assert caught.value.code == "x.y.malformed"


def test_every_line_has_a_root_of_its_own() -> None:
    assert len({item.ark_sha256 for item in PRODUCTS}) == len({item.key for item in PRODUCTS}) == len(PRODUCTS) == 3


# --- the host's table ---


def table_error(data: bytes) -> str:
    with pytest.raises(FormatRefused) as caught:
        parse_certificate_table(data)
    return caught.value.code.removeprefix("tee.sev_snp.certificate_table.")


def test_the_table_of_certificates() -> None:
    entries = (("VCEK", b"one"), ("ASK", b"two"), ("CRL", b"three"))
    data = encode_certificate_table(entries)
    assert parse_certificate_table(data) == entries
    assert parse_certificate_table(data + bytes(4096)) == entries  # hosts pad it to pages
    assert parse_certificate_table(b"") == parse_certificate_table(bytes(4096)) == ()


def test_guids_are_read_in_both_orders_and_others_are_left_out() -> None:
    guid = GUIDS["VLEK"]
    mixed = guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]
    for name, found in ((guid, (("VLEK", b"abcd"),)), (mixed, (("VLEK", b"abcd"),)), (b"\x01" * 16, ())):
        data = struct.pack("<16sII", name, 48, 4) + bytes(24) + b"abcd"
        assert parse_certificate_table(data) == found


def test_tables_that_lie() -> None:
    good = encode_certificate_table((("VCEK", b"abcd"),))
    guid = GUIDS["VCEK"]
    assert table_error(good[:30]) in ("truncated", "malformed")
    assert table_error(struct.pack("<16sII", guid, 48, 5) + bytes(24) + b"abcd") == "malformed"
    assert table_error(struct.pack("<16sII", guid, 48, 0) + bytes(24) + b"abcd") == "malformed"
    assert table_error(struct.pack("<16sII", guid, 2**32 - 1, 2) + bytes(24)) == "malformed"
    assert table_error(struct.pack("<16sII", guid, 0, 4) + bytes(24) + b"abcd") == "malformed"
    assert table_error(struct.pack("<16sII", guid, 24, 4) + b"abcd") == "truncated"
    assert table_error(struct.pack("<16sII", bytes(16), 1, 0) + b"abcd") == "malformed"
    assert table_error(bytes(65536) + b"x") == "too_long"
    many = struct.pack("<16sII", guid, 600, 1) * (SNP_CERTIFICATES + 1) + bytes(300)
    assert table_error(many) == "malformed"


# --- files and JSON ---


def test_forms_a_report_is_found_in(genoa: FakeChip) -> None:
    data = genoa.report()
    raw = read_evidence(data, tee="snp")
    assert raw.form == "raw report"
    assert parse_evidence(Evidence(tee="snp", body=raw.body)).report == data
    extended = read_evidence(data + genoa.certificate_table(), tee="snp")
    assert extended.form == "raw report with the host's certificate table"
    parsed = parse_evidence(Evidence(tee="snp", body=extended.body))
    assert parsed.report == data
    assert parsed.certificates[0] == genoa.vek
    assert len(parsed.certificates) == 3


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 23, b"x", b"x" * 24])
def test_a_raw_report_is_followed_by_a_table_or_by_nothing(tail: bytes, genoa: FakeChip) -> None:
    with pytest.raises(FormatRefused) as caught:
        read_evidence(genoa.report() + tail, tee="snp")
    assert caught.value.code.startswith("tee.sev_snp.")


@pytest.mark.parametrize("data", [b"", b"x", b"{", b"[]", bytes(1183)])
def test_files_that_hold_no_evidence(data: bytes) -> None:
    with pytest.raises(FormatRefused):
        read_evidence(data, tee="snp")


@pytest.mark.parametrize("line", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("version", [2, 3, 5])
def test_cocos_shape_gives_back_exactly_the_report(line: str, version: int) -> None:
    chip = FakeChip.made_by(FakeAMD(line))
    data = chip.report(version=version, platform_info=2**64 - 1, report_data=bytes(range(64)))
    body = encode_body(parse_report(data), parse_certificate_table(chip.certificate_table()))
    shape = body["attestation_report"]
    assert shape["cpuid_fam_id"] == (CPUS[line][0] if version >= 3 else None)
    assert shape["reported_tcb"]["fmc"] == TCBS[line].get("fmc")
    assert (shape["launch_mit_vector"] is not None) is (version >= 5)
    parsed = parse_evidence(Evidence(tee="snp", body=body))
    assert parsed.report == data
    assert parsed.certificates[0] == chip.vek


def test_certificates_beside_the_report_in_all_spellings(genoa: FakeChip) -> None:
    pem = b"-----BEGIN CERTIFICATE-----\n" + encode_b64(genoa.vek).encode() + b"\n-----END CERTIFICATE-----\n"
    chain = [
        {"cert_type": "VCEK", "data": list(pem)},
        {"cert_type": {"OTHER": "00000000-0000-0000-0000-000000000001"}, "data": [1]},
        {"cert_type": "CRL", "data": [2]},
    ]
    body = {"attestation_report": encode_b64(genoa.report()), "cert_chain": chain}
    parsed = parse_evidence(Evidence(tee="snp", body=body))
    assert parsed.certificates == (genoa.vek, b"\x01")
    assert parsed.revocation_lists == (b"\x02",)
    assert parse_evidence(Evidence(tee="snp", body={**body, "cert_chain": None})).certificates == ()


def shape_of(chip: FakeChip, version: int = 5) -> dict[str, Any]:
    return encode_shape(parse_report(chip.report(version=version)))


def body_error(shape: Mapping[str, Any], **members: Any) -> str:
    with pytest.raises((FormatRefused, EvidenceError)) as caught:
        parse_evidence(Evidence(tee="snp", body={"attestation_report": shape, **members}))
    return caught.value.code


def test_shapes_that_are_not_cocos(genoa: FakeChip, turin: FakeChip) -> None:
    good = shape_of(genoa)
    bad = [
        {**good, "extra": 1},
        {**good, "vmpl": 2**32},
        {**good, "policy": 2**64},
        {**good, "plat_info": -1},
        {**good, "measurement": good["measurement"][:-1]},
        {**good, "measurement": [*good["measurement"][:-1], 256]},
        {**good, "measurement": [*good["measurement"][:-1], True]},
        {**good, "measurement": "00" * 48},
        {**good, "cpuid_fam_id": None},
        {**good, "launch_mit_vector": None},
        {**good, "current_mit_vector": 2**64},
        {**good, "reported_tcb": {**good["reported_tcb"], "fmc": 0}},
        {**good, "reported_tcb": {"bootloader": 1}},
        {**good, "current": {"major": 1, "minor": 2}},
        {**good, "signature": {"r": [0] * 72}},
        {**good, "signature": {"r": [255] * 72, "s": [1] * 72}},
        {name: value for name, value in good.items() if name != "vmpl"},
        {**shape_of(turin), "launch_tcb": {**shape_of(turin)["launch_tcb"], "fmc": None}},
        {**shape_of(genoa, 2), "cpuid_fam_id": 25},
        {**shape_of(genoa, 3), "current_mit_vector": 0},
    ]
    for shape in bad:
        assert body_error(shape) == "tee.sev_snp.malformed"
    assert body_error(good, more=1) == "tee.sev_snp.malformed"
    assert body_error(good, cert_chain=[{"cert_type": "VCEK"}]) == "tee.sev_snp.malformed"
    one = {"cert_type": "VCEK", "data": [0]}
    assert body_error(good, cert_chain=[one] * (SNP_CERTIFICATES + 1)) == "tee.sev_snp.malformed"
    assert body_error(good, cert_chain=[{**one, "data": [0] * 5_000_000}]) == "tee.sev_snp.malformed"
    with pytest.raises(FormatRefused):
        parse_evidence(Evidence(tee="snp", body={"attestation_report": "not base64!"}))
    with pytest.raises(EvidenceError):
        parse_evidence(Evidence(tee="tpm", body={"attestation_report": good}))


# --- the certificate of the key ---


def vek(line: str = "Genoa", **issue: Any) -> VEK:
    amd = FakeAMD(line)
    hwid = issue.pop("hwid", bytes(range(amd.product.hwid_bytes)))
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return load_vek(amd.issue(key, hwid=hwid, **issue).public_bytes(Encoding.DER))


def vek_error(line: str = "Genoa", **issue: Any) -> str:
    with pytest.raises(EndorsementError) as caught:
        vek(line, **issue)
    return caught.value.code.removeprefix("tee.sev_snp.vek.")


@pytest.mark.parametrize("first", [0x00, 0x04, 0xFF])
@pytest.mark.parametrize(("line", "size"), [("Milan", 64), ("Genoa", 64), ("Turin", 8)])
def test_the_hardware_id_in_its_encodings(line: str, size: int, first: int) -> None:
    """A chip id may begin with the bytes of an OCTET STRING: only the length tells."""
    chip = bytes([first, size]) + bytes(range(size - 2))
    assert vek(line, hwid=chip).hwid == chip
    assert vek(line, hwid=bytes([4, size]) + chip).hwid == chip
    for wrong in (chip[:-1], chip + b"\0", b"\x05" + bytes([size]) + chip, b"\x04" + bytes([size - 1]) + chip, b""):
        assert vek_error(line, hwid=wrong) == "extension"


def test_what_a_certificate_says() -> None:
    found = vek("Turin")
    assert (found.product.line, found.product_name, found.struct_version, found.csp_id) == ("Turin", "Turin", 1, "")
    assert found.tcb == TCBS["Turin"]
    cloud = vek("Milan", kind=VLEK)
    assert (cloud.hwid, cloud.csp_id, cloud.product_name) == (b"", "CN=cloud.example", "Milan")


@pytest.mark.parametrize("oid", ["1", "2", "3.1", "3.2", "3.3", "3.8", "3.9", "4"])
def test_a_missing_extension_is_no_zero(oid: str) -> None:
    assert vek_error("Turin", changes={oid: None}) == "extension"


@pytest.mark.parametrize(
    "value", [b"", b"\x02", b"\x02\x00", b"\x02\x01\x80", b"\x02\x02\x00\x05", b"\x02\x02\x01\x00", b"\x04\x01\x05",
              b"\x02\x01\x05\x00", b"\x02\x04\x00\x00\x00\x05"]
)  # fmt: skip
def test_components_are_integers_of_one_byte_in_der(value: bytes) -> None:
    assert vek_error(changes={"3.3": value}) == "extension"


@pytest.mark.parametrize("value", [b"", b"Genoa", b"\x16\x06Genoa", b"\x0c\x05Genoa", b"\x16\x01\xff", b"\x16\x00"])
def test_the_product_name_is_a_text(value: bytes) -> None:
    assert vek_error(changes={"2": value}) == "extension"


def test_certificates_of_no_known_line_and_of_another_layout() -> None:
    assert vek_error(changes={"2": der_ia5("Venice")}) == "product"
    assert vek_error("Genoa", changes={"1": der_integer(1)}) == "product"
    assert vek_error("Turin", changes={"1": der_integer(0)}) == "product"


def test_certificates_for_other_keys() -> None:
    amd = FakeAMD()
    for key in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)):
        certificate = amd.issue(key.public_key(), hwid=bytes(64))  # type: ignore[arg-type]  # a VEK of another kind
        with pytest.raises(EndorsementError) as caught:
            load_vek(certificate.public_bytes(Encoding.DER))
        assert caught.value.code == "tee.sev_snp.vek.key"


def test_reserved_components_and_those_of_other_lines_are_not_lost() -> None:
    assert vek(changes={"3.4": der_integer(3), "3.9": der_integer(0)}).tcb == TCBS["Genoa"] | {"spl4": 3, "fmc": 0}


def test_a_report_is_a_value() -> None:
    assert isinstance(hash(parse_report(FakeChip.made_by(FakeAMD()).report())), int)
    assert Report.__slots__
