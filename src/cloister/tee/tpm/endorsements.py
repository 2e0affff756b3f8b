"""Roots of TPM endorsement keys: parse what an owner configured, or what swtpm's local CA wrote.

TCG EK Credential Profile for TPM 2.0 (rev. 2.5). Every certificate given is a trust anchor by itself, also an
intermediate CA. The level belongs to the root: a hardware vendor's CA may be `hardware` only where the TPM is inside
the boundary that is protected; the CA of a software TPM is `measured`, always. Nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloister.crypto.pem import split_pem
from cloister.crypto.x509path import load_certificate
from cloister.errors import Unavailable
from cloister.rats.claims import Level
from cloister.rats.endorsement import PinnedRoot, TrustedRoot
from cloister.wire.limits import CERTIFICATE_BYTES

TEE: Final = "tpm"
PINS: Final[tuple[PinnedRoot, ...]] = ()  # which makers of TPMs to trust is the owner's choice
_DER_SEQUENCE: Final = b"\x30"
_SWTPM_FILES: Final = ("issuercert.pem", "swtpm-localca-rootca-cert.pem")


def parse_tpm_roots(data: bytes, *, level: Level, origin: str) -> tuple[TrustedRoot, ...]:
    """Return the roots of one file: a DER certificate, or any number of PEM ones.

    Args:
        data: the file's bytes.
        level: what a chain to these roots proves.
        origin: where they come from, for findings.

    Raises:
        FormatRefused: no certificate in it, or a malformed one (`tee.tpm.root.malformed`).
    """
    certificates = [data]
    if data[:1] != _DER_SEQUENCE:
        certificates = split_pem(data, code="tee.tpm.root", path=origin, ceiling=CERTIFICATE_BYTES)
    roots = []
    for der in certificates:
        subject = load_certificate(der, code="tee.tpm.root", path=origin).subject.rfc4514_string()
        roots.append(TrustedRoot(tee=TEE, level=level, name=f"{subject} ({origin})", der=der))
    return tuple(roots)


def read_swtpm_roots(directory: Path) -> tuple[TrustedRoot, ...]:
    """Return the issuing and the root CA that `swtpm_localca` keeps in `directory`; level `measured`.

    Raises:
        Unavailable: the directory holds neither (`tee.tpm.root.absent`).
    """
    roots: list[TrustedRoot] = []
    for name in _SWTPM_FILES:
        path = directory / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as err:
            raise Unavailable("tee.tpm.root.absent", f"cannot read: {err.strerror}", path=str(path)) from err
        roots.extend(parse_tpm_roots(data, level=Level.MEASURED, origin=name))
    if not roots:
        raise Unavailable(
            "tee.tpm.root.absent",
            "no CA of a software TPM here yet",
            path=str(directory),
            hint="it is made together with the first vTPM (`swtpm_setup --create-ek-cert`)",
        )
    return tuple(roots)
