"""Layer keys in OpenPGP messages, as ocicrypt writes and reads them (keywrap/pgp).

One binary message for all recipients: a session key for each, then AES-256 with integrity protection, not compressed
or signed. Recipients are found by exact name or e-mail address, as ocicrypt does, or by fingerprint, in a keyring as
`gpg --export` writes it; here a name must be that of one certificate only. Formats and judgement of certificates:
`cloister.crypto.openpgp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloister.crypto.openpgp import decrypt_message, encrypt_message, find_recipients
from cloister.crypto.openpgpkeys import open_secret_keyring
from cloister.errors import ImageRefused, Refused
from cloister.oci.encryption.keyfiles import SecretKeyring
from cloister.oci.encryption.options import unwrap_failed

SCHEME: Final = "pgp"
_CODE: Final = "oci.encryption.pgp"
_RECIPIENTS: Final = 32


class PGPWrapper:
    """Writes one message for all recipients; a `KeyWrapper`."""

    scheme: Final = SCHEME

    def __init__(self, names: Sequence[str], keyring: bytes) -> None:
        """Find the recipients.

        Raises:
            Refused: `crypto.openpgp.*`, `oci.encryption.pgp.too_many`.
        """
        if not 0 < len(names) <= _RECIPIENTS:
            raise Refused(f"{_CODE}.too_many", "too many recipients", expected=f"1 to {_RECIPIENTS}")
        self._recipients = find_recipients(keyring, names)

    def wrap(self, options: bytes) -> bytes:
        """Return the message."""
        return encrypt_message(options, self._recipients)


class PGPUnwrapper:
    """Opens messages with the keys of a keyring; a `KeyUnwrapper`."""

    scheme: Final = SCHEME

    def __init__(self, keyring: SecretKeyring) -> None:
        """Open the keyring.

        Raises:
            Refused: `crypto.openpgp.password`, `crypto.openpgp.no_secret`, `crypto.openpgp.malformed`.
        """
        self._keys = open_secret_keyring(keyring.data, keyring.password)

    def unwrap(self, element: bytes) -> bytes:
        """Open the message; see `KeyUnwrapper.unwrap`.

        Raises:
            ImageRefused: `oci.encryption.unwrap_failed`, `oci.encryption.pgp.malformed`.
        """
        try:
            return decrypt_message(element, self._keys)
        except Refused as err:
            if err.code == "crypto.openpgp.not_authentic":
                raise unwrap_failed(SCHEME) from err
            raise ImageRefused(
                f"{_CODE}.malformed", err.message, path=SCHEME, expected=err.expected, actual=err.actual
            ) from err
