"""Certificates of Intel's attestation PKI: the chain in a quote, and the anchors it may end at. Pure.

Intel SGX PCK Certificate and CRL Profile Specification, section 1: root <- PCK Platform or Processor CA <- PCK
certificate of a platform; root <- TCB Signing. Names decide who may do what: a PCK certificate must not sign
collateral, and the signer of collateral certifies no platform.

The chain travels as PEM text outside everything that is signed, so nothing may be written between its blocks, and it
must be the very path that was verified: two quotes that differ in any byte but padding never both pass.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from cloister.crypto.pem import split_pem
from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN

PCK: Final = "Intel SGX PCK Certificate"
PCK_CAS: Final = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
TCB_SIGNING: Final = "Intel SGX TCB Signing"
_CODE: Final = "tee.dcap.pck_chain"
_CACHED: Final = 256
_BLOCKS: Final = re.compile(
    rb"(?:-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----(?:\r?\n)*)+\0?"
)


@lru_cache(maxsize=_CACHED)
def parse_quote_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in a quote's certification data, leaf first.

    Raises:
        FormatRefused: anything but PEM blocks of certificates, or too many (`tee.dcap.pck_chain.malformed`).
    """
    if not _BLOCKS.fullmatch(pem):
        raise FormatRefused(f"{_CODE}.malformed", "not PEM blocks of certificates and nothing else")
    blocks = split_pem(pem, code=_CODE, ceiling=CERTIFICATE_BYTES)
    if not 2 <= len(blocks) <= CERTIFICATE_CHAIN:
        raise FormatRefused(
            f"{_CODE}.malformed",
            "impossible number of certificates",
            expected=f"2 to {CERTIFICATE_CHAIN}",
            actual=str(len(blocks)),
        )
    return tuple(load_certificate(der, code=_CODE) for der in blocks)


def parse_issuer_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of an issuer chain in collateral.

    Raises:
        FormatRefused: no PEM blocks of certificates (`tee.dcap.collateral.malformed`).
    """
    code = "tee.dcap.collateral"
    return tuple(load_certificate(der, code=code) for der in split_pem(pem, code=code, ceiling=CERTIFICATE_BYTES))


def common_name(certificate: x509.Certificate) -> str:
    """Return the subject's common name, empty when there is not exactly one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def find_anchors(
    tee: str, endorsements: Endorsements, carried: tuple[bytes, ...]
) -> tuple[tuple[TrustedRoot, ...], tuple[x509.Certificate, ...]]:
    """Return the roots for `tee` and their certificates: configured ones, and pinned ones found among `carried`.

    Raises:
        EndorsementError: there is none (`tee.dcap.no_roots`).
    """
    roots = endorsements.roots_for(tee, carried)
    if not roots:
        pinned = any(pin.tee == tee for pin in endorsements.pins)
        raise EndorsementError(
            "tee.dcap.untrusted_root" if pinned else "tee.dcap.no_roots",
            "the root that came with the evidence is not Intel's"
            if pinned
            else "no root for this technology is trusted",
            expected="Intel SGX Root CA, by fingerprint, or a configured root",
            actual="another root" if pinned else "no root",
            hint="configure the root, if you trust it"
            if pinned
            else "give the root certificate of the attestation PKI",
        )
    return roots, tuple(load_certificate(root.der, code="tee.dcap.root", path=root.name) for root in roots)
