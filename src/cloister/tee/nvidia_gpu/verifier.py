"""Verifier of NVIDIA evidence: whose devices are these, and what do they say they run? Pure.

One piece of evidence holds the reports of one or more GPUs and switches; all must hold, and all must answer one nonce.
Trusts: the configured roots and this build's pins (device root and manifest root, each for its own use), and the time.
The level is that of the device root.

Steps:
  1 parse, strictly: an unknown member, a length that does not account for every byte refuses
  2 the leaf chains to a device root, by signatures, validity and the names of the roles
  3 the report is signed by the leaf: P-384, SHA-384, over request and response
  4 the firmware id of the report is the one the chip certified (either DICE extension); switches report none
  5 the report says what is needed, and what travels beside it unsigned (`arch`, versions, `nonce`) agrees with it
  6 one nonce for all, and no device twice
  7 no certificate of a chain is revoked: OCSP responses or CRLs; where none was given, a finding says so
  8 NVIDIA's manifests for driver and VBIOS, where given, are genuine, and are compared with the measurements

Reported for binding: the nonce of the request, 32 bytes, to which a longer digest is cut. There is no field for init
data: the CPU's evidence binds it.

Debug is what the chip's certificate says (DICE operational flags, Blackwell); earlier chips certify no such flag, and
NVIDIA's own verifier takes it from the comparison with the manifests, which step 8 makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.crypto.x509path import load_certificate, validity, verify_path
from cloister.errors import EndorsementError, EvidenceError
from cloister.rats.claims import Claims, Level, Window
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import AuthenticDevice, AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import Finding, Question, Unchecked
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.nvidia_gpu.abi import NONCE_BYTES, SIGNATURE_BYTES, signed_part
from cloister.tee.nvidia_gpu.appraisal import DeviceFacts, NVIDIAFacts
from cloister.tee.nvidia_gpu.certificate import (
    DEVICE_ROOT_NAME,
    DeviceIdentity,
    names_a_device_key,
    read_identity,
    require_root,
)
from cloister.tee.nvidia_gpu.claims import Device, build_claims, device_of
from cloister.tee.nvidia_gpu.endorsements import TEE
from cloister.tee.nvidia_gpu.evidence import ParsedDevice, parse_evidence
from cloister.tee.nvidia_gpu.opaque import Opaque, read_opaque
from cloister.tee.nvidia_gpu.reference import Comparison, compare_device, reference_entries
from cloister.tee.nvidia_gpu.revocation import ChainRevocation
from cloister.tee.nvidia_gpu.topology import Node
from cloister.wire.limits import GPU_DEVICES

_CHAIN: Final = "tee.nvidia_gpu.chain"
_LEAF_UNCHECKED: Final = Unchecked(
    reason="revocation of the leaf certificates: the device issues them itself; that of the chip's key covers them"
)
_UUID_UNCHECKED: Final = Unchecked(reason="the uuid beside a report: nothing signed says it")
_DEBUG_UNCHECKED: Final = Unchecked(
    reason="debug state of a device: its certificate has no flag for it, and not all its manifests were given"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """One device whose chain and signature hold."""

    parsed: ParsedDevice
    path: tuple[x509.Certificate, ...]
    root: TrustedRoot
    identity: DeviceIdentity
    opaque: Opaque
    checks: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged(_Device):
    """One device, and what vendor's statements say of it."""

    comparison: Comparison
    revocation: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verified:
    """All devices; `session` is what was found of them together."""

    devices: tuple[_Judged, ...]
    session: tuple[Finding, ...]
    revocation: ChainRevocation


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify who signed NVIDIA evidence; there is no credential activation.

    Args:
        evidence: as received, for technology `nvidia`.
        endorsements: roots or pins; chains of reports that came without; OCSP responses, CRLs and manifests.
        at: aware time.
        session_secret: not used.

    Raises:
        FormatRefused: a part does not parse.
        EndorsementError: a chain, a revocation statement or a manifest does not hold.
        EvidenceError: any other step does not hold.
    """
    verified = _verify(evidence, endorsements, at)
    devices = verified.devices
    return AuthenticEvidence(
        claims=_claims(devices, verified.revocation),
        findings=(
            *(finding for device in devices for finding in device.checks),
            *verified.session,
            *verified.revocation.findings,
        ),
        unchecked=_unchecked(devices),
        freshness=_freshness(devices[0]),
        init_data=None,
        facts=NVIDIAFacts(devices=tuple(_facts(device) for device in devices)),
    )


def authenticate_devices(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime
) -> tuple[AuthenticDevice, ...]:
    """Verify who signed NVIDIA evidence, as `authenticate` does, and return what it says device by device.

    What was found of all together (one nonce, no device twice, who is wired to whom) is among the findings and facts of
    each, so that nobody can look at one device and miss it.

    Args:
        evidence: as received, for technology `nvidia`.
        endorsements: as for `authenticate`.
        at: aware time.

    Raises:
        FormatRefused, EndorsementError, EvidenceError: as `authenticate`; one device that does not hold refuses all.
    """
    verified = _verify(evidence, endorsements, at)
    nodes = tuple(_facts(device).node for device in verified.devices)
    return tuple(
        AuthenticDevice(
            kind="switch" if device.identity.switch else "gpu",
            evidence=AuthenticEvidence(
                claims=_claims((device,), verified.revocation),
                findings=(*device.checks, *verified.session, *device.revocation),
                unchecked=_unchecked((device,)),
                freshness=_freshness(device),
                init_data=None,
                facts=NVIDIAFacts(devices=(_facts(device),), machine=nodes),
            ),
            references=reference_entries(device.comparison, device.parsed.report.blocks),
        )
        for device in verified.devices
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what NVIDIA evidence says, whoever signed it.

    Raises:
        FormatRefused, EvidenceError: it does not parse.
    """
    devices = [device_of(parsed) for parsed in parse_evidence(evidence)]
    return UnverifiedClaims(claims=build_claims(devices, level=Level.SIMULATED, window=None))


