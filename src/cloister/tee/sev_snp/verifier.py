"""Verifier of SEV-SNP evidence: did AMD's hardware sign this report, and with which key of which chip. Pure.

Trusts: the roots that are configured or pinned (AMD's ARK of each product line, by fingerprint), and the caller's
time. Certificates that come with the evidence or as endorsements are worth what those roots vouch for.

Steps, numbered as in the checklist of checks that other verifiers make or miss:
  1 the report has exactly its length, a known version and algorithm, zeros where reserved, R and S in range
  2 the product line: by the CPU (version 3 and newer), else by the certificate; only ARKs of that line are anchors
  3 SIGNING_KEY decides between VCEK and VLEK, and with it the certificate's subject, its issuer, and its product name
  4 every certificate is valid at the given time, VEK < ASK or ASVK < ARK; no CA is on the list of the ARK
  5 the signature of the report
  6 the TCB in the certificate is the reported TCB, every component of it
  7 the chip id is the certificate's hardware id, for a VCEK, unless the platform masks it
  8 to 10 policy, TCB, measurement and binding are facts, claims and slots, judged by `appraisal` and `rats.binding`
 11 evidence bytes identify nothing: for every signature (R, S) there is another, (R, n-S), that holds as well

Not checked, and said so in the result: revocation of the VEK itself. AMD publishes a list of the ARK, for its CAs. All
VEKs have the serial number zero, so a list could not name one; an entry of serial zero on the ARK's list is not about
a VEK either, because the ARK issued none. A list by the VEK's own issuer is looked at when there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.errors import EndorsementError, Refused
from cloister.rats.claims import TCB, Claims, Level, Role, Window
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import Finding, Question, Unchecked
from cloister.tee.checklist import Checklist
from cloister.tee.sev_snp.abi import CODE as REPORT_CODE
from cloister.tee.sev_snp.abi import (
    HOST_DATA_BYTES,
    PLATFORM_BITS,
    POLICY_BITS,
    REPORT_DATA_BYTES,
    SIGNED_BYTES,
    VCEK,
    VLEK,
    WITH_MITIGATIONS,
    Report,
    parse_report,
)
from cloister.tee.sev_snp.appraisal import SNPFacts
from cloister.tee.sev_snp.chain import subject_of, verify_chain
from cloister.tee.sev_snp.evidence import TEE, parse_evidence
from cloister.tee.sev_snp.products import CHIP_ID_BYTES, Product, TCBLayout, product_of_cpu, silicon_of_cpu
from cloister.tee.sev_snp.vek import VCEK_NAME, VEK, VLEK_NAME, load_vek

_SUBJECTS: Final = {VCEK: VCEK_NAME, VLEK: VLEK_NAME}
_MITIGATION_BITS: Final = 8  # that are named in claims; AMD has defined five
_MASKED: Final = Unchecked(reason="the chip: the platform masks its id, so the report does not say which one signed")
_OF_CLOUD: Final = Unchecked(reason="the chip: a VLEK is a key of the cloud and is not bound to one")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReport:
    """A report whose signature chain holds: what technologies that embed one build their claims from.

    Attributes:
        report: as laid out.
        product: product line.
        vek: certificate of the key that signed.
        tcb: the four TCB versions by component.
        root: where the chain ends.
        window: validity of the chain and of the revocation list.
        findings: every check made.
        unchecked: what was deliberately not checked.
    """

    report: Report
    product: Product
    vek: VEK
    tcb: TCB
    root: TrustedRoot
    window: Window
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify the signature chain of SNP evidence.

    Args:
        evidence: as received, for technology `snp`.
        endorsements: roots or pins for `snp`, certificates and revocation lists.
        at: aware time.
        session_secret: not used; SNP has no credential activation.

    Raises:
        FormatRefused: the evidence, the report or a certificate does not parse.
        EndorsementError: a certificate or a revocation list does not hold.
        EvidenceError: the signature or another check does not hold.
    """
    parsed = parse_evidence(evidence)
    verified = verify_report(
        parsed.report,
        parsed.certificates,
        endorsements,
        at=at,
        tee=TEE,
        revocation_lists=parsed.revocation_lists,
    )
    report = verified.report
    return AuthenticEvidence(
        claims=claims_of(verified, tee=TEE),
        findings=verified.findings,
        unchecked=verified.unchecked,
        # 10
        freshness=Slot(
            name="REPORT_DATA", value=report.report_data, size=REPORT_DATA_BYTES, path="attestation_report.report_data"
        ),
        init_data=Slot(
            name="HOST_DATA", value=report.host_data, size=HOST_DATA_BYTES, path="attestation_report.host_data"
        ),
        facts=facts_of(verified),
    )


