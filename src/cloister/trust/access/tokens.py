"""Access tokens as text: `cat_` and 32 random bytes in URL-safe base64. Only their SHA-256 is ever stored.

A token has 256 bits of randomness, so a plain digest is as good as a slow one, and finding a row by the digest tells an
attacker nothing by its time: who can choose the digest's beginning already knows a token.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final

from cloister.wire.base64 import encode_b64url

TOKEN_PREFIX: Final = "cat_"  # noqa: S105  what every token begins with
_RANDOM_BYTES: Final = 32
_TOKEN: Final = re.compile(r"cat_[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """Return a fresh token; its maker shows it once."""
    return TOKEN_PREFIX + encode_b64url(secrets.token_bytes(_RANDOM_BYTES))


def is_token(text: str) -> bool:
    """Return whether the text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def token_hash(text: str) -> str:
    """Return what is stored of a token: lower-case hexadecimal SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()
