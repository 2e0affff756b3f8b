"""Bytes of SGX: quote and report are DCAP's (`cloister.tee.dcap.abi`); here is what only SGX has. Pure.

Intel SDM volume 3D, section 35.7.1 (ATTRIBUTES).
"""

from __future__ import annotations

from typing import Final

TEE: Final = "sgx"
REPORT_DATA_BYTES: Final = 64
CONFIG_ID_BYTES: Final = 64
DEBUG: Final = 1 << 1
PROVISION_KEY: Final = 1 << 4
