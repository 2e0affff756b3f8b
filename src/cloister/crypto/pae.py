"""What a DSSE signature is over: the pre-authentication encoding (DSSE 1.0, "Signature Definition").

Apart from `cloister.crypto.dsse`, so that the guest verifies bundles without the rest of that module.
"""

from __future__ import annotations


def pre_authentication_encoding(payload: bytes, payload_type: str) -> bytes:
    """Return `DSSEv1 <length> <type> <length> <payload>`."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
