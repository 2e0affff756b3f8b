"""What AMD publishes: pins, addresses and identities, the files of an offline store, and an owner's file of roots."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.claims import Level
from cloister.tee.sev_snp.abi import VLEK, parse_report
from cloister.tee.sev_snp.endorsements import (
    PINS,
    ark_line,
    chain_url,
    crl_url,
    store_names,
    vcek_identity,
    vcek_url,
)
from cloister.tee.sev_snp.products import product_of_name
from cloister.testing.snp import TCBS, FakeAMD, FakeChip


def test_pins_are_hardware_and_one_per_line() -> None:
    assert [pin.name for pin in PINS] == ["ARK-Milan", "ARK-Genoa", "ARK-Turin"]
    assert all(pin.tee == "snp" and pin.level is Level.HARDWARE and len(pin.sha256) == 32 for pin in PINS)


def test_addresses_of_a_vcek() -> None:
    tcb = {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
    milan = FakeChip.made_by(FakeAMD("Milan"), tcb=tcb)
    identity = vcek_identity(parse_report(milan.report()))
    hwid = milan.chip_id.hex()
    assert vcek_url(identity) == (
        f"https://kdsintf.amd.com/vcek/v1/Milan/{hwid}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"
    )
    assert store_names(identity) == (
        f"vcek/{hwid}/bl03_tee00_snp08_ucode115_vcek.der",
        f"vcek/{hwid}/vcek.der",
    )


def test_turin_has_a_short_id_and_the_fmc_first() -> None:
    turin = FakeChip.made_by(FakeAMD("Turin"))
    identity = vcek_identity(parse_report(turin.report(version=5)))
    hwid = turin.chip_id[:8].hex()
    assert vcek_url(identity, base="https://kds.example") == (
        f"https://kds.example/vcek/v1/Turin/{hwid}?fmcSPL=01&blSPL=03&teeSPL=02&snpSPL=05&ucodeSPL=97"
    )
    assert store_names(identity)[0] == f"vcek/{hwid}/bl03_tee02_snp05_ucode97_fmc01_vcek.der"


def test_two_keys_that_differ_in_the_fmc_alone_are_two() -> None:
    amd = FakeAMD("Turin")
    chip = FakeChip.made_by(amd)
    layout = amd.product.layout
    identities = {
        vcek_identity(parse_report(chip.report(reported_tcb=layout.encode({**TCBS["Turin"], "fmc": fmc}))))
        for fmc in (0, 1)
    }
    assert len(identities) == len({vcek_url(item) for item in identities}) == 2
    assert len({store_names(item)[0] for item in identities}) == 2


def test_reports_that_name_no_vcek() -> None:
    chip = FakeChip.made_by(FakeAMD("Genoa"))
    genoa = product_of_name("Genoa")
    reports = (
        chip.report(version=2),
        chip.report(chip_id=bytes(64)),
        chip.report(key_info=VLEK << 2),
        chip.report(cpuid=(1, 2, 3)),
    )
    for data in reports:
        with pytest.raises(EndorsementError) as caught:
            vcek_identity(parse_report(data))
        assert caught.value.code == "tee.sev_snp.no_identity"
    assert vcek_identity(parse_report(reports[0]), genoa).line == "Genoa"
    with pytest.raises(FormatRefused):
        vcek_identity(parse_report(chip.report(reported_tcb=bytes([1] * 8))))


def test_addresses_of_chains_and_lists() -> None:
    assert chain_url("Genoa") == "https://kdsintf.amd.com/vcek/v1/Genoa/cert_chain"
    assert chain_url("Genoa", vlek=True, base="https://x") == "https://x/vlek/v1/Genoa/cert_chain"
    assert crl_url("Turin") == "https://kdsintf.amd.com/vcek/v1/Turin/crl"
    assert crl_url("Turin", vlek=True) == "https://kdsintf.amd.com/vlek/v1/Turin/crl"


def test_only_an_ark_claims_to_be_a_root() -> None:
    amd = FakeAMD("Milan")
    ders = [item.public_bytes(Encoding.DER) for item in (amd.ark, amd.ask, amd.asvk)]
    assert [ark_line(der) for der in ders] == ["Milan", "", ""]
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    for subject in ("ARK-Milan", "ARK-Venice", "SEV-VCEK"):
        assert ark_line(amd.issue(key, hwid=bytes(64), subject=subject).public_bytes(Encoding.DER)) == ""
    with pytest.raises(FormatRefused) as caught:
        ark_line(b"0\x03abc")
    assert caught.value.code == "tee.sev_snp.root.malformed"


def test_the_package_holds_no_certificate() -> None:
    """Roots are known by fingerprint: what AMD wrote stays AMD's."""
    directory = Path(__file__).parents[3] / "src" / "cloister" / "tee" / "sev_snp"
    assert not [path for path in directory.rglob("*") if path.suffix in (".pem", ".der", ".crt")]
