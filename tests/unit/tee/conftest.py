"""Fake TPMs under test CAs, made once: an RSA key costs a tenth of a second."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.testing.azure import FakeParavisor
from cloister.testing.dcap import FakeIntel, FakePlatform
from cloister.testing.eventlog import seabios_events
from cloister.testing.snp import FakeAMD, FakeChip
from cloister.testing.tpm import INIT_DATA_DIGEST, LAUNCH_BLOB, EndorsementCA, FakeTPM


@pytest.fixture(scope="session")
def ca() -> EndorsementCA:
    """The CA whose roots are trusted."""
    return EndorsementCA()


@pytest.fixture(scope="session")
def foreign_ca() -> EndorsementCA:
    """A CA of the same names with other keys, as every swtpm host has its own."""
    return EndorsementCA()


@pytest.fixture(scope="session")
def ek() -> rsa.RSAPrivateKey:
    """One EK for all fake TPMs that do not need their own."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def tpm(ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> FakeTPM:
    """A TPM after a SeaBIOS boot, with init data in register 8."""
    fake = FakeTPM(ca, launch_blob=LAUNCH_BLOB, events=seabios_events(), ek=ek)
    fake.extend(8, INIT_DATA_DIGEST)
    return fake


@pytest.fixture(scope="session")
def intel() -> FakeIntel:
    """The attestation PKI whose root is trusted."""
    return FakeIntel()


@pytest.fixture(scope="session")
def foreign_intel() -> FakeIntel:
    """One of the same names with other keys."""
    return FakeIntel()


@pytest.fixture(scope="session")
def rsa_ak() -> rsa.RSAPrivateKey:
    """One RSA AK for all virtual TPMs of clouds."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def amd_chip() -> FakeChip:
    """A chip of a fake AMD."""
    return FakeChip.made_by(FakeAMD("Milan"))


@pytest.fixture(scope="session")
def intel_platform(intel: FakeIntel) -> FakePlatform:
    """A platform of the trusted PKI."""
    return FakePlatform(intel)


@pytest.fixture
def on_snp(amd_chip: FakeChip, rsa_ak: rsa.RSAPrivateKey) -> FakeParavisor:
    """An Azure VM on SNP, with init data in register 8 of its virtual TPM."""
    fake = FakeParavisor(amd_chip, rsa_ak)
    fake.tpm.extend(8, INIT_DATA_DIGEST)
    return fake


@pytest.fixture
def on_tdx(intel_platform: FakePlatform, rsa_ak: rsa.RSAPrivateKey) -> FakeParavisor:
    """An Azure VM on TDX, with init data in register 8 of its virtual TPM."""
    fake = FakeParavisor(intel_platform, rsa_ak)
    fake.tpm.extend(8, INIT_DATA_DIGEST)
    return fake
