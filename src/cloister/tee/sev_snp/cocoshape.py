"""CoCo's JSON shape of a report: a structure of integers and byte arrays, TCB versions as objects.

What CoCo's attesters send is what the `sev` crate's types serialise to. The shape drops reserved bytes, so a report
with any that is not zero cannot be put into it, and out of it comes exactly one report. Pure; imports nothing that is
slow inside the guest (`evidence` reads the shape, the attester writes it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloister.tee.sev_snp.abi import COMPONENT_BYTES, WITH_MITIGATIONS, Report
from cloister.tee.sev_snp.products import CLASSIC, WITH_FMC, TCBLayout, product_of_cpu

_CODE: Final = "tee.sev_snp.report"
_VERSION_PARTS: Final = ("major", "minor", "build")


def layout_of(report: Report) -> TCBLayout:
    """Return the layout in which a report counts its TCB, as far as the report alone tells.

    Version 2 says nothing about the CPU; a chip id of which only the first 8 bytes are used is one of the newer
    layout. That is good enough to write the shape and to read it back; the verifier asks the certificate.
    """
    if report.cpuid is not None:
        product = product_of_cpu(*report.cpuid[:2])
        return product.layout if product is not None else CLASSIC
    short = any(report.chip_id[:8]) and not any(report.chip_id[8:])
    return WITH_FMC if short else CLASSIC


def encode_shape(report: Report) -> dict[str, Any]:  # Any: JSON values
    """Return `attestation_report` as CoCo's guests send it."""
    layout = layout_of(report)
    family, model, stepping = report.cpuid if report.cpuid is not None else (None, None, None)
    mitigations = report.version >= WITH_MITIGATIONS
    return {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": report.policy,
        "family_id": list(report.family_id),
        "image_id": list(report.image_id),
        "vmpl": report.vmpl,
        "sig_algo": report.signature_algorithm,
        "current_tcb": _tcb(layout, report.current_tcb),
        "plat_info": report.platform_info,
        "key_info": report.key_info,
        "report_data": list(report.report_data),
        "measurement": list(report.measurement),
        "host_data": list(report.host_data),
        "id_key_digest": list(report.id_key_digest),
        "author_key_digest": list(report.author_key_digest),
        "report_id": list(report.report_id),
        "report_id_ma": list(report.report_id_ma),
        "reported_tcb": _tcb(layout, report.reported_tcb),
        "cpuid_fam_id": family,
        "cpuid_mod_id": model,
        "cpuid_step": stepping,
        "chip_id": list(report.chip_id),
        "committed_tcb": _tcb(layout, report.committed_tcb),
        "current": dict(zip(_VERSION_PARTS, report.current, strict=True)),
        "committed": dict(zip(_VERSION_PARTS, report.committed, strict=True)),
        "launch_tcb": _tcb(layout, report.launch_tcb),
        "launch_mit_vector": report.launch_mitigations if mitigations else None,
        "current_mit_vector": report.current_mitigations if mitigations else None,
        "signature": {
            "r": list(report.r.to_bytes(COMPONENT_BYTES, "little")),
            "s": list(report.s.to_bytes(COMPONENT_BYTES, "little")),
        },
    }


def encode_body(report: Report, certificates: tuple[tuple[str, bytes], ...]) -> dict[str, Any]:  # Any: JSON values
    """Return the whole evidence: the report and what the host's table of certificates holds."""
    return {
        "attestation_report": encode_shape(report),
        "cert_chain": [{"cert_type": kind, "data": list(data)} for kind, data in certificates],
    }


def _tcb(layout: TCBLayout, data: bytes) -> Mapping[str, int | None]:
    return {"fmc": None} | layout.decode(data, code=_CODE, path="TCB")