def _verify(evidence: Evidence, endorsements: Endorsements, at: datetime) -> _Verified:
    """Do all steps."""
    # 1 2 3 4 5
    devices = tuple(_authenticate_device(parsed, endorsements, at) for parsed in parse_evidence(evidence))
    # 6
    session = Checklist()
    _verify_session(session, devices)
    # 7
    revocation = ChainRevocation(endorsements, at=at)
    of_devices = [revocation.check(device.path[1:], code="tee.nvidia_gpu.revocation") for device in devices]
    # 8
    compared = [
        compare_device(device.identity, device.opaque, device.parsed.report.blocks, endorsements, at=at)
        for device in devices
    ]
    of_signers = [
        [
            finding
            for manifest in comparison.manifests.values()
            for finding in revocation.check(manifest.path, code="tee.nvidia_gpu.rim.revocation")
        ]
        for comparison in compared
    ]
    return _Verified(
        devices=tuple(
            _Judged(
                **{field.name: getattr(device, field.name) for field in fields(device)},
                comparison=comparison,
                revocation=tuple(dict.fromkeys((*mine, *signers))),
            )
            for device, comparison, mine, signers in zip(devices, compared, of_devices, of_signers, strict=True)
        ),
        session=session.findings,
        revocation=revocation,
    )


def _freshness(device: _Device) -> Slot:
    nonce = device.parsed.report.nonce
    return Slot(name="SPDM nonce", value=nonce, size=NONCE_BYTES, cut=True, path=f"{device.parsed.path}.evidence")


def _authenticate_device(parsed: ParsedDevice, endorsements: Endorsements, at: datetime) -> _Device:
    checks = Checklist()
    # 2
    path, root = _verify_chain(parsed, endorsements, at)
    identity = read_identity(path)
    checks.require(
        True,
        code=_CHAIN,
        question=Question.AUTHENTIC,
        message=f"{identity.chip} chains to a device root, level {root.level.value}",
        otherwise="",
        expected=root.name,
        actual=" < ".join(identity.names),
        origin="configured roots and pins",
        path=f"{parsed.path}.certificate",
    )
    # 3
    checks.require(
        _is_signed(path[0], parsed),
        code="tee.nvidia_gpu.signature",
        question=Question.AUTHENTIC,
        message="request and response are signed by the device",
        otherwise="report is not signed by the device's key",
        expected="ECDSA P-384 with SHA-384 by the leaf",
        actual=shorten(parsed.report.signature),
        path=f"{parsed.path}.evidence",
        hint="the report was altered, or the chain is another device's",
    )
    # 4
    opaque = read_opaque(parsed.report.opaque, switch=identity.switch)
    _verify_firmware(checks, parsed, identity, opaque)
    # 5
    _verify_contents(checks, parsed, identity, opaque)
    return _Device(parsed=parsed, path=path, root=root, identity=identity, opaque=opaque, checks=checks.findings)