def verify_report(
    data: bytes,
    certificates: Sequence[bytes],
    endorsements: Endorsements,
    *,
    at: datetime,
    tee: str = TEE,
    revocation_lists: Sequence[bytes] = (),
) -> VerifiedReport:
    """Verify the signature chain of a raw report; steps 1 to 7.

    Args:
        data: the report, 1184 bytes.
        certificates: DER, that came with it: VCEK or VLEK, CAs; not trusted by being given.
        endorsements: roots or pins for `tee`, further certificates, revocation lists.
        at: aware time.
        tee: technology whose roots apply.
        revocation_lists: that came with it; not trusted by being given.

    Raises:
        FormatRefused: the report or a certificate does not parse.
        EndorsementError: a certificate or a revocation list does not hold.
        EvidenceError: the signature or another check does not hold.
    """
    # 1
    report = parse_report(data)
    checks = Checklist()
    given = tuple(dict.fromkeys((*certificates, *endorsements.certificates)))
    roots = endorsements.roots_for(tee, certificates)
    if not roots and not any(pin.tee == tee for pin in endorsements.pins):
        raise EndorsementError(
            "tee.sev_snp.no_roots",
            "no root of AMD is trusted",
            expected="the ARK of a product line, pinned or configured",
            actual="none",
            hint="use the pins of this build, or configure an ARK",
        )
    # 2, 3
    product = product_of_cpu(*report.cpuid[:2]) if report.cpuid is not None else None
    if report.cpuid is not None and product is None:
        raise EndorsementError(
            "tee.sev_snp.product",
            "report is of a CPU of no product line that is known",
            path="CPUID",
            actual="family {:#x}, model {:#x}, stepping {}".format(*report.cpuid),
            hint="a newer Cloister may know it",
        )
    vek = _find_vek(report, product, given)
    product = vek.product
    # 4
    chain = verify_chain(
        vek,
        roots=roots,
        certificates=given,
        lists=(*endorsements.revocation_lists, *revocation_lists),
        at=at,
        grace=endorsements.grace,
    )
    # 5
    _verify_signature(checks, data, report, vek)
    # 6
    tcb = _verify_tcb(checks, report, vek, product)
    # 7
    not_bound = _verify_chip(checks, report, vek)
    return VerifiedReport(
        report=report,
        product=product,
        vek=vek,
        tcb=tcb,
        root=chain.root,
        window=chain.window,
        findings=(*chain.findings, *checks.findings),
        unchecked=(*chain.unchecked, *not_bound),
    )


def _find_vek(report: Report, product: Product | None, certificates: Sequence[bytes]) -> VEK:
    """Steps 2 and 3: the one certificate of the kind that the report says signed it.

    Among several (a store of a fleet) the one of this chip and TCB; which one is taken decides nothing, all checks
    follow.
    """
    kind = _SUBJECTS.get(report.signing_key)
    if kind is None:
        raise EndorsementError(
            "tee.sev_snp.signing_key",
            "report is signed by no key that could be certified",
            path="SIGNING_KEY",
            expected="0 (VCEK) or 1 (VLEK)",
            actual=str(report.signing_key),
        )
    named = [der for der in certificates if subject_of(der) == kind]
    if not named:
        raise EndorsementError(
            "tee.sev_snp.no_vek",
            f"no certificate of the {kind.removeprefix('SEV-')} that signed the report",
            expected=f"a certificate named {kind}",
            actual=f"{len(certificates)} other certificates",
            hint="give the certificate: it is had from AMD's KDS, from the cloud, or from the host",
        )
    vek = load_vek(named[0]) if len(named) == 1 else _most_alike(report, product, named)
    if product is not None and vek.product is not product:
        raise EndorsementError(
            "tee.sev_snp.product",
            "certificate is of another product line than the report's CPU",
            path="productName",
            expected=product.line,
            actual=vek.product_name,
        )
    return vek


def _most_alike(report: Report, product: Product | None, certificates: Sequence[bytes]) -> VEK:
    """Return the certificate most like the one that is looked for; a malformed one spoils no store."""
    best: tuple[int, VEK] | None = None
    failure: Refused | None = None
    for der in certificates:
        try:
            vek = load_vek(der)
        except Refused as err:
            failure = failure or err
            continue
        same_line = product is None or vek.product is product
        same_chip = not vek.hwid or report.chip_id.startswith(vek.hwid)
        same_tcb = vek.product.layout.encode(vek.tcb) == report.reported_tcb
        likeness = 4 * same_line + 2 * same_chip + same_tcb
        if best is None or likeness > best[0]:
            best = (likeness, vek)
    if best is not None:
        return best[1]
    raise failure if failure is not None else RuntimeError("no certificate was given")


