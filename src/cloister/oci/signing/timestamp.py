"""RFC 3161 timestamps over a signature: a timestamp authority of the trusted root says when it existed.

The CMS work is `rfc3161-client`'s (extra `timestamps`, loaded here only): chain, purpose, message imprint. Ours are the
authority's period of trust and the error. Pure; trusts the trusted root.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cloister.crypto.x509path import warnings_refused
from cloister.errors import ImageRefused
from cloister.oci.signing.trustedroot import Authority, TrustedRoot

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse

_CODE: Final = "oci.signing.timestamp"


def verify_timestamp(response: bytes, signature: bytes, root: TrustedRoot) -> datetime:
    """Return when a trusted authority saw `signature`.

    Raises:
        ImageRefused: `oci.signing.timestamp.untrusted`, `.malformed`, or `.unsupported` where the library is missing.
    """
    try:
        from rfc3161_client import decode_timestamp_response
    except ImportError as err:
        raise ImageRefused(
            f"{_CODE}.unsupported",
            "timestamps cannot be verified by this installation",
            hint="install the extra: pip install 'cloister[timestamps]'",
        ) from err
    try:
        with warnings_refused():
            decoded = decode_timestamp_response(response)
            at = decoded.tst_info.gen_time.astimezone(UTC)
    except (ValueError, TypeError) as err:
        raise ImageRefused(f"{_CODE}.malformed", "not a timestamp response") from err
    reasons = [_refusal(decoded, signature, authority, at) for authority in root.timestamp_authorities]
    if not reasons or all(reasons):
        raise ImageRefused(
            f"{_CODE}.untrusted",
            "no trusted timestamp authority vouches for the time",
            expected="a timestamp authority of the trusted root",
            actual="; ".join(reason or "" for reason in reasons)[:300] or "the trusted root has none",
        )
    return at


def _refusal(decoded: TimeStampResponse, signature: bytes, authority: Authority, at: datetime) -> str | None:
    """Return why `authority` did not stamp the signature, None if it did."""
    from rfc3161_client import VerificationError, VerifierBuilder

    if at not in authority.period:
        return f"{authority.url or 'authority'} was not trusted at {at.isoformat()}"
    leaf, *others = authority.chain
    builder = VerifierBuilder(roots=others[-1:] or [leaf], intermediates=others[:-1])
    if others:
        builder = builder.tsa_certificate(leaf)
    try:
        with warnings_refused():
            builder.build().verify_message(decoded, signature)
    except (VerificationError, ValueError) as err:
        return f"{authority.url or 'authority'}: {err}"
    return None
