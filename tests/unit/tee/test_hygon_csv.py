"""Hygon CSV: strict reading, and a verifier that accepts nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister.errors import EvidenceError, FormatRefused, Unavailable
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Severity, Unchecked, Verdict
from cloister.rats.rules import PlatformRules
from cloister.tee.hygon_csv import abi
from cloister.tee.hygon_csv.appraisal import appraise_platform
from cloister.tee.hygon_csv.attester import ATTESTER
from cloister.tee.hygon_csv.evidence import parse_evidence, read_evidence
from cloister.tee.hygon_csv.verifier import authenticate, read_claims
from cloister.tee.verification import examine_evidence, verify_evidence
from cloister.testing.cca import NOW

SERIAL = "KPA00000000000"
REPORT = abi.Report(
    user_pubkey_digest=bytes(32),
    vm_id=bytes(16),
    vm_version=bytes(16),
    report_data=bytes(range(64)),
    mnonce=b"m" * 16,
    measurement=b"\xab" * 32,
    policy=0x45,
    signature_usage=0x1002,
    signature_algorithm=4,
    anonce=b"\x26\xd7\xc7\x5d",
    signature=b"s" * 144,
    pek=b"p" * abi.PEK_BYTES,
    serial_number=SERIAL,
    mac=b"c" * 32,
)
ROOT = b"".join(
    (
        (1).to_bytes(4, "little"),
        b"k" * 16,
        b"i" * 16,
        bytes(28),
        (3).to_bytes(4, "little"),
        bytes(144),
        (4).to_bytes(2, "little"),
        b"NAME".ljust(254, b"\0"),
        bytes(108),
        b"s" * 144,
        bytes(112),
    )
)
POLICY = AppraisalPolicy(
    id="test", tees=frozenset({"csv", "se"}), levels=frozenset(Level), accept_debug=True, digest="",
    accept_unchecked_revocation=True,
)  # fmt: skip


def body() -> dict[str, Any]:
    scalars = {"r": [0] * 72, "s": [0] * 72}
    signature = {"usage": 1, "algo": 4, "signature": scalars, "_reserved": [0] * 368}
    name = list(b"PEK".ljust(254, b"\0"))
    data = {
        "firmware": {"major": 1, "minor": 3},
        "reserved1": 0,
        "pubkey": {"usage": 4098, "algo": 4, "key": {"g": 3, "x": [0] * 72, "y": [0] * 72}},
        "uid_size": 3,
        "user_id": name,
        "sid": [0] * 16,
        "reserved2": [0] * 608,
    }
    return {
        "attestation_report": {"data": list(abi.encode_report(REPORT)), "flags": 0, "magic": [0] * 16},
        "cert_chain": {"pek": {"body": {"ver": 1, "data": data}, "sigs": [signature, signature]}},
        "serial_number": list(SERIAL.encode().ljust(64, b"\0")),
        "cc_eventlog": None,
    }


def changed(path: str, value: Any) -> Evidence:
    found = body()
    place, (*parents, last) = found, path.split(".")
    for name in parents:
        place = place[name]
    place[last] = value
    return Evidence(tee="csv", body=found)


def test_a_report_reads_back() -> None:
    assert abi.parse_report(abi.encode_report(REPORT)) == REPORT
    parsed = parse_evidence(Evidence(tee="csv", body=body()))
    assert (parsed.report, parsed.serial_number, parsed.key_name, parsed.has_chain) == (REPORT, SERIAL, "PEK", False)


def test_it_accepts_nothing_and_says_what_is_missing() -> None:
    evidence = Evidence(tee="csv", body=body())
    root = TrustedRoot(tee="csv", level=Level.HARDWARE, name="any", der=ROOT)
    for endorsements in (Endorsements(roots=()), Endorsements(roots=(root,))):
        result = examine_evidence(
            evidence,
            ExpectedBinding(report_data=bytes(range(64)), init_data_digest=Unchecked(reason="-")),
            endorsements,
            POLICY,
            Unchecked(reason="-"),
            at=NOW,
        )
        assert (result.verdict, result.authentic, result.acceptable) == (Verdict.UNAVAILABLE, False, False)
        (finding,) = result.findings
        assert (finding.code, finding.severity) == ("tee.hygon_csv.cannot_verify", Severity.UNAVAILABLE)
        assert finding.hint
        assert result.claims is None
    with pytest.raises(Unavailable) as caught:
        verify_evidence(evidence, ExpectedBinding(report_data=b"", init_data_digest=b""), root_less(), at=NOW)
    assert caught.value.code == "tee.hygon_csv.cannot_verify"


def root_less() -> Endorsements:
    return Endorsements(roots=())


def test_the_second_version_and_the_vendors_chain_are_recognised() -> None:
    second = changed("attestation_report.magic", list(abi.EXTENDED_MAGIC))
    assert parse_evidence(second).report is None
    chained = changed("cert_chain.hsk_cek", {"hsk": {}, "cek": {}})
    assert parse_evidence(chained).has_chain
    with pytest.raises(Unavailable, match="came with it"):
        authenticate(chained, root_less(), at=NOW)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("attestation_report.data", [0] * 4095),
        ("attestation_report.data", [256] * 4096),
        ("attestation_report.data", [*abi.encode_report(REPORT)[:-1], 1]),
        ("attestation_report.magic", [1] * 16),
        ("attestation_report.more", 1),
        ("cert_chain.pek.body.ver", "1"),
        ("cert_chain.pek.body.data.user_id", [-1]),
        ("cert_chain.more", 1),
        ("serial_number", []),
        ("serial_number", [0] * 64),
        ("serial_number", [32] * 64),
        ("serial_number", [200] * 64),
        ("cc_eventlog", "?"),
        ("more", 1),
    ],
)
def test_other_members_are_refused(path: str, value: Any) -> None:
    with pytest.raises(FormatRefused) as caught:
        authenticate(changed(path, value), root_less(), at=NOW)
    assert caught.value.code in ("tee.hygon_csv.malformed", "tee.hygon_csv.report.malformed")


def test_reserved_bytes_of_a_report_are_zero() -> None:
    data = bytearray(abi.encode_report(REPORT))
    data[336 + abi.PEK_BYTES + 64] = 1
    with pytest.raises(FormatRefused) as caught:
        abi.parse_report(bytes(data))
    assert caught.value.code == "tee.hygon_csv.report.malformed"


def test_certificates_of_hygon() -> None:
    root = abi.parse_root_certificate(ROOT)
    assert (root.user_id, root.key_id, root.issuer_id, root.curve) == ("NAME", b"k" * 16, b"i" * 16, 3)
    long_name = ROOT[:212] + (255).to_bytes(2, "little") + ROOT[214:]
    no_name = ROOT[:214] + b"\xff" + ROOT[215:]
    for data in (ROOT[:-1], ROOT + b"\0", b"\2" + ROOT[1:], long_name, no_name):
        with pytest.raises(FormatRefused) as caught:
            abi.parse_root_certificate(data)
        assert caught.value.code == "tee.hygon_csv.root.malformed"


def test_the_rest_of_the_package_says_no() -> None:
    with pytest.raises(EvidenceError):
        authenticate(replace(Evidence(tee="csv", body=body()), tee="se"), root_less(), at=NOW)
    with pytest.raises(Unavailable) as caught:
        ATTESTER()
    assert caught.value.code == "tee.hygon_csv.no_attester"
    with pytest.raises(TypeError):
        appraise_platform(None, PlatformRules(), at=NOW)
    assert read_evidence(b"{}", tee="csv").form
    with pytest.raises(FormatRefused):
        read_evidence(b"\0", tee="csv")


def test_claims_are_shown_although_nobody_can_check_them() -> None:
    claims = read_claims(Evidence(tee="csv", body=body())).claims
    assert (claims.level, claims.debug, claims.instance_id) == (Level.SIMULATED, False, SERIAL)
    assert claims.native["measure"] == (b"\xab" * 32).hex()
    second = read_claims(changed("attestation_report.magic", list(abi.EXTENDED_MAGIC))).claims
    assert (second.registers, second.native["report_version"]) == ({}, 2)
