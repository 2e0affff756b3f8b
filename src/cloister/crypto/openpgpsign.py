"""Writes OpenPGP signed messages with a secret key from a file (RFC 9580, section 10.3: one-pass signature, literal,
signature), as GnuPG's `--sign` does, and as `cloister.crypto.openpgpverify` reads them.

Sequoia (`pysequoia`, the extra `pgp`) opens the key and signs. What it wrote is verified here before it is returned, so
that a key whose signatures nobody would accept (expired, revoked, of a kind that is not read) signs nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.crypto.openpgp import first_line, load_sequoia
from cloister.crypto.openpgpkeys import KEYRING_BYTES
from cloister.crypto.openpgppackets import malformed
from cloister.crypto.openpgpverify import SigningKey, parse_keyring, verify_message
from cloister.errors import Refused

_CODE = "crypto.openpgp"


class MessageSigner:
    """A secret key that signs.

    Args:
        secret: one certificate with its secret keys, binary or armoured: `gpg --export-secret-keys NAME`.
        password: opens it; None for a key without one.

    Attributes:
        keyring: the keys that its signatures may be by.

    Raises:
        Refused: `crypto.openpgp.library`, `.no_secret`, `.password`; `.keyring` where none of its keys may sign.
        FormatRefused: `crypto.openpgp.malformed`.
    """

    def __init__(self, secret: bytes, password: str | None = None) -> None:
        if len(secret) > KEYRING_BYTES:
            raise malformed("keyring")
        self._sequoia = load_sequoia()
        try:
            certificate = self._sequoia.Tsk.from_bytes(secret)
            self.keyring: tuple[SigningKey, ...] = parse_keyring(bytes(certificate.extract_certificate()))
        except (RuntimeError, ValueError) as err:
            raise Refused(
                f"{_CODE}.no_secret", "not a secret key that signs", expected="one secret key", actual=first_line(err)
            ) from err
        try:
            self._signer = certificate.signer(password)
        except (RuntimeError, ValueError) as err:
            reason = first_line(err)
            code = "no_secret" if "suitable" in reason else "password"
            raise Refused(f"{_CODE}.{code}", "secret key does not sign", actual=reason) from err

    def sign(self, content: bytes) -> tuple[bytes, SigningKey]:
        """Return a binary message over `content`, and which key signed it.

        Raises:
            Refused: the key is not good for it (`crypto.openpgp.*`).
        """
        try:
            message = bytes(self._sequoia.sign(self._signer, content, armor=False))
        except (RuntimeError, ValueError) as err:
            raise Refused(f"{_CODE}.no_secret", "secret key does not sign", actual=first_line(err)) from err
        verified = verify_message(message, self.keyring, now=datetime.now(UTC))
        return message, verified.key