def _verify_signature(checks: Checklist, data: bytes, report: Report, vek: VEK) -> None:
    """Step 5. Over the bytes as received, never over bytes put together again."""
    try:
        vek.key.verify(encode_dss_signature(report.r, report.s), data[:SIGNED_BYTES], ECDSA(SHA384()))
        ok = True
    except InvalidSignature:
        ok = False
    checks.require(
        ok,
        code="tee.sev_snp.signature_invalid",
        question=Question.AUTHENTIC,
        message="report is signed by the certified key",
        otherwise="report is not signed by the certified key",
        expected="ECDSA P-384 with SHA-384",
        origin="SEV-SNP Firmware ABI, ATTESTATION_REPORT",
        path="SIGNATURE",
        hint="the report was altered, or the certificate is of another chip or TCB",
    )


def _verify_tcb(checks: Checklist, report: Report, vek: VEK, product: Product) -> TCB:
    """Step 6. The key is derived from the TCB: a certificate of another TCB is of another key."""
    layout = product.layout
    certified = {name: vek.tcb[name] for name in layout.places}
    extra = [name for name, version in vek.tcb.items() if name not in certified and version]
    checks.require(
        layout.encode(certified) == report.reported_tcb and not extra,
        code="tee.sev_snp.tcb_mismatch",
        question=Question.AUTHENTIC,
        message="certificate is of the reported TCB",
        otherwise="certificate is of another TCB than the reported one",
        expected=_words(vek.tcb),
        actual=report.reported_tcb.hex(),
        origin="extensions of the certificate",
        path="REPORTED_TCB",
        hint="get the certificate for the reported TCB",
    )

    return _decode_tcb(report, layout)


def _decode_tcb(report: Report, layout: TCBLayout) -> TCB:
    def decode(data: bytes, path: str) -> dict[str, int]:
        return layout.decode(data, code=REPORT_CODE, path=path)

    return TCB(
        reported=decode(report.reported_tcb, "REPORTED_TCB"),
        current=decode(report.current_tcb, "CURRENT_TCB"),
        committed=decode(report.committed_tcb, "COMMITTED_TCB"),
        launch=decode(report.launch_tcb, "LAUNCH_TCB"),
    )


def _verify_chip(checks: Checklist, report: Report, vek: VEK) -> tuple[Unchecked, ...]:
    """Step 7. The whole field is compared: what a shorter hardware id leaves over must be zero."""
    if report.signing_key == VLEK:
        return (_OF_CLOUD,)
    if report.chip_id_masked:
        return (_MASKED,)
    checks.require(
        report.chip_id == vek.hwid.ljust(CHIP_ID_BYTES, b"\0"),
        code="tee.sev_snp.chip_id_mismatch",
        question=Question.AUTHENTIC,
        message="certificate is of the chip that the report names",
        otherwise="certificate is of another chip than the report names",
        expected=vek.hwid.hex()[:16] + "..",
        actual=report.chip_id.hex()[:16] + "..",
        origin="extension HWID of the certificate",
        path="CHIP_ID",
        hint="get the certificate of this chip",
    )
    return ()


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what SNP evidence says, whoever signed it. A report of version 2 does not name its product line.

    Raises:
        FormatRefused, EvidenceError: it does not parse.
    """
    report = parse_report(parse_evidence(evidence).report)
    product = product_of_cpu(*report.cpuid[:2]) if report.cpuid is not None else None
    tcb = _decode_tcb(report, product.layout) if product is not None else TCB()
    return UnverifiedClaims(claims=_claims(report, product, tcb, tee=TEE, level=Level.SIMULATED, window=None))


def claims_of(verified: VerifiedReport, *, tee: str) -> Claims:
    """Return what a verified report says."""
    claims = _claims(
        verified.report, verified.product, verified.tcb, tee=tee, level=verified.root.level, window=verified.window
    )
    return replace(claims, native={**claims.native, "csp_id": verified.vek.csp_id})


def _claims(
    report: Report, product: Product | None, tcb: TCB, *, tee: str, level: Level, window: Window | None
) -> Claims:
    """Step 11: the instance is the chip; bytes of the evidence identify nothing."""
    chip = "" if report.chip_id_masked else report.chip_id[: product.hwid_bytes if product else None].hex()
    return Claims(
        tee=tee,
        level=level,
        debug=report.debug,
        registers={"measurement": report.measurement},
        report_data=report.report_data,
        init_data=report.host_data,
        instance_id=chip,
        raw=_raw(report, tcb),
        platform=f"AMD SEV-SNP, {product.line if product else 'product line not named'}",
        product=product.key if product else "",
        tcb=tcb,
        measurements={Role.LAUNCH: report.measurement},
        window=window,
        native=_native(report, product),
    )


def facts_of(verified: VerifiedReport) -> SNPFacts:
    """Return what the owner's rules for SNP judge."""
    report = verified.report
    mitigations = report.version >= WITH_MITIGATIONS
    platform = _bits(report.platform_info, PLATFORM_BITS)
    policy = _bits(report.policy, POLICY_BITS)
    return SNPFacts(
        line=verified.product.line,
        signing_key=_kind(report),
        vmpl=report.vmpl,
        migration_agent=policy["policy_migrate_ma"],
        migration_agent_id=report.report_id_ma.hex(),
        smt=policy["policy_smt_allowed"] or platform["smt_enabled"],
        single_socket=policy["policy_single_socket"],
        chip_id=not report.chip_id_masked,
        current=report.current,
        committed=report.committed,
        guest_svn=report.guest_svn,
        tcb=verified.tcb,
        launch_mitigations=report.launch_mitigations if mitigations else None,
        current_mitigations=report.current_mitigations if mitigations else None,
        platform_info=platform,
        id_key_digest=report.id_key_digest.hex(),
        author_key_digest=report.author_key_digest.hex(),
    )


