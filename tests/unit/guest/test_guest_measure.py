"""Init data is measured once, before anything else, and from one place only."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cloister.errors import CloisterError, FormatRefused, Refused, Unavailable
from cloister.guest.keyservice import INIT_DATA_PCR
from cloister.guest.measure import InitDataMeasurement, read_device, require_single_device
from cloister.host.vmm.initdatafile import InitDataFile
from cloister.protocol.initdata import DEVICE_BYTES, MAGIC, build_initdata, pack_device, unpack_device
from cloister.tee.insecure.attester import SimulationAttester

DATA = build_initdata({"a": "b"})


class Broken(SimulationAttester):
    def extend(self, pcr: int, digest: bytes) -> None:
        raise Unavailable("tee.tpm.command_failed", "the TPM refused")


def attester(tmp_path: Path) -> SimulationAttester:
    return SimulationAttester(str(tmp_path / "key"))


def measurement_on(device: SimulationAttester) -> InitDataMeasurement:
    return InitDataMeasurement(lambda digest: device.extend(INIT_DATA_PCR, digest))


def test_digest_of_the_exact_text_goes_into_register_8(tmp_path: Path) -> None:
    import hashlib

    device = attester(tmp_path)
    assert measurement_on(device).measure(pack_device(DATA)) == DATA
    registers = device.read_pcrs()
    assert registers.pop(INIT_DATA_PCR) == hashlib.sha256(bytes(32) + DATA.digest).digest()
    assert set(registers.values()) == {bytes(32)}


def test_second_measurement_is_refused(tmp_path: Path) -> None:
    device = attester(tmp_path)
    measurement = measurement_on(device)
    measurement.measure(pack_device(DATA))
    before = device.read_pcrs()
    with pytest.raises(Refused) as caught:
        measurement.measure(pack_device(DATA))
    assert caught.value.code == "guest.measure.twice"
    assert device.read_pcrs() == before


@pytest.mark.parametrize("image", [b"", b"initdata", b"x" * 512, pack_device(DATA)[:20]])
def test_malformed_device_extends_nothing(tmp_path: Path, image: bytes) -> None:
    device = attester(tmp_path)
    measurement = measurement_on(device)
    with pytest.raises(FormatRefused):
        measurement.measure(image)
    assert device.read_pcrs()[INIT_DATA_PCR] == bytes(32)
    with pytest.raises(Refused):  # and there is no second try
        measurement.measure(pack_device(DATA))


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
def test_other_algorithms_do_not_fit_the_register(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(Refused) as caught:
        measurement_on(attester(tmp_path)).measure(pack_device(build_initdata({}, algorithm=algorithm)))
    assert caught.value.code == "guest.measure.algorithm"
    assert caught.value.hint


def test_a_register_that_cannot_be_extended_stops_the_pod(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        measurement_on(Broken(str(tmp_path / "key"))).measure(pack_device(DATA))


def test_device_is_read_up_to_a_ceiling(tmp_path: Path) -> None:
    path = tmp_path / "vdb"
    path.write_bytes(pack_device(DATA) + bytes(4 * 1024 * 1024))
    image = read_device(str(path))
    assert unpack_device(image) == DATA
    assert pack_device(DATA).startswith(image)


def test_a_length_beyond_the_ceiling_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "vdb"
    path.write_bytes(MAGIC + b"\xff" * 8 + bytes(DEVICE_BYTES * 2))
    assert len(read_device(str(path))) == DEVICE_BYTES


def test_an_empty_device_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "vdb"
    file = InitDataFile(path, None)
    assert path.stat().st_size == DEVICE_BYTES
    later = threading.Timer(0.1, file.deliver, [DATA.text])
    later.start()
    assert unpack_device(read_device(str(path), wait_seconds=10)) == DATA
    later.join()
    with pytest.raises(Refused) as caught:
        file.deliver(DATA.text)
    assert caught.value.code == "host.vm.initdata_twice"


def test_a_device_that_stays_empty_is_told(tmp_path: Path) -> None:
    InitDataFile(tmp_path / "vdb", None)
    with pytest.raises(Unavailable) as caught:
        read_device(str(tmp_path / "vdb"), wait_seconds=0.02)
    assert caught.value.code == "guest.measure.no_initdata"


def test_the_wait_for_a_device_ends_when_the_pod_does(tmp_path: Path) -> None:
    InitDataFile(tmp_path / "vdb", None)
    asked: list[int] = []

    def go_on() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Unavailable("guest.keys.died", "the key process of the pod ended")

    with pytest.raises(Unavailable) as caught:
        read_device(str(tmp_path / "vdb"), go_on=go_on)
    assert caught.value.code == "guest.keys.died"


@pytest.mark.parametrize("name", ["missing", "."])
def test_missing_device_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unavailable) as caught:
        read_device(str(tmp_path / name))
    assert caught.value.code == "guest.measure.no_device"


def disks(tmp_path: Path, **content: bytes) -> tuple[str, str, str]:
    for directory in ("sys", "dev"):
        (tmp_path / directory).mkdir()
    for name, data in content.items():
        (tmp_path / "sys" / name).mkdir()
        (tmp_path / "dev" / name).write_bytes(data)
    return str(tmp_path / "dev" / "vdb"), str(tmp_path / "sys"), str(tmp_path / "dev")


def check(place: tuple[str, str, str]) -> None:
    require_single_device(place[0], sys_block=place[1], dev=place[2])


def test_one_device_with_init_data_is_right(tmp_path: Path) -> None:
    check(disks(tmp_path, vda=b"root", vdb=pack_device(DATA), loop0=pack_device(DATA)))


@pytest.mark.parametrize("other", ["vda", "vdc", "sda", "sr0", "nvme0n1"])
def test_second_device_is_refused(tmp_path: Path, other: str) -> None:
    place = disks(tmp_path, vdb=pack_device(DATA), **{other: pack_device(build_initdata({"evil": "yes"}))})
    with pytest.raises(CloisterError) as caught:
        check(place)
    assert caught.value.code == "guest.measure.second_device"


def test_drive_without_medium_is_no_device(tmp_path: Path) -> None:
    place = disks(tmp_path, vdb=pack_device(DATA))
    (tmp_path / "sys" / "sr0").mkdir()
    check(place)
