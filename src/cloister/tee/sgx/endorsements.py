"""Intel's root for SGX. Where its collateral is had: `cloister.tee.dcap.endorsements`, the same as for TDX."""

from __future__ import annotations

from typing import Final

from cloister.rats.endorsement import PinnedRoot
from cloister.tee.dcap.endorsements import intel_root
from cloister.tee.sgx.abi import TEE

PINS: Final[tuple[PinnedRoot, ...]] = (intel_root(TEE),)