def _kind(report: Report) -> str:
    """Return the kind of the signing key; a number that nobody gave a meaning has no verified report."""
    return _SUBJECTS.get(report.signing_key, f"unknown ({report.signing_key})").removeprefix("SEV-")


def _bits(value: int, names: Mapping[str, int]) -> dict[str, bool]:
    return {name: bool(value >> bit & 1) for name, bit in names.items()}


def _raw(report: Report, tcb: TCB) -> dict[str, Any]:  # Any: JSON values
    """Return the claims that CoCo's policies expect: flat for older ones, under `evidence` for newer ones."""
    policy = {name.removeprefix("policy_"): bool(report.policy >> POLICY_BITS[name] & 1) for name in _COCO_POLICY}
    platform = {name: bool(report.platform_info >> PLATFORM_BITS[name] & 1) for name in ("tsme_enabled", "smt_enabled")}
    abi_major, abi_minor = report.policy >> 8 & 0xFF, report.policy & 0xFF
    return {
        "evidence": {
            "measurement": report.measurement.hex(),
            "report_data": report.report_data.hex(),
            "host_data": report.host_data.hex(),
            "chip_id": report.chip_id.hex(),
            "reported_tcb": dict(tcb.reported),
            "policy": {
                "abi_major": abi_major,
                "abi_minor": abi_minor,
                "smt_allowed": policy["smt_allowed"],
                "migrate_ma_allowed": policy["migrate_ma"],
                "debug_allowed": policy["debug_allowed"],
                "single_socket_required": policy["single_socket"],
            },
            "plat_info": platform,
        },
        "measurement": report.measurement.hex(),
        "report_data": report.report_data.hex(),
        "init_data": report.host_data.hex(),
        "chip_id": report.chip_id.hex(),
        "policy_abi_major": abi_major,
        "policy_abi_minor": abi_minor,
        **{f"policy_{name}": value for name, value in policy.items()},
        **{f"reported_tcb_{name}": version for name, version in tcb.reported.items()},
        **{f"platform_{name}": value for name, value in platform.items()},
    }


_COCO_POLICY: Final = ("policy_smt_allowed", "policy_migrate_ma", "policy_debug_allowed", "policy_single_socket")


def _native(report: Report, product: Product | None) -> dict[str, Any]:  # Any: JSON values
    """Return the values under the names of AMD's specification, for people, scripts and the advisory table."""
    native: dict[str, Any] = {
        "version": report.version,
        "product": product.line if product else "",
        "signing_key": _kind(report),
        "measurement": report.measurement.hex(),
        "report_data": report.report_data.hex(),
        "host_data": report.host_data.hex(),
        "debug": report.debug,
        "vmpl": report.vmpl,
        "guest_svn": report.guest_svn,
        "policy": f"{report.policy:#x}",
        "platform_info": f"{report.platform_info:#x}",
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "chip_id": report.chip_id.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "author_key_en": bool(report.key_info & 1),
        "mask_chip_key": bool(report.key_info >> 1 & 1),
        "current_version": ".".join(map(str, report.current)),
        "committed_version": ".".join(map(str, report.committed)),
        **_bits(report.policy, POLICY_BITS),
        **_bits(report.platform_info, PLATFORM_BITS),
    }
    if report.cpuid is not None:
        native["cpuid"] = "/".join(map(str, report.cpuid))
        native["silicon"] = silicon_of_cpu(*report.cpuid)
    if report.version >= WITH_MITIGATIONS:
        native["launch_mit_vector"] = report.launch_mitigations
        native["current_mit_vector"] = report.current_mitigations
        for bit in range(_MITIGATION_BITS):
            native[f"current_mitigation_{bit}"] = bool(report.current_mitigations >> bit & 1)
    return native


def _words(tcb: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {version}" for name, version in tcb.items() if not name.startswith("spl"))
