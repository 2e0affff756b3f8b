"""How each kind of item is asked for, taken out of the answer, and checked to be the item: one row per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.tee.collateral import amd, intel, nvidia
from cloister.tee.collateral.content import Content
from cloister.tee.collateral.item import Item, Kind
from cloister.tee.collateral.transport import Answer, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The row of one kind.

    Attributes:
        request: what to ask a service; the flag says whether it is a mirror that an owner named (a PCCS answers
            otherwise than Intel does).
        unwrap: the bytes that are kept, and the certificates beside them (PEM), out of an answer; raises
            EndorsementError.
        inspect: those two checked to be well-formed and to be for the item, with their times; raises EndorsementError.
    """

    request: Callable[[Item, bool], Request]
    unwrap: Callable[[Item, Answer], tuple[bytes, str]]
    inspect: Callable[[Item, bytes, str], Content]


RECIPES: Final[Mapping[Kind, Recipe]] = {
    Kind.VCEK: Recipe(request=amd.request_vcek, unwrap=amd.unwrap_certificate, inspect=amd.inspect_vcek),
    Kind.AMD_CHAIN: Recipe(request=amd.request_chain, unwrap=amd.unwrap_plain, inspect=amd.inspect_chain),
    Kind.AMD_CRL: Recipe(request=amd.request_crl, unwrap=amd.unwrap_plain, inspect=amd.inspect_crl),
    Kind.TCB_INFO: Recipe(request=intel.request_tcb_info, unwrap=intel.unwrap_tcb_info, inspect=intel.inspect_tcb_info),
    Kind.QE_IDENTITY: Recipe(
        request=intel.request_qe_identity, unwrap=intel.unwrap_qe_identity, inspect=intel.inspect_qe_identity
    ),
    Kind.PCK_CRL: Recipe(request=intel.request_pck_crl, unwrap=intel.unwrap_pck_crl, inspect=intel.inspect_pck_crl),
    Kind.INTEL_ROOT_CRL: Recipe(
        request=intel.request_root_crl, unwrap=intel.unwrap_root_crl, inspect=intel.inspect_root_crl
    ),
    Kind.RIM: Recipe(request=nvidia.request_rim, unwrap=nvidia.unwrap_rim, inspect=nvidia.inspect_rim),
    Kind.OCSP: Recipe(request=nvidia.request_ocsp, unwrap=nvidia.unwrap_ocsp, inspect=nvidia.inspect_ocsp),
}
