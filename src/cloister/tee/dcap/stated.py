"""What Intel states of one kind of platform, verified: steps 2 and 3 of the verifier. Pure.

TCB info and identity of the quoting enclave are of a TEE and an FMSPC, the same for every platform of that kind. What
was found of them is kept by all that led to it but the time, with the time in which it holds: a platform never seen
before costs its own three signatures only. What did not hold, or left anything open, is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol, TypeVar

from cryptography import x509

from cloister.crypto.remembered import Remembered
from cloister.crypto.x509path import load_certificate, verify_path
from cloister.errors import EndorsementError
from cloister.rats.result import Finding, Question, Severity
from cloister.tee.checklist import Checklist
from cloister.tee.dcap import abi, chain
from cloister.tee.dcap.collateral import Collateral, Statement
from cloister.tee.dcap.reliance import Reliance
from cloister.tee.dcap.signatures import is_signed
from cloister.tee.dcap.statements import QEIdentity, TCBInfo, parse_qe_identity, parse_tcb_info

_CACHED: Final = 256


class _Dated(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def issued(self) -> datetime: ...
    @property
    def next_update(self) -> datetime: ...
    @property
    def evaluation_number(self) -> int: ...


_S = TypeVar("_S", bound=_Dated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """Statements that are Intel's.

    Attributes:
        info: None when none was given.
        identity: of the quoting enclave; None when none was given.
        checks: made.
        others: what stays open, and that the signers' certificates are not revoked.
        starts: from when what was relied on holds.
        ends: until when.
    """

    info: TCBInfo | None
    identity: QEIdentity | None
    checks: tuple[Finding, ...]
    others: tuple[Finding, ...]
    starts: tuple[datetime, ...]
    ends: tuple[datetime, ...]


_KNOWN: Final[Remembered[Stated]] = Remembered(_CACHED)


def verify_statements(
    collateral: Collateral,
    anchors: tuple[x509.Certificate, ...],
    *,
    tee_type: int,
    fmspc: bytes,
    at: datetime,
    grace: timedelta,
) -> Stated:
    """Return what is stated of platforms of `fmspc`.

    Args:
        collateral: not trusted by being given.
        anchors: trusted roots.
        tee_type: of the quote.
        fmspc: of the PCK certificate.
        at: aware time.
        grace: how long past its next update collateral may still be used.

    Raises:
        FormatRefused: a certificate or list does not parse.
        EndorsementError: a certificate, list or statement does not hold.
    """
    key = (collateral, anchors, tee_type, fmspc)
    known = _KNOWN.get(key, at)
    if known is not None:
        return known
    stated = _Statements(collateral, anchors, at, grace).verify(tee_type, fmspc)
    if stated.starts and all(finding.ok for finding in stated.others):
        _KNOWN.put(key, stated, max(stated.starts), min(stated.ends))
    return stated


class _Statements:
    def __init__(
        self, collateral: Collateral, anchors: tuple[x509.Certificate, ...], at: datetime, grace: timedelta
    ) -> None:
        self._collateral = collateral
        self._anchors = anchors
        self._signers = _signers(collateral.certificates)
        self._at = at
        self._grace = grace
        self._checks = Checklist()
        self._reliance = Reliance(collateral.revocation_lists, at=at, grace=grace)
        self._open = self._reliance.findings

    def verify(self, tee_type: int, fmspc: bytes) -> Stated:
        # 2
        info = self._tcb_info("TDX" if tee_type == abi.TDX else "SGX", fmspc)
        # 3
        identity = self._qe_identity("TD_QE" if tee_type == abi.TDX else "QE")
        return Stated(
            info=info,
            identity=identity,
            checks=self._checks.findings,
            others=tuple(self._open),
            starts=tuple(self._reliance.starts),
            ends=tuple(self._reliance.ends),
        )

    def _tcb_info(self, wanted: str, fmspc: bytes) -> TCBInfo | None:
        """Step 2."""
        parsed = [(item, parse_tcb_info(item.text)) for item in self._collateral.tcb_infos]
        found = [pair for pair in parsed if pair[1].id == wanted]
        # Only those of this platform matter where there are some; else step 9 refuses with what there is.
        found = [pair for pair in found if pair[1].fmspc == fmspc] or found
        return self._newest(found, "tee.dcap.tcb_info", "TCB info", "the TCB status of the platform is not known")

    def _qe_identity(self, wanted: str) -> QEIdentity | None:
        """Step 3."""
        parsed = [(item, parse_qe_identity(item.text)) for item in self._collateral.qe_identities]
        found = [pair for pair in parsed if pair[1].id == wanted]
        return self._newest(
            found, "tee.dcap.qe_identity", "enclave identity", "whether the quoting enclave is Intel's is not known"
        )

    def _newest(self, found: Sequence[tuple[Statement, _S]], code: str, what: str, otherwise: str) -> _S | None:
        """Return the statement to use: of those in force the one of the newest evaluation, else the newest."""
        if not found:
            self._open.append(_unknown("tee.dcap.collateral.missing", f"{otherwise}: no {what} was given"))
            return None
        for statement, _ in found:
            self._verify_statement(statement, code, what)
        newest = max((item for _, item in found), key=self._rank)
        reliance = self._reliance
        reliance.between(newest.issued, newest.next_update)
        # At another time another of them would be chosen: what is found now holds until then.
        reliance.starts += [item.next_update for _, item in found if item.next_update <= self._at]
        reliance.ends += [item.issued for _, item in found if item.issued > self._at]
        self._judge_age(newest, what)
        return newest

    def _rank(self, statement: _Dated) -> tuple[bool, int, datetime]:
        in_force = statement.issued <= self._at < statement.next_update
        return in_force, statement.evaluation_number if in_force else 0, statement.issued

    def _judge_age(self, statement: _Dated, what: str) -> None:
        if statement.issued <= self._at < statement.next_update:
            return
        grace = statement.issued <= self._at < statement.next_update + self._grace
        self._open.append(
            Finding(
                code="tee.dcap.collateral.stale",
                question=Question.AUTHENTIC,
                ok=False,
                severity=Severity.WARNING if grace else Severity.UNAVAILABLE,
                message=f"{what} is not in force" + (", within the grace" if grace else ""),
                expected=f"{statement.issued.isoformat()} to {statement.next_update.isoformat()}",
                actual=self._at.isoformat(timespec="seconds"),
                hint="fetch the vendor's current collateral",
                path=what,
            )
        )

    def _verify_statement(self, statement: Statement, code: str, what: str) -> None:
        signer = next((item for item in self._signers if is_signed(item, statement.signature, statement.text)), None)
        self._checks.require(
            signer is not None,
            code=f"{code}.signature",
            question=Question.AUTHENTIC,
            message=f"{what} is signed by {chain.TCB_SIGNING}",
            otherwise=f"{what} is not signed by any certificate {chain.TCB_SIGNING} that was given",
            expected=f"a signature over {len(statement.text)} bytes",
            actual=f"{len(self._signers)} signers were tried",
            path=what,
            hint="the collateral was altered, or its issuer chain is missing: fetch it from the vendor again",
            error=EndorsementError,
        )
        if signer is not None:
            path = verify_path(signer, anchors=self._anchors, at=self._at, code="tee.dcap.tcb_signing")
            self._reliance.on_path(path)
            self._reliance.on_lists(signer, path[1])


def _unknown(code: str, message: str) -> Finding:
    return Finding(
        code=code,
        question=Question.AUTHENTIC,
        ok=False,
        severity=Severity.UNAVAILABLE,
        message=message,
        expected="the vendor's collateral for this platform",
        actual="none",
        hint="fetch the collateral for the FMSPC in the PCK certificate",
    )


@lru_cache(maxsize=_CACHED)
def _signers(certificates: tuple[bytes, ...]) -> tuple[x509.Certificate, ...]:
    """Return the certificates that by their name may sign collateral."""
    parsed = (load_certificate(der, code="tee.dcap.collateral") for der in certificates)
    return tuple(item for item in parsed if chain.common_name(item) == chain.TCB_SIGNING)
