"""Forms in which evidence of TPMs is found: go-tpm-tools' protocol buffer, files of tpm2-tools, Google's extension."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import FormatRefused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence
from cloister.tee.collateral.files import parse_trust_roots
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import PCRSelection
from cloister.tee.tpm.evidence import read_evidence
from cloister.tee.tpm.gotpm import encode_attestation, parse_attestation
from cloister.tee.tpm.instanceinfo import InstanceInfo, parse_instance_info
from cloister.tee.tpm.tpm2tools import join_parts, parse_pcr_file
from cloister.tee.tpm.verifier import authenticate
from cloister.testing.eventlog import build_event_log, seabios_events
from cloister.testing.tpm import AK_PROFILE, NOW, EndorsementCA, FakeTPM, QuoteFaults
from cloister.wire.protobuf import Field, encode_field, encode_varint, parse_message

NONCE = b"\x90\x09"
REGISTERS = (4, 7, 8)


def der(tag: int, content: bytes) -> bytes:
    head = bytes([len(content)]) if len(content) < 0x80 else bytes([0x81, len(content)])
    return bytes([tag]) + head + content


def integer(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


INSTANCE = InstanceInfo(
    zone="us-central1-a",
    project_id="example-project",
    project_number=117,
    instance_name="vm",
    instance_id=(1 << 63) + 5,
    production=True,
    security_version=0,
)
PROPERTIES = der(0xA0, integer(0)) + der(0xA1, der(0x01, b"\xff")) + der(0xA2, der(0x01, b"\x00"))


def extension(properties: bytes | None = PROPERTIES, tail: bytes = b"") -> bytes:
    content = (
        der(0x0C, INSTANCE.zone.encode())
        + integer(INSTANCE.project_number)
        + der(0x0C, INSTANCE.project_id.encode())
        + integer(INSTANCE.instance_id)
        + der(0x0C, INSTANCE.instance_name.encode())
    )
    if properties is not None:
        content += der(0xA0, der(0x30, properties))
    return der(0x30, content + tail)


@pytest.fixture
def machine(ca: EndorsementCA, tpm: FakeTPM) -> FakeTPM:
    return tpm


def attestation(tpm: FakeTPM, certificate: bytes = b"", **changes: object) -> bytes:
    selections = (PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\x90\x01\x00"),)
    pcrs = tpm.read_pcrs()
    faults = QuoteFaults(selections=selections, quoted_values=[pcrs[index] for index in REGISTERS])
    message, signature = tpm.quote(NONCE, faults)
    members: dict[str, object] = {
        "ak_public": tpm.ak_public[2:],
        "message": message,
        "signature": signature,
        "values": {index: pcrs[index] for index in REGISTERS},
        "event_log": build_event_log(seabios_events()),
        "ak_certificate": certificate,
    }
    return encode_attestation(**{**members, **changes})  # type: ignore[arg-type]  # a test changes any member


# go-tpm-tools


def test_an_attestation_verifies_and_its_certificate_says_whose_it_is(machine: FakeTPM, ca: EndorsementCA) -> None:
    profile = replace(AK_PROFILE, instance_info=extension())
    data = attestation(machine, ca.issue(machine.ak_key.public_key(), profile))
    read = read_evidence(data, tee="tpm")
    assert "go-tpm-tools" in read.form
    found = authenticate(Evidence(tee="tpm", body=read.body), ca.endorsements(), at=NOW)
    assert found.freshness.value == NONCE
    assert found.claims.native["gce_instance"] == INSTANCE.as_dict()
    assert found.claims.raw["gce_instance"]["instance_id"] == str(INSTANCE.instance_id)
    assert set(found.claims.registers) == {"pcr04", "pcr07", "pcr08"}
    assert "Google" in found.claims.platform


def test_intermediates_travel_in_the_attestation(machine: FakeTPM, ca: EndorsementCA) -> None:
    issuing = ca.issuing.public_bytes(Encoding.DER)
    data = attestation(machine, ca.issue(machine.ak_key.public_key(), AK_PROFILE), intermediates=(issuing,))
    evidence = Evidence(tee="tpm", body=read_evidence(data, tee="tpm").body)
    assert authenticate(evidence, Endorsements(roots=ca.roots()[1:]), at=NOW)


def test_values_come_in_any_order_and_only_once(machine: FakeTPM) -> None:
    pcrs = machine.read_pcrs()
    backwards = attestation(machine, values={index: pcrs[index] for index in reversed(REGISTERS)})
    assert parse_attestation(backwards) == {**parse_attestation(attestation(machine)), "tpm_quote": _quote(backwards)}
    assert _quote(backwards)["pcrs"] == [pcrs[index].hex() for index in REGISTERS]


def _quote(data: bytes) -> dict[str, object]:
    found: dict[str, object] = parse_attestation(data)["tpm_quote"]
    return found


def test_what_nobody_signed_is_not_read(machine: FakeTPM) -> None:
    plain = attestation(machine)
    padded = plain + encode_field(4, b"\x0a\x04fake") + encode_field(5, b"cel") + encode_field(8, b"x")
    assert parse_attestation(padded) == parse_attestation(plain)


def test_the_sha256_quote_decides(machine: FakeTPM) -> None:
    sha1 = attestation(machine, bank=c.ALG_SHA1)
    with pytest.raises(FormatRefused) as caught:
        parse_attestation(sha1)
    assert caught.value.code == "tee.tpm.attestation.no_sha256_quote"
    good = attestation(machine)
    twice = good + encode_field(2, parse_message(good, _ANY, code="x").text(2))
    with pytest.raises(FormatRefused) as caught:
        parse_attestation(twice)
    assert caught.value.code == "tee.tpm.attestation.no_sha256_quote"


_ANY = {number: Field(name=str(number), most=9, ceiling=1 << 20) for number in range(1, 10)}


def test_a_sha1_quote_that_calls_itself_sha256(machine: FakeTPM) -> None:
    """The bank beside the quote is not signed; the selection inside is."""
    selections = (PCRSelection(algorithm=c.ALG_SHA1, bitmap=b"\x90\x01\x00"),)
    message, signature = machine.quote(NONCE, QuoteFaults(selections=selections))
    data = attestation(machine, message=message, signature=signature)
    key = machine.ak_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    roots = Endorsements(roots=parse_trust_roots("tpm", Level.MEASURED, [("ak", key)]).roots)
    with pytest.raises(Exception) as caught:  # the code below is what matters
        authenticate(Evidence(tee="tpm", body=parse_attestation(data)), roots, at=NOW)
    assert getattr(caught.value, "code", "") == "tee.tpm.pcr_selection"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed"),
        (encode_field(2, b""), "malformed"),
        (encode_field(1, b"k"), "no_sha256_quote"),
        (encode_field(1, b"k") * 2, "malformed"),
        (encode_field(10, b"k"), "unknown_field"),
        (encode_field(1, 7), "unknown_field"),
        (b"\x0d\0\0\0\0", "unknown_field"),
        (b"\x0b\x0c", "unknown_field"),
        (b"\x0a\x05abc", "truncated"),
        (b"\x0a", "truncated"),
        (b"\x8a\x00\x01k", "malformed"),
        (b"\xff" * 11, "malformed"),
        (b"\x0a" + encode_varint(1 << 30), "too_long"),
        (encode_field(1, b"k") + encode_field(2, encode_field(9, b"")), "unknown_field"),
    ],
)
def test_messages_that_are_no_attestation(data: bytes, reason: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_attestation(data)
    assert caught.value.code == f"tee.tpm.attestation.{reason}"


@pytest.mark.parametrize("values", [{24: bytes(32)}, {4: bytes(31)}, {4: bytes(48)}])
def test_values_that_are_none(values: dict[int, bytes], machine: FakeTPM) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_attestation(attestation(machine, values=values))
    assert caught.value.code == "tee.tpm.attestation.malformed"


def test_a_register_given_twice(machine: FakeTPM) -> None:
    entry = encode_field(2, encode_field(1, 4) + encode_field(2, bytes(32)))
    quote = encode_field(1, b"m") + encode_field(2, b"s") + encode_field(3, encode_field(1, c.ALG_SHA256) + entry * 2)
    with pytest.raises(FormatRefused) as caught:
        parse_attestation(encode_field(1, b"k") + encode_field(2, quote))
    assert caught.value.code == "tee.tpm.attestation.malformed"


def test_a_file_longer_than_any(machine: FakeTPM) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_attestation(bytes(9 << 20))
    assert caught.value.code == "tee.tpm.attestation.too_long"


def test_an_attestation_cut_anywhere_is_refused(machine: FakeTPM) -> None:
    data = attestation(machine)
    whole = parse_attestation(data)
    for length in range(len(data)):
        try:
            cut = parse_attestation(data[:length])
        except FormatRefused as err:
            assert err.code.startswith("tee.tpm.attestation.")
        else:  # whole fields are left: the log or the certificate is gone, what is signed is not
            assert (cut["ak_public"], cut["tpm_quote"]) == (whole["ak_public"], whole["tpm_quote"])


# tpm2-tools


def pcr_file(values: list[bytes], *, size: int = 32, lists: int | None = None, count: int | None = None) -> bytes:
    groups = [values[start : start + 8] for start in range(0, len(values), 8)]
    body = b"".join(
        struct.pack("<I", len(group) if count is None else count)
        + b"".join(struct.pack("<H64s", size, value) for value in group)
        + bytes(66 * (8 - len(group)))
        for group in groups
    )
    selection = struct.pack("<IHBBBBxx", 1, c.ALG_SHA256, 3, 0x90, 1, 0) + bytes(15 * 8)
    return selection + struct.pack("<I", len(groups) if lists is None else lists) + body


def test_parts_make_the_evidence_of_one_tpm(machine: FakeTPM) -> None:
    pcrs = machine.read_pcrs()
    selections = (PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\x90\x01\x00"),)
    own = [pcrs[index] for index in REGISTERS]
    message, signature = machine.quote(NONCE, QuoteFaults(selections=selections, quoted_values=own))
    public = machine.ak_key.public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    roots = Endorsements(roots=parse_trust_roots("tpm", Level.MEASURED, [("ak", spki)]).roots)
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for ak in (machine.ak_public, spki, pem):
        body = join_parts(message=message, signature=signature, pcrs=pcr_file(own), ak_public=ak)
        found = authenticate(Evidence(tee="tpm", body=body), roots, at=NOW)
        assert found.claims.registers["pcr07"] == pcrs[7]
    with pytest.raises(FormatRefused) as caught:
        join_parts(message=message, signature=signature, pcrs=pcr_file(own), ak_public=pem * 2)
    assert caught.value.code == "tee.tpm.parts.malformed"


def test_all_registers_take_three_lists() -> None:
    values = [bytes([index]) * 32 for index in range(24)]
    assert parse_pcr_file(pcr_file(values)) == tuple(values)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (pcr_file([bytes(32)])[:-1], "truncated"),
        (pcr_file([bytes(32)]) + b"\0", "trailing_bytes"),
        (pcr_file([bytes(32)], size=20), "malformed"),
        (pcr_file([bytes(32)], lists=7), "malformed"),
        (pcr_file([bytes(32)], lists=2), "truncated"),
        (pcr_file([bytes(32)], count=9), "malformed"),
        (pcr_file([bytes(32)], count=2), "malformed"),
    ],
)
def test_pcr_files_of_another_layout(data: bytes, reason: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_pcr_file(data)
    assert caught.value.code == f"tee.tpm.parts.{reason}"


# Google's extension


def test_the_extension_says_which_instance_it_is() -> None:
    assert parse_instance_info(extension()) == INSTANCE
    bare = parse_instance_info(extension(None))
    assert (bare.production, bare.security_version) == (False, 0)
    assert parse_instance_info(extension(b"")) == bare
    versioned = parse_instance_info(extension(der(0xA0, integer(7))))
    assert (versioned.production, versioned.security_version) == (False, 7)


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        extension() + b"\0",
        extension(tail=b"\x05\x00"),
        b"\x31" + extension()[1:],
        extension(der(0xA1, der(0x01, b"\x01"))),
        extension(der(0xA1, der(0x01, b"\xff")) + der(0xA0, integer(0))),
        extension(der(0xA0, integer(0)) * 2),
        extension(der(0xA0, integer(0) + b"\x05\x00")),
        extension(der(0xA0, der(0x02, b"\x80"))),
        extension(der(0xA0, der(0x02, b"\x00\x01"))),
        extension(der(0xA0, der(0x02, b""))),
        extension(der(0xA0, der(0x02, bytes([1]) * 10))),
        extension(der(0x04, b"")),
        der(0x30, der(0x0C, b"\xff")),
        der(0x30, b"\x0c\x80"),
        der(0x30, b"\x0c\x81\x01x"),
        der(0x30, b"\x0c\x83\x00\x00\x01x"),
    ],
)
def test_extensions_that_do_not_parse(data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_instance_info(data)
    assert caught.value.code.startswith("tee.tpm.instance_info.")


def test_a_broken_extension_refuses_the_certificate(machine: FakeTPM, ca: EndorsementCA) -> None:
    data = attestation(machine, ca.issue(machine.ak_key.public_key(), replace(AK_PROFILE, instance_info=b"\x30\x01")))
    with pytest.raises(FormatRefused) as caught:
        authenticate(Evidence(tee="tpm", body=read_evidence(data, tee="tpm").body), ca.endorsements(), at=NOW)
    assert caught.value.code == "tee.tpm.instance_info.truncated"
