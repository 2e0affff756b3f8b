"""Intel's signed statements: TCB info (version 3) and enclave identity (version 2). Types and parser, pure.

Source: Intel SGX and TDX Provisioning Certification Service API, version 4, "Get TCB Info" and "Get Enclave Identity".
Members that are not known are skipped, because Intel adds some and the statement is signed as a whole. What is read
here counts only after `cloister.tee.dcap.verifier` verified the signature over the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec

from cloister.errors import EndorsementError
from cloister.tee.dcap.pck import COMPONENTS

_CACHED: Final = 512
STATUSES: Final = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "Revoked",
    }
)


class _Component(msgspec.Struct, frozen=True):
    svn: int


class _PlatformTCB(msgspec.Struct, frozen=True):
    sgxtcbcomponents: tuple[_Component, ...]
    pcesvn: int
    tdxtcbcomponents: tuple[_Component, ...] = ()


class _PlatformLevel(msgspec.Struct, frozen=True):
    tcb: _PlatformTCB
    tcbDate: str
    tcbStatus: str
    advisoryIDs: tuple[str, ...] = ()


class _ISVTCB(msgspec.Struct, frozen=True):
    isvsvn: int


class _ISVLevel(msgspec.Struct, frozen=True):
    tcb: _ISVTCB
    tcbDate: str
    tcbStatus: str
    advisoryIDs: tuple[str, ...] = ()


class _Module(msgspec.Struct, frozen=True):
    mrsigner: str
    attributes: str
    attributesMask: str


class _ModuleIdentity(_Module, frozen=True):
    id: str
    tcbLevels: tuple[_ISVLevel, ...]


class _TCBInfo(msgspec.Struct, frozen=True):
    id: str
    version: int
    issueDate: str
    nextUpdate: str
    fmspc: str
    pceId: str
    tcbType: int
    tcbEvaluationDataNumber: int
    tcbLevels: tuple[_PlatformLevel, ...]
    tdxModule: _Module | None = None
    tdxModuleIdentities: tuple[_ModuleIdentity, ...] = ()


class _EnclaveIdentity(msgspec.Struct, frozen=True):
    id: str
    version: int
    issueDate: str
    nextUpdate: str
    tcbEvaluationDataNumber: int
    miscselect: str
    miscselectMask: str
    attributes: str
    attributesMask: str
    mrsigner: str
    isvprodid: int
    tcbLevels: tuple[_ISVLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformLevel:
    """One level of a TCB info: the least versions, and what Intel says of platforms that have them."""

    sgx: tuple[int, ...]
    pce_svn: int
    tdx: tuple[int, ...]
    status: str
    date: datetime
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ISVLevel:
    """One level of an enclave or of the TDX module."""

    isv_svn: int
    status: str
    date: datetime
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleIdentity:
    """Who signed the TDX module, and its levels; `id` is empty for the module of TDX 1.0, which has no levels."""

    id: str
    mr_signer: bytes
    attributes: int
    attributes_mask: int
    levels: tuple[ISVLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TCBInfo:
    """TCB info of one kind of platform. Compared by identity: the parser returns the same object for the same text."""

    id: str
    issued: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    levels: tuple[PlatformLevel, ...]
    module: ModuleIdentity | None
    modules: tuple[ModuleIdentity, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QEIdentity:
    """Identity of the quoting enclave. Compared by identity, like `TCBInfo`."""

    id: str
    issued: datetime
    next_update: datetime
    evaluation_number: int
    misc_select: int
    misc_select_mask: int
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[ISVLevel, ...]


@lru_cache(maxsize=_CACHED)
def parse_tcb_info(text: bytes) -> TCBInfo:
    """Parse the text of a TCB info.

    Raises:
        EndorsementError: not one of version 3 (`tee.dcap.tcb_info.malformed`).
    """
    code = "tee.dcap.tcb_info.malformed"
    try:
        wire = msgspec.json.decode(text, type=_TCBInfo)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise EndorsementError(code, f"not a TCB info: {err}"[:160]) from err
    if wire.version != 3 or wire.id not in ("SGX", "TDX") or wire.tcbType != 0:
        raise EndorsementError(
            code,
            "TCB info of an unknown kind",
            expected="SGX or TDX, version 3, type 0",
            actual=f"{wire.id[:16]}, version {wire.version}, type {wire.tcbType}",
        )
    try:
        return TCBInfo(
            id=wire.id,
            issued=_moment(wire.issueDate),
            next_update=_moment(wire.nextUpdate),
            fmspc=_fixed(wire.fmspc, 6),
            pce_id=_fixed(wire.pceId, 2),
            evaluation_number=wire.tcbEvaluationDataNumber,
            levels=tuple(_platform_level(level, tdx=wire.id == "TDX") for level in wire.tcbLevels),
            module=None if wire.tdxModule is None else _module("", wire.tdxModule, ()),
            modules=tuple(_module(item.id, item, item.tcbLevels) for item in wire.tdxModuleIdentities),
        )
    except ValueError as err:
        raise EndorsementError(code, f"TCB info is malformed: {err}"[:160]) from err


@lru_cache(maxsize=_CACHED)
def parse_qe_identity(text: bytes) -> QEIdentity:
    """Parse the text of an enclave identity.

    Raises:
        EndorsementError: not one of version 2 (`tee.dcap.qe_identity.malformed`).
    """
    code = "tee.dcap.qe_identity.malformed"
    try:
        wire = msgspec.json.decode(text, type=_EnclaveIdentity)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise EndorsementError(code, f"not an enclave identity: {err}"[:160]) from err
    if wire.version != 2:
        raise EndorsementError(code, "enclave identity of an unknown version", expected="2", actual=str(wire.version))
    try:
        return QEIdentity(
            id=wire.id,
            issued=_moment(wire.issueDate),
            next_update=_moment(wire.nextUpdate),
            evaluation_number=wire.tcbEvaluationDataNumber,
            misc_select=int.from_bytes(_fixed(wire.miscselect, 4), "little"),
            misc_select_mask=int.from_bytes(_fixed(wire.miscselectMask, 4), "little"),
            attributes=_fixed(wire.attributes, 16),
            attributes_mask=_fixed(wire.attributesMask, 16),
            mr_signer=_fixed(wire.mrsigner, 32),
            isv_prod_id=wire.isvprodid,
            levels=tuple(map(_isv_level, wire.tcbLevels)),
        )
    except ValueError as err:
        raise EndorsementError(code, f"enclave identity is malformed: {err}"[:160]) from err


def _platform_level(wire: _PlatformLevel, *, tdx: bool) -> PlatformLevel:
    sgx = tuple(item.svn for item in wire.tcb.sgxtcbcomponents)
    tdx_svns = tuple(item.svn for item in wire.tcb.tdxtcbcomponents)
    if len(sgx) != COMPONENTS or len(tdx_svns) != (COMPONENTS if tdx else 0):
        # Fewer would be compared as far as they go, and pass.
        raise ValueError(f"a level has {len(sgx)} and {len(tdx_svns)} components")
    return PlatformLevel(
        sgx=sgx,
        pce_svn=wire.tcb.pcesvn,
        tdx=tdx_svns,
        status=_status(wire.tcbStatus),
        date=_moment(wire.tcbDate),
        advisories=wire.advisoryIDs,
    )


def _isv_level(wire: _ISVLevel) -> ISVLevel:
    return ISVLevel(
        isv_svn=wire.tcb.isvsvn,
        status=_status(wire.tcbStatus),
        date=_moment(wire.tcbDate),
        advisories=wire.advisoryIDs,
    )


def _module(name: str, wire: _Module, levels: tuple[_ISVLevel, ...]) -> ModuleIdentity:
    return ModuleIdentity(
        id=name,
        mr_signer=_fixed(wire.mrsigner, 48),
        attributes=int.from_bytes(_fixed(wire.attributes, 8), "little"),
        attributes_mask=int.from_bytes(_fixed(wire.attributesMask, 8), "little"),
        levels=tuple(map(_isv_level, levels)),
    )


def _status(word: str) -> str:
    if word not in STATUSES:
        raise ValueError(f"unknown TCB status {word[:40]!r}")
    return word


def _moment(text: str) -> datetime:
    """Return an aware time; Intel writes UTC with `Z`."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without zone")
    return moment.astimezone(UTC)


def _fixed(text: str, size: int) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != size or len(text) != 2 * size:
        raise ValueError(f"{size} bytes expected, in hex")
    return value
