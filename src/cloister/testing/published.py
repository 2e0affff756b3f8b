"""What the fake vendors of this package publish, put behind a `FakeVendor` at the addresses the real ones use.

So one server stands for AMD's KDS, Intel's PCS (or a PCCS), NVIDIA's RIM service and its OCSP responder, and a test can
let a real client fetch real, signed items of a fake PKI.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from cloister.tee.collateral.item import Service
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.sev_snp.endorsements import chain_url, crl_url, vcek_identity, vcek_url
from cloister.testing import nvidia
from cloister.testing.dcap import FakeIntel
from cloister.testing.nvidia import Authority, FakeDevice, ManifestPKI
from cloister.testing.snp import FakeAMD, FakeChip
from cloister.testing.vendor import Call, FakeVendor, Reply, issuer_chain
from cloister.wire.base64 import encode_b64

_DER: Final = "application/octet-stream"
_API: Final = "certification/v4"


def addresses_of(service: FakeVendor) -> dict[Service, str]:
    """Return the address of every vendor's service: that of `service`."""
    return dict.fromkeys(Service, service.address)


def publish_amd(service: FakeVendor, amd: FakeAMD, chips: Iterable[FakeChip] = (), **crl: Any) -> None:
    """Publish chains, lists (`crl` is handed to `FakeAMD.revocation_list`) and the VCEKs of `chips`."""
    for vlek in (False, True):
        ca = amd.asvk if vlek else amd.ask
        chain = b"".join(item.public_bytes(Encoding.PEM) for item in (ca, amd.ark))
        service.serve(chain_url(amd.line, vlek=vlek, base=""), chain, "application/x-pem-file")
        service.serve(crl_url(amd.line, vlek=vlek, base=""), amd.revocation_list(**crl), _DER)
    for chip in chips:
        identity = vcek_identity(parse_report(chip.report()))
        service.serve(vcek_url(identity, base=""), chip.vek, _DER)


def publish_intel(
    service: FakeVendor,
    intel: FakeIntel,
    kind: str = "TDX",
    *,
    pccs: bool = False,
    update: str = "standard",
    **changes: Any,  # Any: arguments of `collateral_members`
) -> None:
    """Publish the collateral of `FakeIntel.collateral_members(kind, **changes)`, as the PCS does, or as a PCCS."""
    members = intel.collateral_members(kind, **changes)
    tee = kind.lower()
    info = json.loads(members["tcb_info"])
    tcb_chain = issuer_chain(members["tcb_info_issuer_chain"])
    channel = "update=early" if update == "early" else ""
    service.serve(
        f"/{tee}/{_API}/tcb?fmspc={info['fmspc'].upper()}{channel and '&' + channel}",
        _statement("tcbInfo", members["tcb_info"], members["tcb_info_signature"]),
        "application/json",
        {"SGX-TCB-Info-Issuer-Chain" if pccs else "TCB-Info-Issuer-Chain": tcb_chain},
    )
    service.serve(
        f"/{tee}/{_API}/qe/identity{channel and '?' + channel}",
        _statement("enclaveIdentity", members["qe_identity"], members["qe_identity_signature"]),
        "application/json",
        {"SGX-Enclave-Identity-Issuer-Chain": issuer_chain(members["qe_identity_issuer_chain"])},
    )
    kind_of_list = "text/html; charset=utf-8" if pccs else "application/pkix-crl"
    for path, name, headers in (
        (
            f"/sgx/{_API}/pckcrl?ca=platform&encoding=der",
            "pck_crl",
            {"SGX-PCK-CRL-Issuer-Chain": issuer_chain(members["pck_crl_issuer_chain"])},
        ),
        (f"/sgx/{_API}/rootcacrl" if pccs else "/IntelSGXRootCA.der", "root_ca_crl", {}),
    ):
        text = members[name]
        service.serve(path, text.encode() if pccs else bytes.fromhex(text), kind_of_list, headers)


def publish_nvidia(service: FakeVendor, devices: Sequence[FakeDevice], manifests: ManifestPKI, *, at: datetime) -> None:
    """Publish the manifests of `devices`, and answer for the certificates of their chains, and of the manifests'."""
    for device in devices:
        for document in manifests.for_device(device):
            publish_manifest(service, document.name, document.data)
    authorities = {id(item): item for device in devices for item in device.chain} | {
        id(item): item for item in manifests.chain
    }
    service.responders["/"] = _responder(list(authorities.values()), at)


def publish_manifest(service: FakeVendor, rim_id: str, data: bytes) -> None:
    """Publish one manifest as NVIDIA's RIM service does."""
    answer = {"id": rim_id, "rim": encode_b64(data), "sha256": hashlib.sha256(data).hexdigest(), "rim_format": "TCG"}
    service.serve(f"/v1/rim/{rim_id}", json.dumps(answer).encode(), "application/json")


def _responder(authorities: Sequence[Authority], at: datetime) -> Any:  # Any: Callable of `FakeVendor.responders`
    def respond(call: Call) -> Reply:
        asked = ocsp.load_der_ocsp_request(call.body)
        certificate = next(item for item in authorities if item.certificate.serial_number == asked.serial_number)
        issuer = next(item for item in authorities if item.certificate.subject == certificate.certificate.issuer)
        body = nvidia.ocsp_response(
            certificate.certificate, issuer, this_update=at - timedelta(hours=1), next_update=at + timedelta(days=1)
        )
        return Reply(body=body, headers={"Content-Type": "application/ocsp-response"})

    return respond


def _statement(name: str, text: str, signature: str) -> bytes:
    return f'{{"{name}":{text},"signature":"{signature}"}}'.encode()
