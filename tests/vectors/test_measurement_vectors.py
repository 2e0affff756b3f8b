"""Launch digests and events from elsewhere: SEV-SNP digests, and logs of real trust domains.

Cases of kind `measurement` of `cases.json`: inputs and the launch digest that another implementation and QEMU gave.
The logs hold events whose text is known: the same constants and rules give the same digests here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.imagetool.measure.snp import HashedBoot, SNPFirmware
from cloister.imagetool.measure.tdx import EXIT_ACTIONS, PageOrder, mrtd
from cloister.imagetool.measure.uki import BOOT_ACTION, SEPARATOR
from cloister.sdk.measured import read_measured
from cloister.sdk.references import Platform
from cloister.tee.tpm.eventlog import parse_event_log

KNOWN_KINDS = {0x80000007: [BOOT_ACTION, *EXIT_ACTIONS], 0x00000004: [SEPARATOR]}


def cases(evidence_vectors: Path) -> list[dict[str, Any]]:  # Any: JSON
    listed: list[dict[str, Any]] = json.loads((evidence_vectors / "cases.json").read_text("utf-8"))  # Any: JSON
    return [case for case in listed if case["kind"] == "measurement"]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_launch_digests(evidence_vectors: Path) -> None:
    listed = cases(evidence_vectors)
    assert listed
    for case in listed:
        place = evidence_vectors / case["file"]
        rows = json.loads(place.read_text("utf-8"))
        assert len(rows) == case["expect"]["rows"]
        for row in rows:
            assert (row["vmm"], case["platform"]) == ("QEMU", "snp")
            boot = None
            if row["kernel"]:  # empty files
                assert row["initrd"]
                boot = HashedBoot(kernel=sha(b""), initrd=sha(b""), cmdline=sha((row["append"] or "").encode() + b"\0"))
            digests = SNPFirmware((place.parent / row["ovmf"]).read_bytes()).launch_digests(
                boot,
                vcpus=[row["vcpus"], 256],
                vcpu_type=row["vcpu_type"],
                guest_features=int(row["guest_features"], 16),
            )
            assert digests[row["vcpus"]].hex() == row["expected"]


@pytest.mark.parametrize(
    "name",
    [
        "tdx/v4-ccel-replay/ccel.bin",
        "tpm/cc-eventlogs/CCEL_data_ovmf",
        "tpm/cc-eventlogs/CCEL_data_grub",
        "tpm/cc-eventlogs/CCEL_AAEL_alibabacloud",
    ],
)
def test_constants_of_predicted_events_are_those_of_real_logs(evidence_vectors: Path, name: str) -> None:
    """Every event of these kinds in RTMR 1 is one of the constants that predictions use, and each constant occurs."""
    events = parse_event_log((evidence_vectors / name).read_bytes())
    found = [event.digests["sha384"] for event in events if event.register == 2 and event.kind in KNOWN_KINDS]
    known = {hashlib.sha384(text).digest() for texts in KNOWN_KINDS.values() for text in texts}
    assert set(found) <= known
    assert {hashlib.sha384(text).digest() for text in (BOOT_ACTION, *EXIT_ACTIONS)} <= set(found)
    assert found[-2:] == [hashlib.sha384(action).digest() for action in EXIT_ACTIONS]


def test_order_of_a_direct_boot_is_the_predicted_one(evidence_vectors: Path) -> None:
    """QEMU's `-kernel` under OVMF: the program, the boot action, then the kernel's command line and initrd."""
    events = parse_event_log((evidence_vectors / "tpm/cc-eventlogs/CCEL_data_ovmf").read_bytes())
    first = [event.kind for event in events if event.register == 2]
    assert first[:2] == [0x80000003, 0x80000007]
    assert [event.data.split(b"\0")[-2][-12:] for event in events if event.register == 3] == [
        b":LoadOptions",
        b"Linux initrd",
    ]


def test_the_log_of_a_quote_is_read_with_it(evidence_vectors: Path) -> None:
    place = evidence_vectors / "tdx" / "v4-ccel-replay"
    log = (place / "ccel.bin").read_bytes()
    measured = read_measured((place / "quote.bin").read_bytes(), Platform.TDX, event_log=log)
    assert measured.notes == () and len(measured.events["rtmr1"]) == 7 and len(measured.events["rtmr2"]) == 20
    other = read_measured((evidence_vectors / "tdx/v4-tappd/quote.bin").read_bytes(), Platform.TDX, event_log=log)
    assert len(other.notes) == 2 and other.events == {}


def test_no_firmware_of_a_vector_is_one_for_tdx_by_mistake(evidence_vectors: Path) -> None:
    """The last pages of an OVMF file name volumes that are not in them."""
    from cloister.errors import FormatRefused

    for name in ("ovmf_AmdSev_suffix.bin", "ovmf_OvmfX64_suffix.bin"):
        data = (evidence_vectors / "snp-measurement/cases" / name).read_bytes()
        for order in PageOrder:
            with pytest.raises(FormatRefused, match=r"imagetool\.tdx\.firmware"):
                mrtd(data, order=order)
