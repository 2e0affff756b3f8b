"""From error to HTTP answer: status, CoCo's error type, and the short form that is safe for a guest to see.

Statuses: 400 malformed, 401 no session or no valid token, 403 denied, 404 missing, 405 and 413 as
HTTP has them, 503 cannot tell now. CoCo's own
broker says 401 to nearly all of these, which makes its client repeat whole handshakes; these make it stop at once
with the true reason. `detail` repeats code and denial id, because unmodified clients show nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.errors import CloisterError, FormatRefused, Unavailable
from cloister.protocol.kbs import ERROR_TYPE_PREFIX, ErrorBody, encode_message
from cloister.trust.roles import Undecided

VERSION_CODE: Final = "trust.auth.version"
_STATUSES: Final = {
    "trust.resource.missing": 404,
    "trust.reference.missing": 404,
    "trust.tenant.missing": 404,
    "trust.access.unauthenticated": 401,
    "trust.request.path": 404,
    "tlog.tile.malformed": 404,
    "trust.request.method": 405,
    "trust.request.cut": 400,
    "protocol.kbs.too_long": 413,
    "trust.request.rate": 429,
}
_NO_SESSION: Final = ("trust.session.", "trust.token.", "rats.ear.", "crypto.jwt.", VERSION_CODE)
# CoCo's names for what administration refuses
_ADMIN: Final = {
    "rats.policy.malformed": "ParsePolicyError",
    "rats.rego.malformed": "ParsePolicyError",
    "trust.release_policy.malformed": "ParsePolicyError",
    "trust.reference.rvps": "RvpsError",
    "trust.reference.missing": "RvpsError",
    "trust.reference.unsigned": "RvpsError",
}
_HINT_CHARS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Answer:
    """One HTTP answer.

    Attributes:
        status: HTTP status.
        body: JSON.
        code: dotted code, empty for success.
        denial: denial id, empty when none was recorded.
        cookie: session cookie to set, empty for none.
        headers: further headers; names in lower case.
    """

    status: int
    body: bytes
    code: str = ""
    denial: str = ""
    cookie: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()


def error_answer(error: CloisterError, *, stage: str, denial: str = "") -> Answer:
    """Return the answer to a refusal or failure.

    Args:
        error: expected and actual values are not shown: they may be reference values.
        stage: `auth`, `attest`, `resource`, `admin` for CoCo's administration, or empty.
        denial: id of the stored record.
    """
    status = _status(error)
    marks = ", ".join(mark for mark in (error.code, f"denial {denial}" if denial else "") if mark)
    body = ErrorBody(
        type=ERROR_TYPE_PREFIX + _variant(error, status, stage),
        detail=f"{error.message} ({marks})",
        code=error.code,
        denial_id=denial,
        hint=error.hint[:_HINT_CHARS] or (f"the owner sees why: `cloister explain {denial}`" if denial else ""),
    )
    return Answer(status=status, body=encode_message(body), code=error.code, denial=denial)


def _status(error: CloisterError) -> int:
    if isinstance(error, Unavailable):
        return 503
    if error.code.startswith(_NO_SESSION):
        return 401
    if error.code in _STATUSES:
        return _STATUSES[error.code]
    return 400 if isinstance(error, FormatRefused) else 403


def _variant(error: CloisterError, status: int, stage: str) -> str:
    if status == 503 and not isinstance(error, Undecided):
        return "StorageBackendInitialization"
    if error.code == "trust.token.missing":
        return "TokenNotFound"
    if error.code.startswith("trust.request."):
        return "InvalidRequestPath"
    if error.code.startswith("trust.access."):
        return "AdminAuthAccess"
    if stage == "admin":
        return _ADMIN.get(error.code, "SerdeError" if status in (400, 413) else "PluginInternalError")
    if stage != "resource":
        return "SerdeError" if status in (400, 413) else "AttestationError"
    names = {400: "SerdeError", 401: "TokenVerifierError", 404: "PluginInternalError"}
    return names.get(status, "PolicyDeny")
