"""Real certificates, collateral and manifests of vendors go through the checks an answer meets before it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509

from cloister.errors import EndorsementError
from cloister.rats.claims import Level
from cloister.rats.evidence import Evidence
from cloister.tee.collateral.amd import vcek_item
from cloister.tee.collateral.content import Content, Entry
from cloister.tee.collateral.files import parse_trust_roots, sort_endorsement_files
from cloister.tee.collateral.intel import assemble, platform_items
from cloister.tee.collateral.item import Item, Kind
from cloister.tee.collateral.needs import follow_up, needs_of
from cloister.tee.collateral.nvidia import rim_item
from cloister.tee.collateral.recipes import RECIPES
from cloister.tee.registry import reader_for
from cloister.tee.sev_snp.endorsements import VCEKIdentity, vcek_url
from cloister.tee.sev_snp.vek import load_vek

# Evidence -> how often each kind is needed. VCEKs come with the evidence or are given beside it where the report is of
# version 2, which does not say its product line.
NEEDS: Final[dict[str, dict[str, int]]] = {
    "snp/milan-v2-vcek": {"amd-chain": 1, "amd-crl": 1},
    "snp/milan-v3-vlek": {"amd-chain": 1, "amd-crl": 1},
    "snp-synthetic/turin-ok#v3": {"amd-chain": 1, "amd-crl": 1},
    "tdx/v4-uptodate": {"tcb-info": 1, "qe-identity": 1, "pck-crl": 1, "intel-root-crl": 1},
    "sgx/v3-confsw": {"tcb-info": 1, "qe-identity": 1, "pck-crl": 1, "intel-root-crl": 1},
    "nvidia/hopper": {"rim": 2, "ocsp": 3},
    "nvidia/blackwell": {"rim": 2, "ocsp": 3},
}


@pytest.fixture(scope="module")
def cases(evidence_vectors: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((evidence_vectors / "cases.json").read_text("utf-8"))
    return found


def _evidence(case: dict[str, Any], directory: Path) -> Evidence:
    read = reader_for(case["platform"])((directory / case["file"]).read_bytes(), tee=case["platform"])
    return Evidence(tee=case["platform"], body=read.body)


@pytest.mark.parametrize("name", NEEDS)
def test_what_real_evidence_needs(name: str, cases: list[dict[str, Any]], evidence_vectors: Path) -> None:
    case = next(item for item in cases if item["id"] == name)
    names = case.get("endorsements") or []
    given = sort_endorsement_files([(item, (evidence_vectors / item).read_bytes()) for item in names])
    items = needs_of(_evidence(case, evidence_vectors), certificates=given.certificates)
    counted = {kind.value: sum(item.kind is kind for item in items) for kind in Kind}
    assert {kind: count for kind, count in counted.items() if count} == NEEDS[name]


def test_every_file_of_every_case_is_sorted(cases: list[dict[str, Any]], evidence_vectors: Path) -> None:
    for case in cases:
        if case["kind"] != "evidence":
            continue
        names = [
            *(case.get("endorsements") or []),
            *([case["collateral"]] if isinstance(case.get("collateral"), str) else case.get("collateral") or []),
        ]
        found = sort_endorsement_files([(name, (evidence_vectors / name).read_bytes()) for name in names])
        assert found.ignored == ()
        assert len(found.certificates) + len(found.revocation_lists) + len(found.documents) >= len(set(names))
        roots = [(name, (evidence_vectors / name).read_bytes()) for name in case["trust_roots"]]
        assert len(parse_trust_roots(case["platform"], Level.HARDWARE, roots).roots) == len(roots)


def _vcek(der: bytes) -> tuple[Item, VCEKIdentity]:
    vek = load_vek(der)
    tcb = tuple((name, vek.tcb[name]) for name in vek.product.layout.places)
    identity = VCEKIdentity(line=vek.product.line, hwid=vek.hwid, tcb=tcb)
    return vcek_item(identity), identity


def test_real_vceks_are_kept_under_their_identity_only(evidence_vectors: Path) -> None:
    files = ("snp/milan-v2-vcek/vcek.der", "snp/turin-vcek-chain/vcek.der", "snp/neg-wrong-vcek/vcek-new.der")
    ders = [(evidence_vectors / name).read_bytes() for name in files]
    items = [_vcek(der)[0] for der in ders]
    for item in items:
        for other, der in zip(items, ders, strict=True):
            if other == item:
                assert RECIPES[item.kind].inspect(item, der, "").data == der
            else:
                with pytest.raises(EndorsementError) as caught:
                    RECIPES[item.kind].inspect(item, der, "")
                assert caught.value.code == "collateral.answer.other"
    _, turin = _vcek(ders[1])
    assert vcek_url(turin, base="").endswith(
        "/vcek/v1/Turin/1e550a8ee5cf9f4d?fmcSPL=00&blSPL=00&teeSPL=00&snpSPL=00&ucodeSPL=09"
    )


def test_real_collateral_is_taken_apart_and_put_together_again(evidence_vectors: Path) -> None:
    for name in ("tdx/v4-uptodate", "tdx/v4-spr-e4", "sgx/v3-confsw"):
        members = json.loads((evidence_vectors / name / "collateral.json").read_text("utf-8"))
        info = json.loads(members["tcb_info"])
        tee = info["id"].lower()
        ca = "platform" if "Platform" in _issuer(bytes.fromhex(members["pck_crl"])) else "processor"
        items = platform_items(tee, bytes.fromhex(info["fmspc"]), ca)
        parts = (
            (_answer("tcbInfo", members, "tcb_info"), members["tcb_info_issuer_chain"]),
            (_answer("enclaveIdentity", members, "qe_identity"), members["qe_identity_issuer_chain"]),
            (bytes.fromhex(members["pck_crl"]), members["pck_crl_issuer_chain"]),
            (bytes.fromhex(members["root_ca_crl"]), ""),
        )
        contents: list[Content] = [
            RECIPES[item.kind].inspect(item, data, chain) for item, (data, chain) in zip(items, parts, strict=True)
        ]
        members.pop("pck_certificate_chain", None)  # of quotes without one; no service publishes it
        assert json.loads(assemble(*contents)) == members
        assert contents[0].sequence == info["tcbEvaluationDataNumber"]


def _issuer(der: bytes) -> str:
    return x509.load_der_x509_crl(der).issuer.rfc4514_string()


def _answer(name: str, members: dict[str, str], member: str) -> bytes:
    return f'{{"{name}":{members[member]},"signature":"{members[member + "_signature"]}"}}'.encode()


def test_edited_collateral_is_refused(evidence_vectors: Path) -> None:
    for file, name, member in (
        ("collateral-tcbinfo-edited.json", "tcbInfo", "tcb_info"),
        ("collateral-qeid-edited.json", "enclaveIdentity", "qe_identity"),
    ):
        members = json.loads((evidence_vectors / "tdx/neg-tampered" / file).read_text("utf-8"))
        info = json.loads(members["tcb_info"])
        items = platform_items("tdx", bytes.fromhex(info["fmspc"]), "platform")
        item = items[0] if member == "tcb_info" else items[1]
        with pytest.raises(EndorsementError) as caught:
            RECIPES[item.kind].inspect(item, _answer(name, members, member), members[f"{member}_issuer_chain"])
        assert caught.value.code == "collateral.answer.malformed"


def test_real_manifests_are_kept_and_name_their_signers(evidence_vectors: Path) -> None:
    files = sorted((evidence_vectors / "nvidia/rim").iterdir())
    assert files
    for file in files:
        item = rim_item("NV_GPU_VBIOS_" + file.stem.upper())
        content = RECIPES[item.kind].inspect(item, file.read_bytes(), "")
        assert content.issued is not None
        entry = Entry(item=item, content=content, fetched=content.issued, origin="")
        assert [more.kind for more in follow_up(entry)] == [Kind.OCSP] * 3
