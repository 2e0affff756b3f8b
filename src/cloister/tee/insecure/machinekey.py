"""The simulation key of one machine: made on first use, kept in a file, readable to its owner.

It stands where a vendor's hardware key stands for a TEE, and has none of its properties: whoever reads the file can
sign any evidence. `cryptography` is imported when a key is used, not before.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from cloister.errors import Unavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_CODE: Final = "tee.insecure.machine_key"
_FILE_BYTES: Final = 4096


def load_machine_key(path: str) -> EllipticCurvePrivateKey:
    """Return the key in `path`, made now when there is none.

    Raises:
        Unavailable: the file cannot be read or made, or holds something else (`tee.insecure.machine_key`).
    """
    try:
        if not os.path.exists(path):  # noqa: PTH110  # pathlib is not loaded yet where the agent runs
            _make(path)
        with open(path, "rb") as file:  # noqa: PTH123
            pem = file.read(_FILE_BYTES)
    except OSError as err:
        raise Unavailable(_CODE, f"no simulation key: {err.strerror}", path=path) from err
    return _parse(pem, path)


def public_der(key: EllipticCurvePrivateKey) -> bytes:
    """Return the SubjectPublicKeyInfo of `key`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _parse(pem: bytes, path: str) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise Unavailable(_CODE, "the file holds no private key", path=path, hint="remove the file") from err
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise Unavailable(_CODE, "the file holds another kind of key", path=path, expected="P-256")
    return key


def _make(path: str) -> None:
    """Write a fresh key and link it into place: of two processes the first wins, and both see a whole file."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)  # noqa: PTH108
