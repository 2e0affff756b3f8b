"""Init data where the platform has no register for it: compared with what the guest was launched with, not extended."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.client.keybroker import ReleasedResource
from cloister.errors import CloisterError, Unavailable
from cloister.guest import keymessages as messages
from cloister.guest.keyservice import KeyService
from cloister.guest.measure import InitDataMeasurement
from cloister.guest.platform import VirtualMachine
from cloister.protocol.initdata import AGENT_ENTRY, BrokerAddress, broker_entry, build_initdata, pack_device
from cloister.tee.registry import Attester, attester_for
from cloister.tee.sev_snp.attester import SNPAttester
from cloister.tee.tdx import abi
from cloister.tee.tdx.attester import REGISTERS, TDXAttester
from cloister.testing import snp
from cloister.testing.tsm import FakeTSM

BROKER = BrokerAddress(url="https://10.0.2.2:1", ca_pem="-----BEGIN CERTIFICATE-----", insecure_no_release_log=True)
DATA = build_initdata({AGENT_ENTRY: broker_entry(BROKER)})
OTHER = build_initdata({AGENT_ENTRY: broker_entry(BROKER), "more": "1"})
Launch = Callable[[bytes], Attester]


class _Client:
    token = "a.jwt"

    def attest(self) -> str:
        return self.token

    def release(self, path: object) -> ReleasedResource:
        return ReleasedResource(content=b"", lease_seconds=0)

    def wipe(self) -> None:
        """Forget nothing."""


@pytest.fixture(params=["snp", "tdx sysfs", "tdx report"])
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Launch:
    """Launch a guest with a digest in its field; return its attester over a fake device tree."""

    def make(digest: bytes) -> Attester:
        if request.param == "snp":
            chip = snp.FakeChip.made_by(snp.FakeAMD("Turin"))
            root = tmp_path / os.urandom(4).hex()
            files = snp.fake_tsm(root, chip, host_data=digest.ljust(32, b"\0"))
            return SNPAttester(root, files=files)
        value = digest.ljust(48, b"\0")
        if request.param == "tdx sysfs":
            path = str(tmp_path / REGISTERS / "mrconfigid")
            return TDXAttester(tmp_path, files=FakeTSM(lambda *_: b"", provider="tdx_guest", attributes={path: value}))
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev/tdx_guest").touch()

        def ioctl(descriptor: int, number: int, argument: bytearray) -> int:
            start = abi.REPORT_DATA_BYTES + 512 + 8 + 8 + 48
            argument[start : start + 48] = value
            return 0

        return TDXAttester(tmp_path, files=FakeTSM(lambda *_: b"", provider="tdx_guest"), ioctl=ioctl)

    return make


def service_of(attester: Attester) -> KeyService:
    return KeyService(attester, lambda broker, device, text: _Client())


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value.code


def test_the_init_data_it_was_launched_with_is_taken(launch: Launch) -> None:
    service = service_of(launch(DATA.digest))
    service.answer(messages.Extend(digest=DATA.digest))
    assert isinstance(service.answer(messages.Open(init_data=DATA.text)), messages.Done)


def test_nothing_is_extended(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    attester = launch(DATA.digest)

    def extend(pcr: int, digest: bytes) -> None:
        raise AssertionError("a register was extended")

    monkeypatch.setattr(attester, "extend", extend)
    service_of(attester).answer(messages.Extend(digest=DATA.digest))


@pytest.mark.parametrize("held", [OTHER.digest, b"", DATA.digest[:31], DATA.digest[:31] + b"\0"])
def test_other_init_data_stops_the_pod(launch: Launch, held: bytes) -> None:
    service = service_of(launch(held))
    assert refused(lambda: service.answer(messages.Extend(digest=DATA.digest))) == "guest.keys.other_init_data"
    assert refused(lambda: service.answer(messages.Open(init_data=DATA.text))) == "guest.keys.order"
    assert refused(lambda: service.answer(messages.Extend(digest=DATA.digest))) == "guest.keys.order", (
        "there is no second try"
    )


def test_what_follows_the_digest_must_be_zeros(launch: Launch) -> None:
    attester = launch(DATA.digest)
    field = attester.init_data_field()
    assert field is not None
    name, value = field
    assert name in ("HOST_DATA", "MRCONFIGID")
    assert value == DATA.digest.ljust(len(value), b"\0")
    if len(value) > len(DATA.digest):
        service = service_of(launch(DATA.digest + b"\1"))
        assert refused(lambda: service.answer(messages.Extend(digest=DATA.digest))) == "guest.keys.other_init_data"


def test_the_agents_measurement_is_the_same_on_both(launch: Launch) -> None:
    """`measure` asks the key process; that one compares, and a device with other init data is refused unread."""
    service = service_of(launch(DATA.digest))

    def extend(digest: bytes) -> None:
        service.answer(messages.Extend(digest=digest))

    assert InitDataMeasurement(extend).measure(pack_device(DATA)) == DATA
    service = service_of(launch(DATA.digest))
    assert refused(lambda: InitDataMeasurement(extend).measure(pack_device(OTHER))) == "guest.keys.other_init_data"


def test_a_field_that_cannot_be_read_stops_the_pod(tmp_path: Path) -> None:
    for attester in (SNPAttester(tmp_path), TDXAttester(tmp_path)):
        service = service_of(attester)
        with pytest.raises(Unavailable):
            service.answer(messages.Extend(digest=DATA.digest))
        assert refused(lambda service=service: service.answer(messages.Open(init_data=DATA.text))) == "guest.keys.order"  # type: ignore[misc]  # a bound argument


def test_a_field_of_another_length(tmp_path: Path) -> None:
    path = str(tmp_path / REGISTERS / "mrconfigid")
    attester = TDXAttester(tmp_path, files=FakeTSM(lambda *_: b"", provider="tdx_guest", attributes={path: bytes(47)}))
    assert refused(attester.init_data_field) == "tee.tdx.register"
    assert refused(lambda: abi.tdreport_config_id(bytes(1023))) == "tee.tdx.tdreport.length"


def test_a_realm_does_not_start(tmp_path: Path) -> None:
    """Its value is not reported to the agent: it stops, instead of going on as if the init data were bound."""
    service = service_of(attester_for("cca")(tmp_path))
    assert refused(lambda: service.answer(messages.Extend(digest=DATA.digest))) == "tee.cca.no_registers"


@pytest.mark.parametrize(
    ("devices", "tee"),
    [("", "tpm"), ("tpmrm0", "tpm"), ("sev-guest", "snp"), ("tdx_guest", "tdx"), ("tpmrm0 sev-guest", "snp")],
)
def test_the_pod_vm_attests_by_the_device_it_has(tmp_path: Path, devices: str, tee: str) -> None:
    (tmp_path / "dev").mkdir()
    for device in devices.split():
        (tmp_path / "dev" / device).touch()
    assert VirtualMachine(f"{tmp_path}/").tee == tee