def _verify_chain(
    parsed: ParsedDevice, endorsements: Endorsements, at: datetime
) -> tuple[tuple[x509.Certificate, ...], TrustedRoot]:
    """Step 2. Return the path, leaf first, and the root it ends at."""
    where = f"{parsed.path}.certificate"
    roots = endorsements.roots_for(TEE, parsed.certificates)
    anchors = require_root(
        [load_certificate(root.der, code="tee.nvidia_gpu.root", path=root.name) for root in roots], DEVICE_ROOT_NAME
    )
    if not anchors:
        raise EndorsementError(
            f"{_CHAIN}.no_root",
            "no root for NVIDIA devices is trusted",
            path=where,
            expected=DEVICE_ROOT_NAME,
            actual=", ".join(root.name for root in roots)[:120] or "none",
            hint="the chain must carry NVIDIA's own root, or another must be configured",
        )
    carried = tuple(load_certificate(der, code=_CHAIN, path=where) for der in parsed.certificates)
    given = tuple(load_certificate(der, code=_CHAIN, path="endorsements") for der in endorsements.certificates)
    leaf = carried[0] if carried else _find_leaf(parsed, given)
    path = verify_path(leaf, anchors=tuple(anchors), intermediates=(*carried[1:], *given), at=at, code=_CHAIN)
    root = next(
        root for root in roots if load_certificate(root.der, code="tee.nvidia_gpu.root", path=root.name) == path[-1]
    )
    return path, root


def _find_leaf(parsed: ParsedDevice, given: tuple[x509.Certificate, ...]) -> x509.Certificate:
    """Return the leaf of a report that came alone: of several device keys the one that signed it."""
    leaves = [certificate for certificate in given if names_a_device_key(certificate)]
    if not leaves:
        raise EndorsementError(
            f"{_CHAIN}.no_leaf",
            "no certificate of a device's key came with the evidence or the endorsements",
            path=f"{parsed.path}.certificate",
            expected="a certificate named `.. FMC LF`",
            actual=f"{len(given)} other certificates",
            hint="give the device's whole chain with --endorsement",
        )
    if len(leaves) == 1:
        return leaves[0]
    return next((leaf for leaf in leaves[:GPU_DEVICES] if _is_signed(leaf, parsed)), leaves[0])


