"""Advisories: what a row concerns, what remedies it, and every row of the shipped table seen applying and not."""

from __future__ import annotations

from datetime import date
from typing import Any

import msgspec
import pytest

from cloister.errors import FormatRefused
from cloister.rats.advisory import Advisory, Weight, appraise_advisories, parse_advisories
from cloister.rats.claims import TCB, Claims, Level
from cloister.rats.result import Severity
from cloister.rats.rules import Handling
from cloister.tee.advisories import shipped_advisories
from cloister.tee.sev_snp.products import PRODUCTS
from cloister.tee.sev_snp.verifier import authenticate
from cloister.testing.snp import NOW, FakeAMD, FakeChip
from cloister.wire.limits import POLICY_BYTES

ROW = Advisory(
    id="CVE-1",
    title="a fault",
    products=("amd-genoa",),
    severity=Weight.CRITICAL,
    published=date(2026, 1, 1),
    link="https://example.com/1",
    minimum_tcb={"snp": 23},
    required={"alias_check_complete": True},
)
HEAD = "version = 1\ndate = 2026-01-01\n"
TEXT = """
[[advisory]]
id = "CVE-1"
title = "a fault"
products = ["amd-genoa"]
severity = "high"
published = 2026-01-01
link = "https://example.com/1"
minimum_tcb = { snp = 23 }
"""


def claims(product: str = "amd-genoa", *, tcb: dict[str, int] | None = None, **native: Any) -> Claims:
    return Claims(
        tee="snp",
        level=Level.HARDWARE,
        debug=False,
        registers={},
        report_data=b"",
        init_data=b"",
        instance_id="",
        product=product,
        tcb=TCB(reported=tcb) if tcb is not None else None,
        native=native,
    )


def test_a_row_concerns_its_products_until_all_its_remedies_are_seen() -> None:
    fixed = claims(tcb={"snp": 23}, alias_check_complete=True)
    assert not ROW.applies_to(fixed)
    assert not ROW.applies_to(claims("amd-milan", tcb={"snp": 1}))
    assert ROW.applies_to(claims(tcb={"snp": 22}, alias_check_complete=True))
    assert ROW.applies_to(claims(tcb={"snp": 23}, alias_check_complete=False))


def test_what_is_not_reported_is_not_remedied() -> None:
    assert ROW.applies_to(claims(alias_check_complete=True))
    assert ROW.applies_to(claims(tcb={}, alias_check_complete=True))
    assert ROW.applies_to(claims(tcb={"snp": 99}))


def test_a_row_without_a_remedy_always_applies() -> None:
    row = msgspec.structs.replace(ROW, minimum_tcb={}, required={}, unfixable=True)
    assert row.applies_to(claims(tcb={"snp": 99}, alias_check_complete=True))


def test_a_row_may_be_narrowed_and_concerns_whoever_does_not_say() -> None:
    row = msgspec.structs.replace(ROW, where={"silicon": "Genoa-X"})
    assert row.applies_to(claims(silicon="Genoa-X"))
    assert row.applies_to(claims())
    assert not row.applies_to(claims(silicon="Genoa"))


@pytest.mark.parametrize(
    ("critical", "severity", "ok"),
    [
        (Handling.REFUSE, Severity.ERROR, False),
        (Handling.WARN, Severity.WARNING, False),
        (Handling.ACCEPT, Severity.WARNING, True),
    ],
)
def test_critical_ones_count_as_the_policy_says(critical: Handling, severity: Severity, ok: bool) -> None:
    (finding,) = appraise_advisories(claims(), [ROW], critical=critical, acknowledged=frozenset())
    assert (finding.code, finding.ok, finding.severity) == ("appraisal.advisory", ok, severity)
    assert "snp 23 or newer" in finding.expected
    assert "alias_check_complete true" in finding.expected
    assert finding.origin == ROW.link


def test_lesser_ones_are_told_and_refuse_nothing() -> None:
    row = msgspec.structs.replace(ROW, severity=Weight.HIGH)
    (finding,) = appraise_advisories(claims(), [row], critical=Handling.REFUSE, acknowledged=frozenset())
    assert (finding.ok, finding.refuses) == (False, False)


def test_an_acknowledged_one_is_still_told() -> None:
    (finding,) = appraise_advisories(claims(), [ROW], critical=Handling.REFUSE, acknowledged=frozenset({"CVE-1"}))
    assert finding.ok
    assert finding.actual == "acknowledged by the owner"
    (other,) = appraise_advisories(claims(), [ROW], critical=Handling.REFUSE, acknowledged=frozenset({"CVE-2"}))
    assert other.refuses


def test_nothing_is_said_of_platforms_that_are_not_concerned() -> None:
    assert appraise_advisories(claims("x"), [ROW], critical=Handling.REFUSE, acknowledged=frozenset()) == ()


