"""What the vendors' modules share: media types, and two ways of saying that an answer is not the item."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from cryptography import x509

from cloister.crypto.revocation import load_revocation_list
from cloister.errors import EndorsementError, FormatRefused
from cloister.tee.collateral.content import Content
from cloister.tee.collateral.files import split_bundle
from cloister.tee.collateral.item import Item

# Vendors and mirrors label DER and PEM in many ways; what must not pass is a page for people.
BINARY_TYPES: Final = frozenset(
    {
        "application/octet-stream",
        "binary/octet-stream",
        "application/pkix-cert",
        "application/pkix-crl",
        "application/pkcs7-mime",
        "application/x-pkcs7-crl",
        "application/x-x509-ca-cert",
        "application/x-x509-user-cert",
        "application/x-pem-file",
        "application/pem-certificate-chain",
        "text/plain",
    }
)
_ANSWER_DOTS: Final = 2
JSON_TYPES: Final = frozenset({"application/json", "text/plain", "application/octet-stream"})


@contextlib.contextmanager
def answering(item: Item) -> Iterator[None]:
    """Turn what a parser refuses into a refusal of the answer for `item`.

    Raises:
        EndorsementError: `collateral.answer.malformed`.
    """
    try:
        yield
    except (FormatRefused, EndorsementError) as err:
        if err.code.startswith("collateral.answer.") and err.code.count(".") == _ANSWER_DOTS:
            raise  # it says already what is wrong with the answer
        raise EndorsementError(
            "collateral.answer.malformed",
            f"answer does not parse: {err.message}"[:200],
            path=item.label,
            expected=err.expected,
            actual=err.actual,
            hint="something answers in the vendor's place, or the answer was damaged on its way",
        ) from err


def require_same(item: Item, what: str, expected: str, actual: str) -> None:
    """Refuse an answer that is for something else.

    Raises:
        EndorsementError: `collateral.answer.other`.
    """
    if expected != actual:
        raise EndorsementError(
            "collateral.answer.other",
            f"answer is for another {what}",
            path=item.label,
            expected=expected[:160],
            actual=actual[:160],
            hint="a mirror mixes up items, or ignores a part of the address",
        )


def inspect_list(item: Item, data: bytes, chain: str, issuer: str) -> Content:
    """Return a revocation list as content: well-formed, by the CA of that common name, with an end.

    Raises:
        EndorsementError: it is not (`collateral.answer.*`).
    """
    with answering(item):
        parsed = load_revocation_list(data, code="collateral.answer.list", path=item.label).parsed
    names = parsed.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    require_same(item, "issuer", issuer, ", ".join(str(name.value) for name in names))
    if parsed.next_update_utc is None:
        raise EndorsementError(
            "collateral.answer.malformed", "revocation list does not say until when it holds", path=item.label
        )
    return Content(
        data=data,
        chain=chain,
        issued=parsed.last_update_utc,
        expires=parsed.next_update_utc,
        sequence=_number(parsed),
    )


def certificates_of(item: Item, data: bytes) -> tuple[bytes, ...]:
    """Return the certificates in PEM or DER, and nothing but certificates.

    Raises:
        EndorsementError: `collateral.answer.malformed`.
    """
    with answering(item):
        found = split_bundle(data, path=item.label)
    if found.revocation_lists or not found.certificates:
        raise EndorsementError(
            "collateral.answer.malformed", "answer holds other things than certificates", path=item.label
        )
    return found.certificates


def _number(parsed: x509.CertificateRevocationList) -> int | None:
    try:
        return parsed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None
