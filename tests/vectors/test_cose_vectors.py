"""Nitro documents, CCA tokens and claims, Hygon and IBM structures made by others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import EndorsementError, FormatRefused, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Examination, Unchecked, Verdict
from cloister.tee.cca.claims import PlatformClaims, RealmClaims, parse_claims_json
from cloister.tee.cca.endorsements import parse_cca_roots
from cloister.tee.hygon_csv.abi import encode_report, parse_root_certificate
from cloister.tee.hygon_csv.evidence import parse_evidence
from cloister.tee.ibm_se import abi
from cloister.tee.ibm_se.endorsements import HostKey, verify_host_key_document
from cloister.tee.registry import pins_for, reader_for
from cloister.tee.verification import examine_evidence

Cases = Mapping[str, Mapping[str, Any]]
# Reasons of the cases to the codes that stand for them.
REASONS: dict[str, tuple[str, ...]] = {
    "format": (
        "tee.nitro.document.malformed",
        "tee.nitro.document.trailing_bytes",
        "tee.cca.platform.claims",
        "tee.cca.realm.claims",
    ),
    "signature": ("tee.nitro.document.signature", "tee.cca.platform.signature"),
    "expired": ("tee.nitro.certificate.expired", "tee.ibm_se.host_key.expired", "tee.ibm_se.signer.expired"),
    "chain": ("tee.cca.no_anchor", "tee.ibm_se.signer.untrusted"),
    "nonce": ("evidence.freshness",),
    "debug": ("appraisal.debug",),
    "revoked": ("tee.ibm_se.revocation.revoked",),
    "crl_signature": ("tee.ibm_se.revocation.crl_signature",),
    "unsupported": ("tee.hygon_csv.cannot_verify", "tee.ibm_se.cannot_verify"),
}
# Every platform whose cases are judged here.
OURS = {"nitro": "nitro", "cca": "cca", "csv": "csv", "ibm-se": "se"}


@pytest.fixture(scope="session")
def cases(evidence_vectors: Path) -> Cases:
    """Our cases by id."""
    loaded = json.loads((evidence_vectors / "cases.json").read_text())
    return {case["id"]: case for case in loaded if case["platform"] in OURS}


def stands_for(code: str, reason: str) -> bool:
    return code.startswith(REASONS[reason])


def time_of(case: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(case["at"]) if case["at"] else datetime(2026, 1, 1, tzinfo=UTC)


def examine(vectors: Path, case: Mapping[str, Any]) -> Examination:
    tee = OURS[case["platform"]]
    roots = [
        root for name in case["trust_roots"] for root in parse_cca_roots((vectors / name).read_bytes(), origin=name)
    ]
    nonce = case.get("nonce")
    return examine_evidence(
        Evidence(tee=tee, body=reader_for(tee)((vectors / case["file"]).read_bytes(), tee=tee).body),
        ExpectedBinding(
            report_data=bytes.fromhex(nonce) if nonce else Unchecked(reason="not requested"),
            init_data_digest=Unchecked(reason="not requested"),
            exact=True,
        ),
        Endorsements(roots=tuple(roots), pins=pins_for(tee)),
        AppraisalPolicy(
            id="vectors", tees=frozenset({tee}), levels=frozenset({Level.HARDWARE}), accept_debug=False, digest=""
        ),
        Unchecked(reason="not requested"),
        at=time_of(case),
    )


def test_evidence(evidence_vectors: Path, cases: Cases) -> None:
    judged = 0
    for name, case in cases.items():
        if case["kind"] not in ("evidence", "evidence-unsupported"):
            continue
        expect, result = case["expect"], examine(evidence_vectors, case)
        judged += 1
        assert result.verdict.value in (expect["verdict"], *expect.get("verdict_any", ())), name
        assert expect["authentic"] in (None, result.authentic), name
        assert expect["bound"] in (None, result.bound.value), name
        native = result.claims.native if result.claims is not None else {}
        assert {key: native.get(key) for key in expect["claims"]} == expect["claims"], name
        if expect["reason"]:
            codes = [finding.code for finding in result.findings if finding.refuses or finding.unknown]
            assert codes, name
            assert all(stands_for(code, expect["reason"]) for code in codes), (name, codes)
    assert judged == 16


def test_claim_sets(evidence_vectors: Path, cases: Cases) -> None:
    judged = 0
    for name, case in cases.items():
        if case["kind"] != "claims":
            continue
        judged += 1
        data = (evidence_vectors / case["file"]).read_bytes()
        if case["expect"]["valid"]:
            assert isinstance(parse_claims_json(data), RealmClaims | PlatformClaims), name
            continue
        with pytest.raises(FormatRefused) as caught:
            parse_claims_json(data)
        assert stands_for(caught.value.code, case["expect"]["reason"]), name
    assert judged == 17


def test_a_token_of_one_platform_and_a_realm_of_another_do_not_fit(evidence_vectors: Path, cases: Cases) -> None:
    from cloister.tee.cca.abi import PLATFORM_LABEL, REALM_LABEL, encode_token
    from cloister.wire.cbor import decode_cbor

    good = cases["cca/rmm-trustee"]
    other = cases["cca/veraison-good"]
    parts = [
        decode_cbor((evidence_vectors / case["file"]).read_bytes(), ceiling=1 << 16, code="t").value
        for case in (good, other)
    ]
    spliced = encode_token(parts[0][PLATFORM_LABEL], parts[1][REALM_LABEL])
    roots = parse_cca_roots((evidence_vectors / good["trust_roots"][0]).read_bytes(), origin="iak")
    result = examine_evidence(
        Evidence(tee="cca", body={"token": list(spliced)}),
        ExpectedBinding(report_data=Unchecked(reason="-"), init_data_digest=Unchecked(reason="-")),
        Endorsements(roots=roots),
        AppraisalPolicy(id="v", tees=frozenset({"cca"}), levels=frozenset(Level), accept_debug=True, digest=""),
        Unchecked(reason="-"),
        at=time_of(good),
    )
    assert (result.verdict, result.findings[0].code) == (Verdict.REFUSE, "tee.cca.binding")


def test_a_trust_anchor_store_names_its_platform(evidence_vectors: Path) -> None:
    directory = evidence_vectors / "cca" / "rmm-trustee"
    (named,) = parse_cca_roots((directory / "tastore.json").read_bytes(), origin="store")
    (plain,) = parse_cca_roots((directory / "iak.jwk.json").read_bytes(), origin="key")
    assert named.der == plain.der
    assert named.instance == "0107060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"
    assert plain.instance == ""


def host_key(vectors: Path, case: Mapping[str, Any]) -> HostKey:
    return verify_host_key_document(
        (vectors / case["file"]).read_bytes(),
        certificates=[(vectors / name).read_bytes() for name in case["endorsements"]],
        revocation_lists=[(vectors / name).read_bytes() for name in case["crls"]],
        roots=[(vectors / name).read_bytes() for name in case["trust_roots"]],
        at=time_of(case),
    )


# What the cases leave open. The newer signing service is accepted; its CRL bears the older name, so none is found.
OPEN_HOST_KEYS = {
    "ibm-se/hkd-pki#crl-missing": False,
    "ibm-se/hkd-pki#armonk": False,
    "ibm-se/hkd-pki#host_uri_na.crt": True,
}


def test_host_key_documents(evidence_vectors: Path, cases: Cases) -> None:
    judged = 0
    for name, case in cases.items():
        if case["kind"] != "endorsement":
            continue
        judged += 1
        valid, reason = case["expect"]["valid"], case["expect"]["reason"]
        if valid is False and reason != "stale_collateral":
            with pytest.raises(EndorsementError) as caught:
                host_key(evidence_vectors, case)
            assert stands_for(caught.value.code, reason), (name, caught.value.code)
            continue
        found = host_key(evidence_vectors, case)
        assert found.usable is (OPEN_HOST_KEYS[name] if valid is None else valid), name
        assert len(found.findings) == 3, name
        if not found.usable:
            states = [finding.actual for finding in found.findings if finding.unknown]
            assert states == [
                "list in force 2022-03-22T15:52:39+00:00 to 2023-03-22T15:52:39+00:00 only"
                if reason == "stale_collateral"
                else "no list of its issuer was given"
            ], name
    assert judged == 12


def test_structures_of_secure_execution(evidence_vectors: Path, cases: Cases) -> None:
    parsers = {
        "arcb.bin": (abi.parse_request, abi.encode_request),
        "secure_guest.hdr": (abi.parse_image_header, abi.encode_image_header),
        "exchange.bin": (abi.parse_exchange, abi.encode_exchange),
        "keyslot.bin": (abi.parse_key_slot, abi.encode_key_slot),
    }
    names = {case["file"].rpartition("/")[2] for case in cases.values() if case["kind"] == "parse"}
    assert names == set(parsers)
    directory = evidence_vectors / "ibm-se" / "structures"
    for name, (parse, encode) in parsers.items():
        data = (directory / name).read_bytes()
        parsed: Any = parse(data)
        assert encode(parsed) == data  # type: ignore[operator]  # one of four pairs
        for cut in range(len(data)):
            with pytest.raises(FormatRefused):
                parse(data[:cut])
    request = abi.parse_request((directory / "arcb.bin").read_bytes())
    assert request.slots == (abi.parse_key_slot((directory / "keyslot.bin").read_bytes()),)
    assert len(request.encrypted) == 80
    assert abi.parse_image_header((directory / "secure_guest.hdr").read_bytes()).pages == 0xFC25
    exchange = abi.parse_exchange((directory / "exchange.bin").read_bytes())
    assert [len(item) for item in (exchange.request, exchange.measurement, exchange.additional)] == [16, 64, 32]
    read = reader_for("se")((directory / "exchange.bin").read_bytes(), tee="se")
    with pytest.raises(Refused):
        reader_for("se")(b"pvattest", tee="se")
    assert read.form == "pvattest exchange file"


def test_a_report_of_hygon_csv(evidence_vectors: Path) -> None:
    directory = evidence_vectors / "hygon-csv" / "evidence"
    body = json.loads((directory / "evidence.json").read_bytes())
    parsed = parse_evidence(Evidence(tee="csv", body=body))
    assert parsed.report is not None
    assert (parsed.serial_number, parsed.report.serial_number) == ("KPA64911240507", "KPA64911240507")
    assert (parsed.report.policy, parsed.report.signature_usage, parsed.report.signature_algorithm) == (0x45, 0x1002, 4)
    assert parsed.report.report_data == bytes(64)
    assert (parsed.key_name, parsed.has_chain) == ("HYGON-SSD-PEK", False)
    assert encode_report(parsed.report) == bytes(body["attestation_report"]["data"])
    root = parse_root_certificate((directory / "hrk.cert").read_bytes())
    assert (root.user_id, root.key_id == root.issuer_id, root.usage, root.curve) == ("HYGON-SSD-HRK", True, 0, 3)
