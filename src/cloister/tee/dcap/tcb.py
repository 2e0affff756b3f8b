"""What Intel's statements say of a platform: level, status, advisories. Pure, no cryptography.

Intel SGX and TDX PCS API version 4, "Get TCB Info": levels are sorted from newest to oldest; the first whose every
version the platform has is the platform's. From major version 1 on (`TEE_TCB_SVN[1]`) the TDX module has an identity
and levels of its own, and its two components are judged by these alone. The quoting enclave has levels too.

Statuses of the parts are joined: none can be better than any of its parts. A TD 1.5 report has the versions the TD was
launched with and those that run now: when only the launch was out of date, relaunching it is what Intel advises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cloister.errors import EvidenceError
from cloister.tee.dcap.abi import TDReport
from cloister.tee.dcap.pck import PCKExtension
from cloister.tee.dcap.statements import ISVLevel, ModuleIdentity, PlatformLevel, QEIdentity, TCBInfo

UNSUPPORTED: Final = "Unsupported"  # not Intel's word: no level matches, so Intel says nothing of the platform
REVOKED: Final = "Revoked"
RELAUNCH: Final = "TDRelaunchAdvised"
RELAUNCH_CONFIGURATION: Final = "TDRelaunchAdvisedConfigurationNeeded"
_MODULE_MAJOR, _MODULE_MINOR = 1, 0  # indexes into TEE_TCB_SVN
_HARDENING: Final = frozenset({"SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"})
_CONFIGURATION: Final = frozenset(
    {"ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDateConfigurationNeeded"}
)
_OUT_OF_DATE: Final = frozenset({"OutOfDate", "OutOfDateConfigurationNeeded"})
_CACHED: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TCBStatus:
    """What Intel says of a platform with certain versions.

    Attributes:
        status: Intel's word for all parts together, or `Unsupported`.
        advisories: of all parts, sorted.
        date: of the oldest level among the parts; None when one has no level.
        parts: status by part (`platform`, `module`, `qe`).
    """

    status: str
    advisories: tuple[str, ...]
    date: datetime | None
    parts: tuple[tuple[str, str], ...]


@lru_cache(maxsize=_CACHED)
def evaluate_tcb(
    info: TCBInfo, identity: QEIdentity | None, pck: PCKExtension, qe_svn: int, tee_tcb_svns: tuple[bytes, ...]
) -> TCBStatus:
    """Return what the statements say.

    Args:
        info: for the FMSPC of `pck`.
        identity: of the quoting enclave; None when none was given.
        pck: versions of the platform.
        qe_svn: version of the quoting enclave.
        tee_tcb_svns: none for SGX; TEE_TCB_SVN of a TD, and TEE_TCB_SVN2 where its report has it.
    """
    found = [_evaluate(info, identity, pck, qe_svn, svn) for svn in tee_tcb_svns or (None,)]
    return found[0] if len(found) == 1 or found[0] == found[1] else _relaunch(*found)


def join_statuses(statuses: Sequence[str]) -> str:
    """Return the status of something whose parts have `statuses`: no better than any of them."""
    found = set(statuses)
    for word in (UNSUPPORTED, REVOKED):
        if word in found:
            return word
    out_of_date, configuration, hardening = (bool(found & of) for of in (_OUT_OF_DATE, _CONFIGURATION, _HARDENING))
    if out_of_date:
        return "OutOfDateConfigurationNeeded" if configuration else "OutOfDate"
    if configuration:
        return "ConfigurationAndSWHardeningNeeded" if hardening else "ConfigurationNeeded"
    return "SWHardeningNeeded" if hardening else "UpToDate"


def module_identity(info: TCBInfo, tee_tcb_svn: bytes) -> ModuleIdentity | None:
    """Return the identity that the TDX module of these versions must have; None when Intel names none."""
    major = tee_tcb_svn[_MODULE_MAJOR]
    if major == 0:
        return info.module
    name = f"TDX_{major:02X}"
    return next((item for item in info.modules if item.id.upper() == name), None)


def matches_module(identity: ModuleIdentity, report: TDReport) -> bool:
    """Return whether the TDX module of `report` has this signer and these attributes."""
    attributes = int.from_bytes(report.seam_attributes, "little")
    return report.mr_signer_seam == identity.mr_signer and attributes & identity.attributes_mask == identity.attributes


def require_qe_level(identity: QEIdentity, isv_svn: int) -> ISVLevel:
    """Return the level of the quoting enclave.

    Raises:
        EvidenceError: older than every level (`tee.dcap.qe_identity`).
    """
    level = _isv_level(identity.levels, isv_svn)
    if level is None:
        raise EvidenceError(
            "tee.dcap.qe_identity",
            "quoting enclave is older than every version Intel knows",
            expected=f"ISVSVN of {', '.join(str(item.isv_svn) for item in identity.levels)} or newer",
            actual=str(isv_svn),
            path="qe_report",
        )
    return level


def _evaluate(
    info: TCBInfo, identity: QEIdentity | None, pck: PCKExtension, qe_svn: int, tee_tcb_svn: bytes | None
) -> TCBStatus:
    levels: list[tuple[str, PlatformLevel | ISVLevel | None]] = [("platform", _platform_level(info, pck, tee_tcb_svn))]
    if tee_tcb_svn is not None and tee_tcb_svn[_MODULE_MAJOR]:
        module = module_identity(info, tee_tcb_svn)
        levels.append(("module", _isv_level(module.levels, tee_tcb_svn[_MODULE_MINOR]) if module else None))
    if identity is not None:
        levels.append(("qe", _isv_level(identity.levels, qe_svn)))
    known = [level for _, level in levels if level is not None]
    parts = tuple((name, level.status if level is not None else UNSUPPORTED) for name, level in levels)
    return TCBStatus(
        status=join_statuses([status for _, status in parts]),
        advisories=tuple(sorted({item for level in known for item in level.advisories})),
        date=min(level.date for level in known) if len(known) == len(levels) else None,
        parts=parts,
    )


def _platform_level(info: TCBInfo, pck: PCKExtension, tee_tcb_svn: bytes | None) -> PlatformLevel | None:
    first = 2 if tee_tcb_svn is not None and tee_tcb_svn[_MODULE_MAJOR] else 0  # 0 and 1 are the module's own
    for level in info.levels:
        if (
            pck.pce_svn >= level.pce_svn
            and all(map(int.__ge__, pck.components, level.sgx))
            and (tee_tcb_svn is None or all(map(int.__ge__, tee_tcb_svn[first:], level.tdx[first:])))
        ):
            return level
    return None


def _isv_level(levels: Sequence[ISVLevel], isv_svn: int) -> ISVLevel | None:
    return next((level for level in levels if isv_svn >= level.isv_svn), None)


def _relaunch(launched: TCBStatus, running: TCBStatus) -> TCBStatus:
    """Return the status of a TD launched with the versions of one status, on a platform that runs those of another."""
    status = launched.status
    if running.status in (UNSUPPORTED, REVOKED):
        status = running.status
    elif launched.status in _OUT_OF_DATE and running.status not in _OUT_OF_DATE:
        status = RELAUNCH_CONFIGURATION if {launched.status, running.status} & _CONFIGURATION else RELAUNCH
    return TCBStatus(
        status=status,
        advisories=tuple(sorted({*launched.advisories, *running.advisories})),
        date=launched.date,
        parts=(*launched.parts, *((f"running {name}", word) for name, word in running.parts)),
    )
