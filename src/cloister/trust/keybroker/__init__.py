"""Key broker (a Relying Party of RFC 9334): sessions of the RCAR handshake, key-release policy, audit, release.

Imports no verifier: it is given one, and verifies the tokens it gets back like a stranger's.
"""

from __future__ import annotations

from cloister.trust.keybroker.answers import Answer, error_answer
from cloister.trust.keybroker.broker import BrokerParts, Credentials, KeyBroker

__all__ = ["Answer", "BrokerParts", "Credentials", "KeyBroker", "error_answer"]
