"""The root of Nitro attestation, pinned. Documents carry their chain; nothing is fetched.

AWS publishes the root as `AWS_NitroEnclaves_Root-G1.zip` with the fingerprint below (attestation_process.md,
section 3.2.2). It is valid until 2049.
"""

from __future__ import annotations

from typing import Final

from cloister.rats.claims import Level
from cloister.rats.endorsement import PinnedRoot
from cloister.tee.nitro.evidence import TEE

ROOT_NAME: Final = "aws.nitro-enclaves root G1"
PINS: Final[tuple[PinnedRoot, ...]] = (
    PinnedRoot(
        tee=TEE,
        level=Level.HARDWARE,
        name=ROOT_NAME,
        sha256=bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"),
    ),
)
