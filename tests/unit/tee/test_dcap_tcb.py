"""TCB levels: which one is the platform's, and what its parts come to together."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from cloister.errors import EvidenceError
from cloister.tee.dcap.pck import PCKExtension, _read_extension
from cloister.tee.dcap.statements import STATUSES, QEIdentity, TCBInfo, parse_qe_identity, parse_tcb_info
from cloister.tee.dcap.tcb import evaluate_tcb, join_statuses, module_identity, require_qe_level
from cloister.testing.dcap import Machine, isv_level, platform_level, qe_identity_of, tcb_info_of


def info(kind: str = "TDX", **changes: Any) -> TCBInfo:
    return parse_tcb_info(json.dumps({**tcb_info_of(kind), **changes}).encode())


def identity(kind: str = "TDX", **changes: Any) -> QEIdentity:
    return parse_qe_identity(json.dumps({**qe_identity_of(kind), **changes}).encode())


def machine(**changes: Any) -> PCKExtension:
    return _read_extension(Machine(**changes).extension())


def svn(*values: int) -> bytes:
    return bytes(values).ljust(16, b"\0")


def status(*svns: bytes, pck: PCKExtension | None = None, qe_svn: int = 8, **changes: Any) -> str:
    return evaluate_tcb(info(**changes), identity(), pck or machine(), qe_svn, svns or (svn(5, 1, 2),)).status


def test_the_newest_level_a_platform_reaches() -> None:
    found = evaluate_tcb(info(), identity(), machine(), 8, (svn(5, 1, 2),))
    assert (found.status, found.advisories) == ("UpToDate", ())
    assert dict(found.parts) == {"platform": "UpToDate", "module": "UpToDate", "qe": "UpToDate"}


@pytest.mark.parametrize("index", range(16))
def test_every_sgx_component_counts(index: int) -> None:
    components = [5] * 16
    components[index] = 4
    assert status(pck=machine(components=tuple(components))) == "OutOfDate"
    components[index] = 0
    assert status(pck=machine(components=tuple(components))) == "Unsupported"


def test_the_pce_counts() -> None:
    assert status(pck=machine(pce_svn=10)) == "OutOfDate"
    assert status(pck=machine(pce_svn=4)) == "Unsupported"


@pytest.mark.parametrize("index", range(2, 16))
def test_every_tdx_component_counts(index: int) -> None:
    least = [5, 0, *[2] * 14]
    levels = [platform_level("TDX", sgx=5, pce=11, tdx=least)]
    reached = [5, 1, *[2] * 14]
    assert status(bytes(reached), tcbLevels=levels) == "UpToDate"
    reached[index] = 1
    assert status(bytes(reached), tcbLevels=levels) == "Unsupported"


def test_components_of_the_module_are_judged_by_its_identity_alone() -> None:
    """From major version 1 on; Intel PCS, "Get TCB Info", 3 c and d."""
    assert status(svn(4, 0, 2)) == "OutOfDate"  # 1.0: all sixteen are the platform's
    for least in ((9, 0, 2), (0, 9, 2)):
        levels = [platform_level("TDX", sgx=5, pce=11, tdx=least)]
        assert status(svn(5, 1, 2), tcbLevels=levels) == "UpToDate"
        assert status(svn(5, 0, 2), tcbLevels=levels) == "Unsupported"
    found = evaluate_tcb(info(), identity(), machine(), 8, (svn(4, 1, 2),))
    assert dict(found.parts) == {"platform": "UpToDate", "module": "OutOfDate", "qe": "UpToDate"}
    assert (found.status, found.advisories) == ("OutOfDate", ("INTEL-SA-01099",))


def test_a_module_without_a_level_or_an_identity() -> None:
    assert status(svn(1, 1, 2)) == "Unsupported"
    assert status(svn(5, 2, 2)) == "Unsupported"
    assert module_identity(info(), svn(5, 2)) is None
    assert module_identity(info(), svn(5, 0)) is info().module


def test_the_quoting_enclave_counts() -> None:
    found = evaluate_tcb(info(), identity(), machine(), 5, (svn(5, 1, 2),))
    assert (found.status, found.advisories) == ("OutOfDate", ("INTEL-SA-00615",))
    with pytest.raises(EvidenceError) as caught:
        require_qe_level(identity(), 3)
    assert caught.value.code == "tee.dcap.qe_identity"


def test_advisories_are_united() -> None:
    found = evaluate_tcb(info(), identity(), machine(pce_svn=10), 5, (svn(4, 1, 2),))
    assert found.advisories == ("INTEL-SA-00615", "INTEL-SA-01036", "INTEL-SA-01099")


def test_without_an_identity_the_rest_is_judged() -> None:
    assert evaluate_tcb(info(), None, machine(), 8, (svn(5, 1, 2),)).status == "UpToDate"


def test_enclaves_have_no_module() -> None:
    found = evaluate_tcb(info("SGX"), identity("SGX"), machine(), 8, ())
    assert dict(found.parts) == {"platform": "UpToDate", "qe": "UpToDate"}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("UpToDate", "UpToDate"), "UpToDate"),
        (("SWHardeningNeeded", "UpToDate"), "SWHardeningNeeded"),
        (("ConfigurationNeeded", "UpToDate"), "ConfigurationNeeded"),
        (("UpToDate", "OutOfDate"), "OutOfDate"),
        (("SWHardeningNeeded", "OutOfDate"), "OutOfDate"),
        (("ConfigurationNeeded", "OutOfDate"), "OutOfDateConfigurationNeeded"),
        (("ConfigurationAndSWHardeningNeeded", "OutOfDate"), "OutOfDateConfigurationNeeded"),
        (("SWHardeningNeeded", "ConfigurationNeeded"), "ConfigurationAndSWHardeningNeeded"),
        (("OutOfDate", "Revoked"), "Revoked"),
        (("Revoked", "Unsupported"), "Unsupported"),
    ],
)
def test_joined_statuses(parts: tuple[str, str], expected: str) -> None:
    assert join_statuses(parts) == expected
    assert join_statuses(parts[::-1]) == expected


def test_nothing_is_better_than_a_part() -> None:
    for one, other in itertools.product(STATUSES, repeat=2):
        joined = join_statuses([one, other])
        assert joined in STATUSES
        assert join_statuses([joined, one]) == joined == join_statuses([joined, other])
        assert (joined == "UpToDate") == (one == other == "UpToDate")


OLD, NEW = svn(2, 1, 2), svn(5, 1, 2)


@pytest.mark.parametrize(
    ("launched", "running", "platform", "expected"),
    [
        (OLD, NEW, "UpToDate", "TDRelaunchAdvised"),
        (OLD, NEW, "SWHardeningNeeded", "TDRelaunchAdvised"),
        (OLD, NEW, "ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        (OLD, NEW, "OutOfDate", "OutOfDate"),
        (OLD, OLD, "UpToDate", "OutOfDate"),
        (NEW, OLD, "UpToDate", "UpToDate"),
        (NEW, NEW, "UpToDate", "UpToDate"),
        (NEW, svn(5, 2, 2), "UpToDate", "Unsupported"),
        (svn(1, 1, 2), NEW, "UpToDate", "Unsupported"),
    ],
)
def test_relaunch(launched: bytes, running: bytes, platform: str, expected: str) -> None:
    levels = [platform_level("TDX", sgx=5, pce=11, tdx=(5, 0, 2), status=platform)]
    assert status(launched, running, tcbLevels=levels) == expected


def test_a_running_module_that_is_revoked_is_revoked() -> None:
    modules = tcb_info_of("TDX")["tdxModuleIdentities"]
    modules[0]["tcbLevels"].insert(0, isv_level(9, status="Revoked"))
    assert status(NEW, svn(9, 1, 2), tdxModuleIdentities=modules) == "Revoked"