# --- the text ---


def test_a_table() -> None:
    (row,) = parse_advisories((HEAD + TEXT).encode())
    assert (row.id, row.severity, row.published) == ("CVE-1", Weight.HIGH, date(2026, 1, 1))
    two = HEAD + TEXT + TEXT.replace("amd-genoa", "amd-milan") + TEXT + 'where = { silicon = "Genoa-X" }\n'
    assert [row.id for row in parse_advisories(two.encode())] == ["CVE-1"] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD,
        "version = 2\ndate = 2026-01-01\n" + TEXT,
        HEAD + TEXT + "extra = 1\n",
        HEAD + TEXT.replace('severity = "high"', 'severity = "bad"'),
        HEAD + TEXT.replace("published = 2026-01-01", 'published = "soon"'),
        HEAD + TEXT.replace("minimum_tcb = { snp = 23 }", ""),  # no remedy, and none denied
        HEAD + TEXT + "unfixable = true\n",  # a remedy, and denied
        HEAD + TEXT + TEXT,  # twice
        HEAD + TEXT.replace('["amd-genoa"]', '["amd-genoa", "amd-genoa"]'),
        HEAD + TEXT.replace("snp = 23", 'snp = "23"'),
        "[[advisory",
        "\xff",
        HEAD + "#" * POLICY_BYTES,
    ],
)
def test_texts_that_are_no_table(text: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_advisories(text.encode("latin-1"))
    assert caught.value.code == "rats.advisory.malformed"


# --- the shipped table ---

ROWS = shipped_advisories()
LINES = {item.key: item for item in PRODUCTS}
NOBODY = "another product"


def row_name(row: Advisory) -> str:
    return f"{row.id} {'+'.join(row.products)} {'+'.join(map(str, row.where.values()))}".strip()


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_each_row_has_a_platform_that_has_it_and_one_that_has_not(row: Advisory) -> None:
    for product in row.products:
        remedied = claims(product, tcb=dict(row.minimum_tcb), **row.where, **row.required)
        assert row.applies_to(remedied) is row.unfixable
        for name, least in row.minimum_tcb.items():
            older = {**row.minimum_tcb, name: least - 1}
            assert row.applies_to(claims(product, tcb=older, **row.where, **row.required))
        for name, value in row.required.items():
            otherwise = {**row.where, **row.required, name: not value}
            assert row.applies_to(claims(product, tcb=dict(row.minimum_tcb), **otherwise))
        assert row.applies_to(claims(product))
        for name in row.where:
            assert not row.applies_to(claims(product, **{name: "another"}))
    assert not row.applies_to(claims(NOBODY))


@pytest.mark.parametrize("row", [row for row in ROWS if set(row.products) & set(LINES)], ids=row_name)
def test_rows_of_amd_speak_of_what_reports_have(row: Advisory) -> None:
    """A misspelt component or claim would never be seen, and its row apply for ever."""
    for product in row.products:
        assert set(row.minimum_tcb) <= set(LINES[product].layout.places)
        if "silicon" in row.where:
            assert row.where["silicon"] in {part.name for part in LINES[product].silicon}
    amd = FakeAMD(LINES[row.products[0]].line)
    native = authenticate(FakeChip.made_by(amd).evidence(version=5), amd.endorsements(), at=NOW).claims.native
    assert set(row.required) | set(row.where) <= set(native)


@pytest.mark.parametrize("line", ["Milan", "Genoa", "Turin"])
def test_an_updated_platform_is_left_with_what_cannot_be_remedied(line: str) -> None:
    """The fake chips run what AMD's bulletins ask for; a guest without SMT and with hidden ciphertexts."""
    amd = FakeAMD(line)
    evidence = FakeChip.made_by(amd).evidence(version=5, platform_info=0b1110100)
    found = authenticate(evidence, amd.endorsements(), at=NOW).claims
    left = {row.id for row in ROWS if row.applies_to(found)}
    always = {"memory-interposer-amd"}
    assert left == (always | {"milan-root-seed", "ciphertext-side-channels"} if line == "Milan" else always)


def test_an_old_platform_has_them_all() -> None:
    amd = FakeAMD("Genoa")
    old = {"bootloader": 1, "tee": 0, "snp": 1, "microcode": 1}
    chip = FakeChip.made_by(amd, tcb=old)
    found = authenticate(chip.evidence(version=3, platform_info=1), amd.endorsements(), at=NOW).claims
    mine = {row.id for row in ROWS if "amd-genoa" in row.products}
    assert {row.id for row in ROWS if row.applies_to(found)} == mine


def test_every_row_can_be_read_about() -> None:
    assert all(row.link.startswith("https://") and row.title and row.products for row in ROWS)
    assert all(row.published <= date(2026, 11, 26) for row in ROWS)
