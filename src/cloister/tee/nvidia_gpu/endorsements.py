"""NVIDIA's roots, and where its statements are had: manifests by id, OCSP responses by certificate. Nothing is fetched.

The device root vouches for GPUs and switches, the other for signers of reference manifests; both arrive with what they
sign and are known by fingerprint. Manifest ids are made of what the device signed about itself, so the device names
the manifests that it must match. Sources: NVIDIA's RIM service, nvtrust and attestation-sdk.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

from cloister.rats.claims import Level
from cloister.rats.endorsement import PinnedRoot

TEE: Final = "nvidia"
PINS: Final[tuple[PinnedRoot, ...]] = (
    PinnedRoot(
        tee=TEE,
        level=Level.HARDWARE,
        name="NVIDIA Device Identity CA",
        sha256=bytes.fromhex("102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"),
    ),
    PinnedRoot(
        tee=TEE,
        level=Level.HARDWARE,
        name="NVIDIA CoRIM signing Root CA",
        sha256=bytes.fromhex("12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"),
    ),
)
RIM_SERVICE: Final = "https://rim.attestation.nvidia.com/v1/rim"
OCSP_SERVICE: Final = "https://ocsp.ndis.nvidia.com"
ID_PREFIX: Final = "NV_"
_SWITCH_BOARD: Final = "5612_0002_890"  # a switch does not report its board; LS10 has this one
_SUFFIXES: Final = frozenset({".xml", ".swidtag", ".rim", ".json"})


def rim_url(identity: str) -> str:
    """Return the address of a manifest; the answer is JSON with the manifest as base64 in `rim`."""
    return f"{RIM_SERVICE}/{identity}"


def driver_rim_id(*, arch: str, chip: str, version: str) -> str:
    """Return the id of a driver's manifest.

    Args:
        arch: `HOPPER` or `BLACKWELL`.
        chip: as the device calls itself (`GH100`, `GB100`).
        version: of the driver.
    """
    family = "NV_GPU_DRIVER" if arch == "HOPPER" else "NV_GPU_CC_DRIVER"
    return f"{family}_{chip}_{version}"


def vbios_rim_id(*, project: str, project_sku: str, chip_sku: str, version: str) -> str:
    """Return the id of a VBIOS' manifest; `version` with or without dots."""
    return f"NV_GPU_VBIOS_{project}_{project_sku}_{chip_sku}_{version.replace('.', '')}".upper()


def switch_rim_id(*, version: str) -> str:
    """Return the id of an LS10 switch BIOS' manifest."""
    return f"NV_SWITCH_BIOS_{_SWITCH_BOARD}_{version.replace('.', '')}".upper()


def document_id(name: str) -> str:
    """Return the manifest id that a document's name stands for, in one case.

    Accepted are the id itself, a file of that name, and the names under which NVIDIA shipped VBIOS manifests
    (`1010_0200_882_96005E0001_PROD.swidtag`). The name only finds a document; what it holds must match.
    """
    path = PurePosixPath(name)
    stem = (path.stem if path.suffix.lower() in _SUFFIXES else path.name).upper()
    if stem.endswith("_PROD") and not stem.startswith(ID_PREFIX):
        return "NV_GPU_VBIOS_" + stem.removesuffix("_PROD")
    return stem
