"""Evidence as received (untrusted) and what it must be bound to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence of one technology, not yet verified.

    Attributes:
        tee: wire name of the technology.
        body: the JSON object the attester sent, in the shape CoCo's attester for that technology sends.
    """

    tee: str
    body: Mapping[str, Any]  # Any: untrusted JSON, typed by the technology's own parser


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedBinding:
    """What evidence must be bound to, computed by the verifier from its own session state.

    Attributes:
        report_data: digest over nonce, TEE key and additional evidence (48 bytes, SHA-384); a technology with a
        shorter or longer field cuts it or pads it with zeros on the right.
        init_data_digest: digest of the init data text, by the algorithm the text names.
        session_secret: what credential activation must have recovered; empty where the technology has no activation.
    """

    report_data: bytes
    init_data_digest: bytes
    session_secret: bytes = b""
