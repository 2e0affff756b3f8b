"""One thing has one name, and two things never share one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatRefused
from cloister.tee.collateral.item import Item, Kind, Service, make_item, parse_item

TURIN = {
    "product": "Turin",
    "hwid": "1e550a8ee5cf9f4d",
    "fmc": "1",
    "bootloader": "2",
    "tee": "3",
    "snp": "4",
    "microcode": "5",
}
EVERY = (
    make_item(Kind.VCEK, **TURIN),
    make_item(Kind.VCEK, **{**TURIN, "product": "Genoa", "hwid": "ab" * 64, "fmc": ""}),
    make_item(Kind.AMD_CHAIN, signer="vlek", product="Milan"),
    make_item(Kind.AMD_CRL, signer="vcek", product="Milan"),
    make_item(Kind.TCB_INFO, tee="tdx", fmspc="90c06f000000", update="early"),
    make_item(Kind.QE_IDENTITY, tee="sgx", update="standard"),
    make_item(Kind.PCK_CRL, ca="platform"),
    make_item(Kind.INTEL_ROOT_CRL),
    make_item(Kind.RIM, id="NV_GPU_DRIVER_GH100_550.90.07"),
    make_item(Kind.OCSP, request="3003020101"),
)


@pytest.mark.parametrize("name", TURIN)
def test_every_part_of_a_vceks_identity_is_in_its_key(name: str) -> None:
    other = {"product": "Genoa", "hwid": "1e550a8ee5cf9f4e"}.get(name, "7")
    assert make_item(Kind.VCEK, **{**TURIN, name: other}).key != make_item(Kind.VCEK, **TURIN).key


def test_two_turin_tcbs_that_differ_in_fmc_alone_share_nothing() -> None:
    one, two = (make_item(Kind.VCEK, **{**TURIN, "fmc": fmc}) for fmc in ("0", "1"))
    without = make_item(Kind.VCEK, **{**TURIN, "fmc": ""})
    assert len({one, two, without}) == len({item.key for item in (one, two, without)}) == 3


def test_the_identities_of_the_other_kinds() -> None:
    base = {"tee": "tdx", "fmspc": "90c06f000000", "update": "standard"}
    variants = [base, {**base, "tee": "sgx"}, {**base, "fmspc": "90c06f000001"}, {**base, "update": "early"}]
    assert len({make_item(Kind.TCB_INFO, **fields).key for fields in variants}) == 4
    assert len({item.key for item in EVERY}) == len(EVERY)


def test_text_is_read_back() -> None:
    for item in EVERY:
        assert parse_item(item.text) == item
        assert "\n" not in item.text
        assert item.service in Service
    assert EVERY[0].text == ("vcek product=Turin hwid=1e550a8ee5cf9f4d fmc=1 bootloader=2 tee=3 snp=4 microcode=5")
    assert EVERY[0]["fmc"] == "1"
    assert "fmc" not in EVERY[1].label
    assert "abababababababab.." in EVERY[1].label
    assert EVERY[0].immutable
    assert not EVERY[3].immutable


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("product", "../etc"),
        ("product", ""),
        ("hwid", "1E550A8EE5CF9F4D"),
        ("hwid", "1e55"),
        ("hwid", ""),
        ("fmc", "01"),
        ("fmc", "+1"),
        ("fmc", "1000"),
        ("snp", ""),
        ("microcode", "1\n"),
        ("microcode", "١"),
    ],
)
def test_fields_have_one_form(name: str, value: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        make_item(Kind.VCEK, **{**TURIN, name: value})
    assert caught.value.code == "collateral.item.malformed"


@pytest.mark.parametrize("name", TURIN)
def test_no_field_may_be_missing(name: str) -> None:
    with pytest.raises(FormatRefused):
        make_item(Kind.VCEK, **{key: value for key, value in TURIN.items() if key != name})
    with pytest.raises(FormatRefused):
        make_item(Kind.VCEK, **TURIN, other="1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vcek",
        "pck-crl ca=platform ",
        "pck-crl  ca=platform",
        "pck-crl ca=platform ca=processor",
        "pck-crl ca=other",
        "qe-identity update=standard tee=sgx",  # another order
        "thing a=b",
        "rim id=../../x",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_item(text)
    assert caught.value.code == "collateral.item.malformed"


@given(st.text(max_size=60), st.sampled_from([item.text for item in EVERY]), st.integers(0, 80))
def test_any_text_is_an_item_or_refused(junk: str, text: str, place: int) -> None:
    for candidate in (junk, text[:place] + junk + text[place:], text[:place]):
        try:
            found: Item = parse_item(candidate)
        except FormatRefused:
            continue
        assert found.text == candidate
