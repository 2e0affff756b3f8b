"""Roots of Azure evidence: those of the hardware below, under the names of the Azure technologies.

Microsoft vouches for nothing here: what a paravisor is follows from the measurement that the hardware signed, and is
for reference values to say. The VCEK comes with the evidence; where the rest is had say the hardware's packages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cloister.rats.endorsement import PinnedRoot
from cloister.tee.azure.evidence import AZ_SNP, AZ_TDX
from cloister.tee.sev_snp import endorsements as sev_snp
from cloister.tee.tdx import endorsements as tdx

PINS: Final[tuple[PinnedRoot, ...]] = (
    *(replace(pin, tee=AZ_SNP) for pin in sev_snp.PINS),
    *(replace(pin, tee=AZ_TDX) for pin in tdx.PINS),
)
