"""Collateral in its two forms, and the statements inside."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.errors import EndorsementError
from cloister.rats.endorsement import Document, Endorsements
from cloister.tee.dcap.collateral import Collateral, gather_collateral, read_collateral
from cloister.tee.dcap.statements import parse_qe_identity, parse_tcb_info
from cloister.testing.dcap import FMSPC, FakeIntel, pem, qe_identity_of, tcb_info_of
from cloister.wire.limits import COLLATERAL_BYTES, COLLATERAL_DOCUMENTS


def read(data: bytes) -> Collateral:
    return read_collateral(Document(name="document", data=data))


def refused(data: bytes) -> str:
    with pytest.raises(EndorsementError) as caught:
        read(data)
    return caught.value.code


def test_one_document_of_nine_members(intel: FakeIntel) -> None:
    members = intel.collateral_members("TDX")
    found = read(json.dumps(members, indent=1).encode())
    assert found.tcb_infos[0].text == members["tcb_info"].encode()
    assert found.qe_identities[0].signature.hex() == members["qe_identity_signature"]
    assert len(found.revocation_lists) == 2
    assert found.certificates[0] != found.certificates[1]


def test_lists_may_be_pem(intel: FakeIntel) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    members = intel.collateral_members("TDX")
    der = bytes.fromhex(members["pck_crl"])
    members["pck_crl"] = x509.load_der_x509_crl(der).public_bytes(Encoding.PEM).decode()
    assert read(json.dumps(members).encode()).revocation_lists[1] == der


@pytest.mark.parametrize("space", ["", " ", "\n  "])
def test_a_statement_keeps_its_exact_bytes(intel: FakeIntel, space: str) -> None:
    text = json.dumps(tcb_info_of("TDX"), indent=3).replace("UpToDate", "\\u0055pToDate")
    signature = intel.sign(text.encode())
    answer = f'{{{space}"tcbInfo":{space}{text}{space},{space}"signature":{space}"{signature.hex()}"{space}}}'
    statement = read(answer.encode()).tcb_infos[0]
    assert (statement.text, statement.signature) == (text.encode(), signature)


def test_an_enclave_identity_alone(intel: FakeIntel) -> None:
    text = json.dumps(qe_identity_of("SGX"))
    found = read(f'{{"enclaveIdentity":{text},"signature":"{intel.sign(text.encode()).hex()}"}}'.encode())
    assert (found.tcb_infos, found.qe_identities[0].text) == ((), text.encode())


def test_chains_and_lists_beside_it(intel: FakeIntel) -> None:
    chain = pem(intel.tcb_signing.certificate, intel.root.certificate).encode()
    assert len(read(chain).certificates) == 2
    found = gather_collateral(
        Endorsements(
            roots=(),
            certificates=(intel.root_der,),
            revocation_lists=(b"list",),
            documents=(Document(name="a", data=chain), Document(name="b", data=intel.collateral("TDX"))),
        )
    )
    assert found.revocation_lists[-1] == b"list"
    assert found.certificates.count(intel.root_der) == 1
    assert len(found.tcb_infos) == 1


@pytest.mark.parametrize("data", [b"", b"<xml/>", b"\x30\x82", b'{"rim": 1}', b"{", b'{"tcb": 1}', b"text"])
def test_documents_of_other_technologies_are_passed_over(data: bytes) -> None:
    assert read(data) == Collateral()


def _without(intel: FakeIntel, name: str) -> bytes:
    members = intel.collateral_members("TDX")
    del members[name]
    return json.dumps(members).encode()


def test_collateral_that_does_not_parse_is_refused(intel: FakeIntel) -> None:
    good = intel.collateral_members("TDX")
    for changed in (
        {**good, "extra": ""},
        {**good, "tcb_info_signature": "00"},
        {**good, "tcb_info_signature": "zz" * 64},
        {**good, "qe_identity_signature": 7},
        {**good, "pck_crl": "0"},
        {**good, "tcb_info_issuer_chain": "no PEM"},
        {**good, "qe_identity_issuer_chain": pem(intel.root.certificate).replace("M", "!")},
    ):
        assert refused(json.dumps(changed).encode()) == "tee.dcap.collateral.malformed"
    for name in good:
        assert refused(_without(intel, name)) == "tee.dcap.collateral.malformed"
    for text in (b'{"tcbInfo":{},"signature":"00"}', b'{"tcbInfo":{}', b'{"tcbInfo":{},"enclaveIdentity":{}}'):
        assert refused(text) == "tee.dcap.collateral.malformed"
    both = f'{{"tcbInfo":{{}},"enclaveIdentity":{{}},"signature":"{"00" * 64}"}}'
    assert refused(both.encode()) == "tee.dcap.collateral.malformed"


def test_ceilings() -> None:
    assert refused(b"{" + b" " * COLLATERAL_BYTES) == "tee.dcap.collateral.malformed"
    documents = (Document(name="", data=b""),) * (COLLATERAL_DOCUMENTS + 1)
    with pytest.raises(EndorsementError):
        gather_collateral(Endorsements(roots=(), documents=documents))


def test_a_tcb_info() -> None:
    info = parse_tcb_info(json.dumps(tcb_info_of("TDX")).encode())
    assert (info.id, info.fmspc, info.pce_id, info.evaluation_number) == ("TDX", FMSPC, bytes(2), 19)
    assert info.issued == datetime(2026, 6, 21, tzinfo=UTC)
    assert info.levels[1].advisories == ("INTEL-SA-01036",)
    assert [module.id for module in info.modules] == ["TDX_01"]
    assert parse_tcb_info(json.dumps(tcb_info_of("SGX")).encode()).module is None


def test_an_identity_skips_members_it_does_not_know() -> None:
    identity = parse_qe_identity(json.dumps({**qe_identity_of("TDX"), "later": {"x": []}}).encode())
    assert (identity.id, identity.isv_prod_id, identity.misc_select_mask) == ("TD_QE", 2, 0xFFFFFFFF)


def _levels(**changes: Any) -> dict[str, Any]:
    level = tcb_info_of("TDX")["tcbLevels"][0]
    return {"tcbLevels": [{**level, **changes}]}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": 4},
        {"id": "QE"},
        {"tcbType": 1},
        {"fmspc": "90"},
        {"fmspc": "zz" * 6},
        {"issueDate": "yesterday"},
        {"issueDate": "2026-06-21T00:00:00"},
        {"nextUpdate": None},
        {"tcbLevels": {}},
        {"tcbEvaluationDataNumber": "19"},
        {"tdxModule": {"mrsigner": "00", "attributes": "00" * 8, "attributesMask": "00" * 8}},
        _levels(tcbStatus="Fine"),
        _levels(tcbDate=""),
        _levels(tcb={"sgxtcbcomponents": [{"svn": 0}] * 15, "pcesvn": 0, "tdxtcbcomponents": [{"svn": 0}] * 16}),
        _levels(tcb={"sgxtcbcomponents": [{"svn": 0}] * 16, "pcesvn": 0, "tdxtcbcomponents": [{"svn": 0}] * 15}),
        _levels(tcb={"sgxtcbcomponents": [{"svn": 0}] * 16, "pcesvn": 0}),
    ],
)
def test_malformed_tcb_infos(changes: dict[str, Any]) -> None:
    with pytest.raises(EndorsementError) as caught:
        parse_tcb_info(json.dumps({**tcb_info_of("TDX"), **changes}).encode())
    assert caught.value.code == "tee.dcap.tcb_info.malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"mrsigner": "00" * 31},
        {"mrsigner": "00 " * 32},
        {"attributes": "1100"},
        {"miscselectMask": ""},
        {"isvprodid": 2.5},
        {"tcbLevels": [{"tcb": {"isvsvn": 1}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": ""}]},
    ],
)
def test_malformed_identities(changes: dict[str, Any]) -> None:
    with pytest.raises(EndorsementError) as caught:
        parse_qe_identity(json.dumps({**qe_identity_of("TDX"), **changes}).encode())
    assert caught.value.code == "tee.dcap.qe_identity.malformed"


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_statement_at_all(text: bytes) -> None:
    with pytest.raises(EndorsementError):
        parse_tcb_info(text)
    with pytest.raises(EndorsementError):
        parse_qe_identity(text)
