"""Keys of the trust service: data keys that seal rows, and signing keys, all under a root key in a key store.

`KeyRing` holds the data keys, `SigningKeys` what signs tokens, certificates and log entries, `ServiceKeys` puts both
together over a state directory. `KeyAdministration` is what an owner does with them.
"""

from __future__ import annotations

from cloister.trust.keys.administration import KeyAdministration, KeyEntry
from cloister.trust.keys.ring import KeyRing
from cloister.trust.keys.service import ServiceKeys
from cloister.trust.keys.signing import SigningKeys, TokenIssuer

__all__ = ["KeyAdministration", "KeyEntry", "KeyRing", "ServiceKeys", "SigningKeys", "TokenIssuer"]
