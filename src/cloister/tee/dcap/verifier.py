"""Verifier of DCAP quotes: which platform signed, and what Intel says of it. Pure.

Trusts: Intel's root by fingerprint or a configured root, and the caller's time. Everything else in quote and
collateral is trusted only as far as the root vouches for it. Not this module's business: what runs in the enclave or
TD, and whether the owner likes the platform (`appraisal` of `tdx` and `sgx`).

Steps:
  1 quote version, TEE type, attestation key type and vendor of the quoting enclave belong together; the quote's
    certificates and the SGX extension of its PCK certificate parse
  2 TCB info: of this TEE and FMSPC; signed, over its exact bytes, by a certificate `Intel SGX TCB Signing` under the
    root that is not revoked; in force
  3 identity of the quoting enclave: the same
  4 PCK certificate: Intel's names, a path of exactly the quote's certificates to the root, valid, on neither CA's
    revocation list
  5 report of the quoting enclave is signed by the PCK
  6 that report binds attestation key and authentication data, and nothing else
  7 the quoting enclave is Intel's: signer, product, MISCSELECT, attributes, not debug, a version Intel knows
  8 quote is signed by the attestation key
  9 TCB info is of this FMSPC and PCE; the TDX module is the one it names; a level of the platform
 10 statuses of platform, module and quoting enclave joined, advisories united; revoked platforms are refused
 11 attributes of enclave or TD: left to appraisal, where every one is judged by the owner's rules

Without collateral steps 4 (but for revocation), 5, 6 and 8 are made, the quoting enclave must not be debug, and
findings say that the rest is not known: that leaves the verdict open. Collateral past its next update is used, and
leaves it open too.

What was found of a platform is kept, by all that led to it but the time, with the time in which it holds: the next
quote of the same platform under the same collateral costs step 8. What did not hold, or left anything open, is not
kept.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Hashable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.crypto.remembered import Remembered
from cloister.crypto.x509path import verify_path
from cloister.errors import EndorsementError, EvidenceError
from cloister.rats.claims import Window
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.result import Finding, Question
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.dcap import abi, chain, tcb
from cloister.tee.dcap.collateral import gather_collateral
from cloister.tee.dcap.pck import PCKExtension, parse_pck_extension
from cloister.tee.dcap.platform import Platform
from cloister.tee.dcap.reliance import Reliance, lists_of
from cloister.tee.dcap.signatures import is_signed, is_signed_by, load_point
from cloister.tee.dcap.stated import verify_statements
from cloister.tee.dcap.statements import QEIdentity, TCBInfo

_DEBUG: Final = 1 << 1  # enclave attribute
_CACHED: Final = 1024
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedQuote(Platform):
    """A quote that a genuine platform signed, and what is known of that platform.

    Attributes:
        quote: as parsed.
        root: that its PCK certificate chains to.
        findings: checks made, and what stays open.
    """

    quote: abi.Quote
    root: TrustedRoot
    findings: tuple[Finding, ...]


def verify_quote(quote: abi.Quote, endorsements: Endorsements, *, tee: str, at: datetime) -> VerifiedQuote:
    """Return what is known of the platform that signed `quote`.

    Args:
        quote: as parsed.
        endorsements: roots for `tee`, and collateral.
        tee: wire name of the technology the evidence claims to be of: whose roots count.
        at: aware time.

    Raises:
        FormatRefused: certificates that do not parse.
        EndorsementError: a certificate, list or statement does not hold.
        EvidenceError: another step does not hold.
    """
    if at.tzinfo is None:
        raise RuntimeError("the time of a verification must be aware")
    key = _platform_key(quote, endorsements, tee)
    verification = _Verification(quote, endorsements, tee, at)
    known = _KNOWN.get(key, at)
    if known is not None:
        verification.verify_signature()
        return replace(known, quote=quote)
    verified = verification.run()
    if verified.current and verified.window is not None:
        _KNOWN.put(key, verified, verified.window.not_before, verified.window.not_after)
    return verified


def _platform_key(quote: abi.Quote, endorsements: Endorsements, tee: str) -> Hashable:
    """Return everything but the time that steps 1 to 7, 9 and 10 look at."""
    data, module = quote.data, None
    if isinstance(quote.body, abi.TDReport):
        body = quote.body
        module = (body.tee_tcb_svn, body.tee_tcb_svn2, body.mr_signer_seam, body.seam_attributes)
    return (
        quote.header.vendor_id,
        quote.tee_type,
        module,
        data.attestation_key,
        data.qe_report,
        data.qe_signature,
        data.authentication,
        data.certification,
        endorsements,
        tee,
    )


# Platforms about which everything held, by all that led to it but the time.
_KNOWN: Final[Remembered[VerifiedQuote]] = Remembered(_CACHED)


class _Verification:
    def __init__(self, quote: abi.Quote, endorsements: Endorsements, tee: str, at: datetime) -> None:
        self._quote = quote
        self._endorsements = endorsements
        self._tee = tee
        self._at = at
        self._checks = Checklist()

    def run(self) -> VerifiedQuote:
        quote, data = self._quote, self._quote.data
        # 1
        _check_vendor(quote)
        certificates = chain.parse_quote_chain(data.certification)
        pck = parse_pck_extension(certificates[0])
        collateral = gather_collateral(self._endorsements)
        carried = (*(_der(item) for item in certificates), *collateral.certificates)
        roots, anchors = chain.find_anchors(self._tee, self._endorsements, carried)
        lists = collateral.revocation_lists
        reliance = Reliance(lists, at=self._at, grace=self._endorsements.grace)
        # 2 3
        stated = verify_statements(
            collateral,
            anchors,
            tee_type=quote.tee_type,
            fmspc=pck.fmspc,
            at=self._at,
            grace=self._endorsements.grace,
        )
        info, identity = stated.info, stated.identity
        # 4
        path = self._verify_pck(certificates, anchors, reliance)
        # 5 6
        qe_report = self._verify_qe_report(certificates[0])
        # 7
        self._verify_qe(qe_report, identity)
        # 8
        self.verify_signature()
        # 9 10
        status = None if info is None else self._evaluate(info, identity, pck, qe_report)
        numbers = [item.evaluation_number for item in (info, identity) if item is not None]
        root = roots[anchors.index(path[-1])]
        findings = (*stated.checks, *self._checks.findings, *stated.others, *reliance.findings)
        return VerifiedQuote(
            quote=quote,
            root=root,
            level=root.level,
            pck=pck,
            qe_svn=qe_report.isv_svn,
            tcb=status,
            evaluation_number=min(numbers) if info is not None else None,
            window=Window(
                not_before=max((*stated.starts, *reliance.starts)), not_after=min((*stated.ends, *reliance.ends))
            ),
            findings=findings,
            crl_numbers=(_crl_number(path[1], lists), _crl_number(path[-1], lists)),
            root_key_id=_key_id(path[-1]),
            current=all(finding.ok for finding in findings),
        )

    def _verify_pck(
        self,
        certificates: tuple[x509.Certificate, ...],
        anchors: tuple[x509.Certificate, ...],
        reliance: Reliance,
    ) -> tuple[x509.Certificate, ...]:
        """Step 4."""
        path = verify_path(
            certificates[0],
            anchors=anchors,
            intermediates=certificates[1:],
            at=self._at,
            code="tee.dcap.pck_chain",
        )
        names = tuple(chain.common_name(item) for item in path[:2])
        self._checks.require(
            len(path) == 3
            and path[: len(certificates)] == certificates
            and names[0] == chain.PCK
            and names[1] in chain.PCK_CAS,
            code="tee.dcap.pck_chain",
            question=Question.AUTHENTIC,
            message="PCK certificate chains to a trusted root",
            otherwise="the certificates are not those of a platform: PCK, PCK CA, root",
            expected=f"{chain.PCK} < {' or '.join(chain.PCK_CAS)} < root",
            actual=" < ".join(chain.common_name(item) for item in path)[:160],
            path="certification data",
            error=EndorsementError,
        )
        reliance.on_path(path)
        reliance.on_lists(path[0], path[1])
        reliance.on_lists(path[1], path[2])
        return path

    def _verify_qe_report(self, pck: x509.Certificate) -> abi.EnclaveReport:
        """Steps 5 and 6."""
        data = self._quote.data
        self._checks.require(
            is_signed(pck, data.qe_signature, data.qe_report),
            code="tee.dcap.qe_signature",
            question=Question.AUTHENTIC,
            message="report of the quoting enclave is signed by the PCK",
            otherwise="report of the quoting enclave is not signed by the PCK",
            path="qe_report",
            hint="look at who carries the evidence; a genuine platform does not produce this",
        )
        report = abi.parse_enclave_report(data.qe_report)
        bound = hashlib.sha256(data.attestation_key + data.authentication).digest()
        self._checks.require(
            hmac.compare_digest(report.report_data, bound + bytes(_HASH_BYTES)),
            code="tee.dcap.qe_binding",
            question=Question.AUTHENTIC,
            message="quoting enclave vouches for the attestation key",
            otherwise="quoting enclave vouches for another attestation key",
            expected=shorten(bound),
            actual=shorten(report.report_data),
            path="attestation key",
            hint="look at who carries the evidence; a genuine platform does not produce this",
        )
        return report

    def _verify_qe(self, report: abi.EnclaveReport, identity: QEIdentity | None) -> None:
        """Step 7."""
        self._require_qe(not report.flags & _DEBUG, "debug", "off", "on")
        if identity is None:
            return
        masked = int.from_bytes(report.attributes, "little") & int.from_bytes(identity.attributes_mask, "little")
        self._require_qe(
            report.mr_signer == identity.mr_signer,
            "MRSIGNER",
            shorten(identity.mr_signer),
            shorten(report.mr_signer),
        )
        self._require_qe(
            report.isv_prod_id == identity.isv_prod_id, "ISVPRODID", str(identity.isv_prod_id), str(report.isv_prod_id)
        )
        self._require_qe(
            report.misc_select & identity.misc_select_mask == identity.misc_select,
            "MISCSELECT",
            f"{identity.misc_select:#x}",
            f"{report.misc_select:#x}",
        )
        self._require_qe(
            masked == int.from_bytes(identity.attributes, "little"),
            "ATTRIBUTES",
            identity.attributes.hex(),
            report.attributes.hex(),
        )
        tcb.require_qe_level(identity, report.isv_svn)

    def _require_qe(self, ok: bool, what: str, expected: str, actual: str) -> None:
        self._checks.require(
            ok,
            code="tee.dcap.qe_identity",
            question=Question.AUTHENTIC,
            message=f"quoting enclave: {what} is as Intel's",
            otherwise=f"quoting enclave is not the one Intel signed for: {what}",
            expected=expected,
            actual=actual,
            origin="enclave identity",
            path="qe_report",
            hint="another enclave took the quoting enclave's place",
        )

    def verify_signature(self) -> None:
        """Step 8."""
        data = self._quote.data
        key = load_point(data.attestation_key)
        self._checks.require(
            key is not None and is_signed_by(key, data.signature, self._quote.signed),
            code="tee.dcap.signature_invalid",
            question=Question.AUTHENTIC,
            message="quote is signed by the attestation key",
            otherwise="quote is not signed by the attestation key",
            path="quote",
            hint="look at who carries the evidence; a genuine platform does not produce this",
        )

    def _evaluate(
        self, info: TCBInfo, identity: QEIdentity | None, pck: PCKExtension, qe_report: abi.EnclaveReport
    ) -> tcb.TCBStatus:
        """Steps 9 and 10."""
        self._checks.require(
            (info.fmspc, info.pce_id) == (pck.fmspc, pck.pce_id),
            code="tee.dcap.fmspc",
            question=Question.AUTHENTIC,
            message="TCB info is for this kind of platform",
            otherwise="TCB info is for another kind of platform",
            expected=f"FMSPC {pck.fmspc.hex()}, PCE {pck.pce_id.hex()}",
            actual=f"FMSPC {info.fmspc.hex()}, PCE {info.pce_id.hex()}",
            origin="PCK certificate",
            path="TCB info",
            hint="fetch the collateral for the FMSPC of the platform",
            error=EndorsementError,
        )
        svns: tuple[bytes, ...] = ()
        if isinstance(self._quote.body, abi.TDReport):
            body = self._quote.body
            svns = (body.tee_tcb_svn,) if body.tee_tcb_svn2 is None else (body.tee_tcb_svn, body.tee_tcb_svn2)
            for svn in svns:
                self._verify_module(info, body, svn)
        status = tcb.evaluate_tcb(info, identity, pck, qe_report.isv_svn, svns)
        self._checks.require(
            status.status != tcb.REVOKED,
            code="tee.dcap.tcb_revoked",
            question=Question.AUTHENTIC,
            message=f"Intel has not revoked platforms of this TCB: {status.status}",
            otherwise="Intel has revoked platforms of this TCB: their keys may be known to others",
            expected="a TCB that is not revoked",
            actual=", ".join(f"{name} {word}" for name, word in status.parts),
            path="TCB info",
            hint="update the platform's firmware and have it certified again",
            error=EndorsementError,
        )
        return status

    def _verify_module(self, info: TCBInfo, report: abi.TDReport, tee_tcb_svn: bytes) -> None:
        module = tcb.module_identity(info, tee_tcb_svn)
        if module is None:
            return  # no level then, which appraisal refuses
        self._checks.require(
            tcb.matches_module(module, report),
            code="tee.dcap.module_identity",
            question=Question.AUTHENTIC,
            message="TDX module is the one Intel signed for",
            otherwise="TDX module is not the one Intel signed for",
            expected=f"signer {shorten(module.mr_signer)}, attributes {module.attributes:#x}",
            actual=f"signer {shorten(report.mr_signer_seam)}, attributes {report.seam_attributes.hex()}",
            origin="TCB info",
            path="MRSIGNERSEAM",
            hint="the host loaded another module",
        )


def _check_vendor(quote: abi.Quote) -> None:
    """Step 1, as far as the parser has not refused it."""
    if quote.header.vendor_id != abi.INTEL_QE:
        raise EvidenceError(
            "tee.dcap.quote.vendor",
            "quoting enclave of another vendor",
            expected=abi.INTEL_QE.hex(),
            actual=quote.header.vendor_id.hex(),
            path="header",
        )


@lru_cache(maxsize=_CACHED)
def _crl_number(issuer: x509.Certificate, lists: tuple[bytes, ...]) -> int | None:
    numbers = [
        extension.value.crl_number
        for item in lists_of(issuer, lists)
        for extension in item.parsed.extensions
        if isinstance(extension.value, x509.CRLNumber)
    ]
    return max(numbers, default=None)


@lru_cache(maxsize=_CACHED)
def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@lru_cache(maxsize=_CACHED)
def _key_id(certificate: x509.Certificate) -> bytes:
    point = certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha384(point).digest()
