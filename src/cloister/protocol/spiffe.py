"""SPIFFE names and the messages by which a guest asks the trust service for its identity.

SPIFFE-ID (sections 2.1 trust domain, 2.2 path, 2.3 size), SPIFFE Trust Domain and Bundle, X509-SVID, JWT-SVID. A name
is compared by its bytes: nothing is folded to lower case, unescaped or normalised, what is not in the one canonical
form is refused. So `..`, empty segments, `%2e`, ports and queries cannot name anything.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.wire.limits import INITDATA_BYTES, KIB

SPIFFE_ID_BYTES: Final = 2048  # SPIFFE-ID, section 2.3
TRUST_DOMAIN_BYTES: Final = 255  # the same
CSR_BYTES: Final = 4 * KIB  # on P-256 under 400
SVID_REQUEST_BYTES: Final = 2 * INITDATA_BYTES + 2 * CSR_BYTES  # init data as a JSON text, and a CSR
AUDIENCES: Final = 8
AUDIENCE_CHARS: Final = 512
SCHEME: Final = "spiffe://"

# What a guest asks for, as the last part of `kbs+spiffe:///...`.
X509_SVID: Final = "x509-svid"
JWT_SVID: Final = "jwt-svid"
BUNDLE: Final = "bundle"

# 2.25.<UUID> (ITU-T X.667): object identifiers that nobody has to be asked for.
ATTESTATION_OID: Final = "2.25.20564653172434925222276701029284789396"

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]+")
_SEGMENT: Final = re.compile(r"[a-zA-Z0-9._-]+")
_CODE: Final = "protocol.spiffe.id"
_SHOWN: Final = 80


class SPIFFEID(msgspec.Struct, frozen=True, kw_only=True):
    """A SPIFFE ID. Only `parse_spiffe_id` and `spiffe_id` make one.

    Attributes:
        trust_domain: who vouches.
        segments: of the path; none for the trust domain itself.
    """

    trust_domain: str
    segments: tuple[str, ...]

    def __str__(self) -> str:
        return SCHEME + "/".join((self.trust_domain, *self.segments))

    @property
    def path(self) -> str:
        """The path, beginning with a slash; empty for the trust domain itself."""
        return "".join(f"/{segment}" for segment in self.segments)


class SVIDRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of a request for an SVID; an empty body is one without members.

    Attributes:
        csr: PKCS #10, DER, standard base64; for an X509-SVID.
        init_data: the text that the evidence was bound to, where the name is made of something in it.
    """

    csr: str = ""
    init_data: str = ""


class X509SVIDAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An X509-SVID, in the words of the SPIFFE Workload API; its key stays where it was made.

    Attributes:
        spiffe_id: the name.
        x509_svid: DER certificates in one, leaf first, standard base64.
        bundle: DER certificates of the trust domain's authorities in one, standard base64.
    """

    spiffe_id: str
    x509_svid: str
    bundle: str


class JWTSVIDAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A JWT-SVID, in the words of the SPIFFE Workload API."""

    spiffe_id: str
    svid: str


def parse_trust_domain(text: str) -> str:
    """Return the name of a trust domain.

    Raises:
        FormatRefused: empty, too long, or other than lower-case letters, digits, `.`, `-`, `_`
            (`protocol.spiffe.trust_domain`).
    """
    if len(text) > TRUST_DOMAIN_BYTES or not _TRUST_DOMAIN.fullmatch(text):
        raise FormatRefused(
            "protocol.spiffe.trust_domain",
            "not the name of a SPIFFE trust domain",
            expected="lower-case letters, digits, dots, dashes and underscores, like prod.example.org",
            actual=text[:_SHOWN],
        )
    return text


def parse_segment(text: str) -> str:
    """Return one segment of a path.

    Raises:
        FormatRefused: empty, `.`, `..`, or a character that a path has not (`protocol.spiffe.id`).
    """
    if text in (".", "..") or not _SEGMENT.fullmatch(text):
        raise FormatRefused(
            _CODE,
            "not a segment of a SPIFFE ID",
            expected="letters, digits, dots, dashes and underscores, and neither . nor ..",
            actual=text[:_SHOWN] or "nothing",
        )
    return text


def spiffe_id(trust_domain: str, *segments: str) -> SPIFFEID:
    """Return the SPIFFE ID of these parts.

    Raises:
        FormatRefused: a part is malformed, or the whole too long.
    """
    made = SPIFFEID(
        trust_domain=parse_trust_domain(trust_domain), segments=tuple(parse_segment(segment) for segment in segments)
    )
    if len(str(made)) > SPIFFE_ID_BYTES:
        raise FormatRefused(_CODE, "SPIFFE ID too long", expected=f"at most {SPIFFE_ID_BYTES} bytes")
    return made


def parse_spiffe_id(text: str) -> SPIFFEID:
    """Parse a SPIFFE ID.

    Raises:
        FormatRefused: another scheme, a malformed part, a trailing slash, too long (`protocol.spiffe.*`).
    """
    if len(text) > SPIFFE_ID_BYTES:
        raise FormatRefused(_CODE, "SPIFFE ID too long", expected=f"at most {SPIFFE_ID_BYTES} bytes")
    if not text.startswith(SCHEME):
        raise FormatRefused(_CODE, "not a SPIFFE ID", expected=SCHEME, actual=text[:_SHOWN])
    trust_domain, slash, path = text[len(SCHEME) :].partition("/")
    return spiffe_id(trust_domain, *(path.split("/") if slash else ()))
