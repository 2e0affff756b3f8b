"""Which TEE device this machine has, and its attester. Finding one says nothing about trust."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloister.errors import Unavailable
from cloister.sdk.home import home_from_environment
from cloister.tee.registry import Attester, attester_for

# In this order: what protects most and says most comes first. A device node may be there without the platform.
_DEVICES: Final = (
    ("snp", "dev/sev-guest"),
    ("tdx", "dev/tdx_guest"),
    ("tdx", "dev/tdx-guest"),
    ("sgx", "dev/attestation/quote"),
    ("nitro", "dev/nsm"),
    ("tpm", "dev/tpmrm0"),
)


def detect_platform(root: Path = Path("/")) -> str:
    """Return the platform whose device is under `root`.

    Raises:
        Unavailable: none is (`sdk.evidence.no_device`).
    """
    for platform, device in _DEVICES:
        if (root / device).exists():
            return platform
    raise Unavailable(
        "sdk.evidence.no_device",
        "no TEE device on this machine",
        path=str(root / "dev"),
        expected=", ".join(f"/{device}" for _, device in _DEVICES),
        hint="run this inside a confidential VM or enclave; `cloister doctor` lists what this machine has",
    )


def open_attester(platform: str, root: Path = Path("/")) -> Attester:
    """Return the attester of a platform, not yet opened: use it as a context manager."""
    if platform == "simulated":  # no device, but the key of this machine
        return attester_for("cloister-simulated")(str(home_from_environment().simulation / "key"))
    return attester_for(platform)(root)  # other platforms are called as their technology
