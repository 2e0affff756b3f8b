"""The platform behind a quote: what its certificate says, and what verification found out besides. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.rats.claims import Level, Window
from cloister.tee.dcap.abi import Quote, parse_enclave_report
from cloister.tee.dcap.chain import parse_quote_chain
from cloister.tee.dcap.pck import PCKExtension, parse_pck_extension
from cloister.tee.dcap.tcb import TCBStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What is known of the platform that made a quote.

    Attributes:
        pck: what its certificate says.
        qe_svn: version of the quoting enclave.
        level: of the root its certificate chains to; the lowest while nobody verified that.
        tcb: what Intel says of the platform; None without TCB info.
        evaluation_number: `tcbEvaluationDataNumber`, the lesser of TCB info and identity; None without TCB info.
        window: validity of all that was relied on; None while nothing was.
        crl_numbers: number of the newest revocation list of the PCK's CA, and of the root's; None where there is none.
        root_key_id: SHA-384 of the root's public key; empty while there is none.
        current: whether all collateral was there and in force.
    """

    pck: PCKExtension
    qe_svn: int
    level: Level = Level.SIMULATED
    tcb: TCBStatus | None = None
    evaluation_number: int | None = None
    window: Window | None = None
    crl_numbers: tuple[int | None, int | None] = (None, None)
    root_key_id: bytes = b""
    current: bool = False


def read_platform(quote: Quote) -> Platform:
    """Return what a quote says of its platform, whoever signed it.

    Raises:
        FormatRefused: its certificates do not parse.
        EndorsementError: the PCK certificate has no SGX extension (`tee.dcap.pck.extension`).
    """
    return Platform(
        pck=parse_pck_extension(parse_quote_chain(quote.data.certification)[0]),
        qe_svn=parse_enclave_report(quote.data.qe_report).isv_svn,
    )
