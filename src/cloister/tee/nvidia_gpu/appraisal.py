"""The owner's rules for NVIDIA devices (section `nvidia` of the appraisal policy), one finding per rule and device.

A measurement that differs from its manifest refuses always: whatever runs then, NVIDIA did not publish it. That a
manifest is missing is what `missing_reference` makes of it; a manifest whose signer is out of its time leaves the
answer open, because NVIDIA offers newer ones. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cloister.rats.result import Finding, Question, Severity
from cloister.rats.rules import Handling, NVIDIARules, PlatformRules
from cloister.tee.nvidia_gpu.reference import Comparison
from cloister.tee.nvidia_gpu.topology import Node, topology_findings

_SHOWN = 16
_LISTED = 8  # differing measurements of one device that get a finding of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What the rules judge of one device.

    Attributes:
        path: place in the evidence.
        driver_version: empty for a switch.
        vbios_version: of a switch its BIOS.
        comparison: with NVIDIA's manifests.
        node: for the topology.
    """

    path: str
    driver_version: str
    vbios_version: str
    comparison: Comparison
    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class NVIDIAFacts:
    """The devices that are judged.

    Attributes:
        devices: of one piece of evidence, or one of them.
        machine: for the topology, all that were attested together; empty when these are `devices`.
    """

    devices: tuple[DeviceFacts, ...]
    machine: tuple[Node, ...] = ()


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Judge the facts of authentic NVIDIA evidence; the time was needed when the manifests were verified.

    Raises:
        TypeError: facts of another technology.
    """
    if not isinstance(facts, NVIDIAFacts):
        raise TypeError("facts of another technology")
    return (
        *(finding for device in facts.devices for finding in _judge_device(device, rules.nvidia)),
        *topology_findings(facts.machine or [device.node for device in facts.devices]),
    )


def _judge_device(device: DeviceFacts, rules: NVIDIARules) -> Iterator[Finding]:
    if device.driver_version:
        yield _listed(device, "driver", device.driver_version, rules.driver_versions)
    yield _listed(device, "vbios", device.vbios_version, rules.vbios_versions)
    yield from _judge_measurements(device)
    if device.comparison.missing:
        yield _missing(device, rules.missing_reference)
    if device.comparison.stale:
        yield Finding(
            code="appraisal.nvidia.reference.stale",
            question=Question.ACCEPTABLE,
            ok=False,
            severity=Severity.UNAVAILABLE,
            message="signer of a reference manifest is out of its time: its measurements are not checked",
            expected="a manifest signed by a certificate that is valid now",
            actual=", ".join(device.comparison.stale),
            path=device.path,
            hint="fetch the manifest from NVIDIA's RIM service again",
        )


def _listed(device: DeviceFacts, what: str, version: str, accepted: tuple[str, ...]) -> Finding:
    ok = not accepted or version.upper() in {item.upper() for item in accepted}
    return Finding(
        code=f"appraisal.nvidia.{what}_version",
        question=Question.ACCEPTABLE,
        ok=ok,
        message=f"{what} version is {'' if ok else 'not '}one the policy accepts",
        expected=", ".join(accepted) or "any",
        actual=version,
        origin=f"{what}_versions of section nvidia",
        path=device.path,
        hint=f"update the {what}, or add its version once you trust it",
    )


def _judge_measurements(device: DeviceFacts) -> Iterator[Finding]:
    """Yield a finding for each difference and conflict, or one that says what was compared."""
    found = device.comparison
    for item in found.differences[:_LISTED]:
        yield Finding(
            code="appraisal.nvidia.measurement",
            question=Question.ACCEPTABLE,
            ok=False,
            message=f"measurement {item.index} ({item.name}) is none of those NVIDIA published",
            expected=" or ".join(value.hex()[:_SHOWN] + ".." for value in item.expected[:4]),
            actual=item.actual.hex()[:_SHOWN] + ".." if item.actual else "absent",
            origin=item.origin,
            path=device.path,
            hint="the device runs firmware, a driver or a mode (debug) that its manifests do not describe",
        )
    if found.conflicts:
        yield Finding(
            code="appraisal.nvidia.measurement.conflict",
            question=Question.ACCEPTABLE,
            ok=False,
            message="two manifests speak of the same measurement",
            expected="each index in one manifest",
            actual=", ".join(map(str, found.conflicts[:_LISTED])),
            path=device.path,
            hint="fetch the manifests again; one is for another product",
        )
    if not found.differences and not found.conflicts and found.compared:
        yield Finding(
            code="appraisal.nvidia.measurement",
            question=Question.ACCEPTABLE,
            ok=True,
            message=f"{len(found.compared)} measurements are those NVIDIA published, "
            f"{len(found.uncovered)} are in no manifest that was given",
            expected=", ".join(found.manifests),
            actual=", ".join(found.manifests),
            origin="NVIDIA's signed reference manifests",
            path=device.path,
        )
    elif len(found.differences) > _LISTED:
        yield Finding(
            code="appraisal.nvidia.measurement",
            question=Question.ACCEPTABLE,
            ok=False,
            message=f"{len(found.differences) - _LISTED} more measurements differ",
            actual=", ".join(str(item.index) for item in found.differences[_LISTED:])[:120],
            path=device.path,
        )


def _missing(device: DeviceFacts, handling: Handling) -> Finding:
    severity = Severity.ERROR if handling is Handling.REFUSE else Severity.WARNING
    return Finding(
        code="appraisal.nvidia.reference",
        question=Question.ACCEPTABLE,
        ok=handling is Handling.ACCEPT,
        severity=severity,
        message="measurements are not checked against manifests that were not given",
        expected=", ".join(device.comparison.missing),
        actual=f"{len(device.comparison.manifests)} of "
        f"{len(device.comparison.manifests) + len(device.comparison.missing) + len(device.comparison.stale)} given",
        origin="missing_reference of section nvidia",
        path=device.path,
        hint="fetch the manifests from NVIDIA's RIM service; a new VBIOS may have none yet",
    )
