"""SGX and TDX evidence of others: boot logs, claims, and the verdict of another verifier on every quote and mutation.

The other verifier is `dcap-qvl`. It gives one answer, and refuses debug and a clear SEPT_VE_DISABLE as errors, which
here are matters of appraisal: where it stops for these, only its crypto is compared. No policy is involved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Document, Endorsements, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence
from cloister.tee import uefi
from cloister.tee.dcap.abi import parse_quote
from cloister.tee.dcap.tcb import UNSUPPORTED
from cloister.tee.eventlog import measured, parse_event_log, replay_digests
from cloister.tee.registry import authenticator_for, pins_for, reader_for
from cloister.tee.tdx import abi

dcap_qvl = pytest.importorskip("dcap_qvl", reason="needs the development dependency dcap-qvl")
CODE = "tee.tdx.eventlog"
_APPRAISED = ("Debug mode is enabled", "SEPT_VE_DISABLE is not enabled", "mr service td", "Reserved bits in TD")


@pytest.fixture(scope="session")
def cases(evidence_vectors: Path) -> list[dict[str, Any]]:
    """The cases of SGX and TDX."""
    loaded = json.loads((evidence_vectors / "cases.json").read_text())
    return [case for case in loaded if case["platform"] in ("sgx", "tdx")]


# Boot logs


def test_every_log_of_a_td_reads_as_cocos_service_reads_it(evidence_vectors: Path, cases: list[dict[str, Any]]) -> None:
    seen = 0
    for case in cases:
        parsed = case["expect"].get("parsed") if case["kind"] == "eventlog" else None
        if parsed:
            events = parse_event_log((evidence_vectors / case["file"]).read_bytes(), code=CODE)
            expected = json.loads((evidence_vectors / parsed).read_text())
            assert uefi.event_claims(events) == expected["uefi_event_logs"], case["id"]
            seen += 1
    assert seen == 3


def test_a_log_replays_to_the_quote_beside_it(evidence_vectors: Path, cases: list[dict[str, Any]]) -> None:
    [case] = [item for item in cases if item["kind"] == "eventlog" and "registers" in item["expect"]]
    quote_file, table_file = (evidence_vectors / name for name in case["files"])
    area = abi.parse_ccel_table(table_file.read_bytes())
    events = parse_event_log((evidence_vectors / case["file"]).read_bytes()[:area], code=CODE)
    assert len(events) == case["expect"]["events"]
    body = parse_quote(quote_file.read_bytes()).body
    for index, value in enumerate(body.rtmrs):  # type: ignore[union-attr]  # a TD's
        digests = measured(events, abi.log_register(index), algorithm="sha384", code=CODE)
        replayed = replay_digests(digests, bytes(48), algorithm="sha384")
        assert replayed == value
        assert replayed.hex() == case["expect"]["registers"][f"rtmr{index}"]


def test_a_log_beside_another_quote_is_refused(evidence_vectors: Path) -> None:
    directory = evidence_vectors / "tdx"
    body = dict(reader_for("tdx")((directory / "v4-ccel-replay" / "quote.bin").read_bytes(), tee="tdx").body)
    from cloister.wire.base64 import encode_b64

    endorsements = Endorsements(roots=(), pins=pins_for("tdx"))
    at = datetime(2025, 1, 1, tzinfo=UTC)
    good = encode_b64((directory / "v4-ccel-replay" / "ccel.bin").read_bytes())
    found = authenticator_for("tdx")(Evidence(tee="tdx", body={**body, "cc_eventlog": good}), endorsements, at=at)
    assert "uefi_event_logs" in found.claims.raw
    other = encode_b64((directory / "v5-trustee" / "ccel.bin").read_bytes())
    with pytest.raises(Refused) as caught:
        authenticator_for("tdx")(Evidence(tee="tdx", body={**body, "cc_eventlog": other}), endorsements, at=at)
    assert caught.value.code == "tee.tdx.event_log_mismatch"


# Claims


def test_claims_are_those_of_cocos_service(evidence_vectors: Path) -> None:
    expected = json.loads((evidence_vectors / "tdx" / "v5-trustee" / "claims-expected.json").read_text())
    del expected["uefi_event_logs"]  # of a log that is not there
    data = (evidence_vectors / "tdx" / "v4-debug" / "quote.bin").read_bytes()
    found = authenticator_for("tdx")(
        Evidence(tee="tdx", body=reader_for("tdx")(data, tee="tdx").body),
        Endorsements(roots=(), pins=pins_for("tdx")),
        at=datetime(2024, 6, 1, tzinfo=UTC),
    )
    raw = json.loads(json.dumps(dict(found.claims.raw)))
    assert {name: raw.get(name) for name in expected} == expected


# The other verifier


class Case:
    """One quote with its collateral, for both verifiers."""

    def __init__(self, directory: Path, case: dict[str, Any]) -> None:
        self.id: str = case["id"]
        self.tee: str = case["platform"]
        self.quote = (directory / case["file"]).read_bytes()
        self.collateral: dict[str, str] = json.loads((directory / case["collateral"]).read_text())
        self.roots = [(directory / name).read_bytes() for name in case["trust_roots"]]
        self.at = datetime.fromisoformat(case["at"])

    def ours(self, quote: bytes, collateral: dict[str, str]) -> AuthenticEvidence:
        endorsements = Endorsements(
            roots=tuple(TrustedRoot(tee=self.tee, level=Level.HARDWARE, name="test", der=der) for der in self.roots),
            pins=pins_for(self.tee),
            documents=(Document(name="collateral.json", data=json.dumps(collateral).encode()),),
        )
        body = reader_for(self.tee)(quote, tee=self.tee).body
        return authenticator_for(self.tee)(Evidence(tee=self.tee, body=body), endorsements, at=self.at)

    def theirs(self, quote: bytes, collateral: dict[str, str]) -> Any:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(collateral))
        seconds = int(self.at.timestamp())
        if self.roots:
            return dcap_qvl.verify_with_root_ca(quote, parsed, self.roots[0], seconds)
        return dcap_qvl.verify(quote, parsed, seconds)


def our_answer(case: Case, quote: bytes, collateral: dict[str, str]) -> tuple[str, tuple[str, ...]] | None:
    """Return status and advisories; None for a refusal, and for what leaves the verdict open."""
    try:
        found = case.ours(quote, collateral)
    except Refused:
        return None
    if any(not finding.ok for finding in found.findings):
        return None
    status = found.claims.tcb.status if found.claims.tcb is not None else ""
    return None if status in ("", UNSUPPORTED) else (status, found.claims.advisories)


def their_answer(case: Case, quote: bytes, collateral: dict[str, str]) -> tuple[str, tuple[str, ...]] | str | None:
    """Return the same; the text of the error where it is about what is appraised here."""
    try:
        found = case.theirs(quote, collateral)
    except (ValueError, RuntimeError) as err:
        return next((text for text in _APPRAISED if text.lower() in str(err).lower()), None)
    return found.status, tuple(sorted(found.advisory_ids))


def agree(case: Case, quote: bytes, collateral: dict[str, str], what: str) -> bool:
    """Compare; return whether both accept."""
    ours, theirs = our_answer(case, quote, collateral), their_answer(case, quote, collateral)
    if isinstance(theirs, str):
        assert ours is not None, f"{case.id} {what}: refused here, and there only for {theirs}"
    else:
        assert ours == theirs, f"{case.id} {what}"
    return ours is not None


@pytest.fixture(scope="session")
def pairs(evidence_vectors: Path, cases: list[dict[str, Any]]) -> list[Case]:
    """Every case with collateral, as it is to be accepted or refused whole."""
    return [
        Case(evidence_vectors, case)
        for case in cases
        if case["kind"] == "evidence" and case["collateral"] and "#no-test-root" not in case["id"]
    ]


def test_the_other_verifier_agrees_on_every_case(pairs: list[Case]) -> None:
    accepted = [case.id for case in pairs if agree(case, case.quote, case.collateral, "as it is")]
    assert len(pairs) >= 35
    assert len(accepted) >= 15


def _flips(data: bytes, step: int) -> Iterator[tuple[str, bytes]]:
    for offset in range(0, len(data), step):
        changed = data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]
        yield f"byte {offset}", changed


@pytest.mark.parametrize("name", ["tdx/v4-uptodate", "sgx/v3-confsw", "dcap-synthetic/td10_uptodate"])
def test_the_other_verifier_agrees_on_mutated_quotes(pairs: list[Case], name: str) -> None:
    """It passes over text between certificates, and over the root certificate in the quote; here both are bound."""
    [case] = [item for item in pairs if item.id == name]
    parsed = parse_quote(case.quote)
    chain = case.quote.index(parsed.data.certification)
    for what, quote in _flips(case.quote, 7):
        if int(what.split()[1]) < chain:
            assert not agree(case, quote, case.collateral, what), what
        elif our_answer(case, quote, case.collateral) is not None:
            assert their_answer(case, quote, case.collateral) is not None, what
    for end in range(61, chain, 61):
        assert not agree(case, case.quote[:end], case.collateral, f"cut at {end}")


@pytest.mark.parametrize("name", ["tdx/v4-uptodate", "sgx/v3-confsw", "dcap-synthetic/td10_uptodate"])
@pytest.mark.parametrize("member", ["tcb_info", "qe_identity", "tcb_info_signature", "qe_identity_signature"])
def test_the_other_verifier_agrees_on_mutated_collateral(pairs: list[Case], name: str, member: str) -> None:
    [case] = [item for item in pairs if item.id == name]
    text = case.collateral[member]
    for offset in range(0, len(text), max(1, len(text) // 40)):
        other = "1" if text[offset] != "1" else "2"
        changed = {**case.collateral, member: text[:offset] + other + text[offset + 1 :]}
        assert not agree(case, case.quote, changed, f"{member} {offset}")


def test_the_other_verifier_agrees_on_exchanged_collateral(pairs: list[Case]) -> None:
    """But for issuer chains: here a signer counts wherever its certificate was given, and is judged all the same."""
    by_name = {case.id: case for case in pairs}
    real, made = by_name["tdx/v4-uptodate"], by_name["dcap-synthetic/td10_uptodate"]
    for one, other in ((real, made), (made, real), (real, by_name["sgx/v3-confsw"])):
        for member in one.collateral:
            if other.collateral.get(member) in (None, one.collateral[member]):
                continue
            changed = {**one.collateral, member: other.collateral[member]}
            if member.endswith("chain"):
                assert our_answer(one, one.quote, changed) == ("UpToDate", ())
            else:
                agree(one, one.quote, changed, member)


def test_the_other_verifier_agrees_over_time(pairs: list[Case]) -> None:
    [case] = [item for item in pairs if item.id == "tdx/v4-uptodate"]
    accepted = 0
    for day in range(17, 32):
        case.at = datetime(2025, 6, 1, tzinfo=UTC).replace(day=min(day, 30), hour=(day * 7) % 24)
        accepted += agree(case, case.quote, case.collateral, str(case.at))
    case.at = datetime(2025, 7, 1, tzinfo=UTC)
    assert 0 < accepted < 15
