"""Roots of TPM endorsement keys: parse what an owner configured, or what swtpm's local CA wrote.

TCG EK Credential Profile for TPM 2.0 (rev. 2.5). Every certificate given is a trust anchor by itself, also an
intermediate CA. The level belongs to the root: a hardware vendor's CA may be `hardware` only where the TPM is inside
the boundary that is protected; the CA of a software TPM is `measured`, always. Nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError, Unavailable
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import CERTIFICATE_BYTES

TEE: Final = "tpm"
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_ROOTS_CEILING: Final = 64
_SWTPM_FILES: Final = ("issuercert.pem", "swtpm-localca-rootca-cert.pem")


def parse_tpm_roots(data: bytes, *, level: Level, origin: str) -> tuple[TrustedRoot, ...]:
    """Return the roots of one file: a DER certificate, or any number of PEM ones.

    Args:
        data: the file's bytes.
        level: what a chain to these roots proves.
        origin: where they come from, for findings.

    Raises:
        EndorsementError: no certificate in it (`tee.tpm.root.empty`).
        FormatRefused: a malformed one (`tee.tpm.root.malformed`).
    """
    certificates = [data] if data[:1] == b"\x30" else _split_pem(data, origin)
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


def _split_pem(data: bytes, origin: str) -> list[bytes]:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as err:
        raise EndorsementError("tee.tpm.root.empty", "neither DER nor PEM", path=origin) from err
    parts = text.split(_BEGIN)[1:]
    if not 0 < len(parts) <= _ROOTS_CEILING or any(part.count(_END) != 1 for part in parts):
        raise EndorsementError(
            "tee.tpm.root.empty",
            "not a list of PEM certificates",
            path=origin,
            expected=f"1 to {_ROOTS_CEILING} certificates",
            actual=str(len(parts)),
        )
    return [decode_b64("".join(part.split(_END)[0].split()), path=origin, ceiling=CERTIFICATE_BYTES) for part in parts]