def _is_signed(leaf: x509.Certificate, parsed: ParsedDevice) -> bool:
    """Step 3."""
    key = leaf.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        return False
    half, raw = SIGNATURE_BYTES // 2, parsed.report.signature
    der = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
    try:
        key.verify(der, signed_part(parsed.data, parsed.report), ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


def _verify_firmware(checks: Checklist, parsed: ParsedDevice, identity: DeviceIdentity, opaque: Opaque) -> None:
    """Step 4. The key in the leaf belongs to this firmware; a report of other firmware would be another key's."""
    checks.require(
        opaque.fwid in identity.fwids if opaque.fwid else identity.switch,
        code="tee.nvidia_gpu.fwid",
        question=Question.AUTHENTIC,
        message="firmware id is the one the chip certified" if opaque.fwid else "a switch's report has no firmware id",
        otherwise="firmware id of the report is not the one the chip certified",
        expected=", ".join(map(shorten, identity.fwids)) or "none",
        actual=shorten(opaque.fwid) or "none",
        origin="DICE extension of the leaf",
        path=f"{parsed.path}.evidence",
        hint="report and chain are of different boots or devices",
    )


def _verify_contents(checks: Checklist, parsed: ParsedDevice, identity: DeviceIdentity, opaque: Opaque) -> None:
    """Step 5."""
    checks.require(
        bool(opaque.vbios_version) and bool(opaque.driver_version) is not identity.switch,
        code="tee.nvidia_gpu.versions",
        question=Question.AUTHENTIC,
        message="report names its firmware and driver",
        otherwise="report does not name its firmware and driver as its kind of device does",
        expected="BIOS" if identity.switch else "driver and VBIOS",
        actual=f"driver {opaque.driver_version or 'none'}, BIOS {opaque.vbios_version or 'none'}",
        path=f"{parsed.path}.evidence",
    )
    if identity.switch:
        checks.require(
            opaque.own_pdi == identity.pdi,
            code="tee.nvidia_gpu.pdi",
            question=Question.AUTHENTIC,
            message="switch names itself as its certificate does",
            otherwise="switch names itself otherwise than its certificate does",
            expected=identity.pdi.hex(),
            actual=opaque.own_pdi.hex() or "none",
            path=f"{parsed.path}.evidence",
        )
    signed = {
        "arch": identity.arch,
        "nonce": parsed.report.nonce.hex(),
        "driver_version": opaque.driver_version,
        "vbios_version": opaque.vbios_version,
    }
    for name, text in parsed.unsigned:
        if text.upper() != signed[name].upper():
            raise EvidenceError(
                "tee.nvidia_gpu.unsigned",
                f"{name} beside the report is not what the device signed",
                path=f"{parsed.path}.{name}",
                expected=signed[name] or "none",
                actual=text[:80],
                hint="someone altered the evidence on its way",
            )


def _verify_session(checks: Checklist, devices: Sequence[_Device]) -> None:
    """Step 6."""
    first = devices[0].parsed.report.nonce
    other = next((device for device in devices if device.parsed.report.nonce != first), None)
    if other is not None:
        raise EvidenceError(
            "tee.nvidia_gpu.nonces",
            "devices answer different nonces: they were not attested together",
            path=other.parsed.path,
            expected=shorten(first),
            actual=shorten(other.parsed.report.nonce),
        )
    distinct = {device.identity.pdi for device in devices}
    checks.require(
        len(distinct) == len(devices),
        code="tee.nvidia_gpu.device_twice",
        question=Question.AUTHENTIC,
        message=f"{len(devices)} different devices answer one nonce",
        otherwise="one device answers more than once",
        expected=f"{len(devices)} devices",
        actual=f"{len(distinct)} devices",
        path="device_evidence_list",
    )


def _facts(device: _Judged) -> DeviceFacts:
    opaque, switch = device.opaque, device.identity.switch
    return DeviceFacts(
        path=device.parsed.path,
        driver_version=opaque.driver_version,
        vbios_version=opaque.vbios_version,
        comparison=device.comparison,
        node=Node(
            switch=switch,
            pdi=device.identity.pdi,
            neighbours=opaque.gpu_pdis if switch else opaque.switch_pdis,
            mode=opaque.mode,
        ),
    )


def _unchecked(devices: Sequence[_Judged]) -> tuple[Unchecked, ...]:
    found = [_LEAF_UNCHECKED]
    if any(device.parsed.uuid for device in devices):
        found.append(_UUID_UNCHECKED)
    if any(device.identity.flags is None and not device.comparison.complete for device in devices):
        found.append(_DEBUG_UNCHECKED)
    return tuple(found)


def _claims(devices: Sequence[_Judged], revocation: ChainRevocation) -> Claims:
    windows = [validity(device.path) for device in devices]
    windows += [manifest.window for device in devices for manifest in device.comparison.manifests.values()]
    windows += revocation.windows
    order = (Level.SIMULATED, Level.MEASURED, Level.HARDWARE)
    return build_claims(
        [
            Device(parsed=device.parsed, opaque=device.opaque, identity=device.identity, comparison=device.comparison)
            for device in devices
        ],
        level=min((device.root.level for device in devices), key=order.index),
        window=Window(not_before=max(start for start, _ in windows), not_after=min(end for _, end in windows)),
    )
