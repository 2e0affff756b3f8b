"""The one exception hierarchy of Cloister: a refusal, or "cannot tell now".

Two families (house style, Errors): `Refused` when data or policy says no, `Unavailable` when the answer cannot be
known now (network, storage, device). Misuse by our own code is a plain `RuntimeError`/`TypeError`, never one of these.

Every error carries a stable dotted `code`, a `message` without secrets, and where sensible the `path` into the input,
the `expected` and the `actual` value and a `hint` that says what to change. The `code` is what tests and the
catalogue of refusals (`cloister explain CODE`) key on; texts may be improved, codes may not change.

This module is loaded inside the pod VM before anything else: it imports nothing.
"""

from __future__ import annotations


class CloisterError(Exception):
    """Root of all errors raised on purpose.

    Args:
        code: stable dotted identifier, `area.thing.reason`.
        message: lower case, no full stop, no secret.
        path: where in the input, in the input's own terms (`layers[2].annotations`).
        expected: what would have been accepted, shortened.
        actual: what was found, shortened.
        hint: what the operator can change.
    """

    __slots__ = ("actual", "code", "expected", "hint", "message", "path")

    def __init__(
        self,
        code: str,
        message: str,
        *,
        path: str = "",
        expected: str = "",
        actual: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = path
        self.expected = expected
        self.actual = actual
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected or self.actual:
            parts.append(f"expected {self.expected or 'nothing'}, got {self.actual or 'nothing'}")
        where = f" at {self.path}" if self.path else ""
        return f"{self.code}{where}: {': '.join(parts)}"

    def as_dict(self) -> dict[str, str]:
        """Return the non-empty fields, all text, for a wire answer or a report."""
        fields = ("code", "message", "path", "expected", "actual", "hint")
        return {name: getattr(self, name) for name in fields if getattr(self, name)}


class Refused(CloisterError):
    """Data or policy says no; the same input will be refused again."""

    __slots__ = ()


class FormatRefused(Refused):
    """Bytes do not parse as the format they claim to be."""

    __slots__ = ()


class EvidenceError(Refused):
    """Evidence is malformed, not authentic or not bound to this challenge."""

    __slots__ = ()


class EndorsementError(Refused):
    """A certificate, CRL or other vendor statement does not hold."""

    __slots__ = ()


class AppraisalRefused(Refused):
    """Authentic evidence that the appraisal policy does not accept."""

    __slots__ = ()


class KeyReleaseDenied(Refused):
    """The key-release policy of the resource says no."""

    __slots__ = ()


class ImageRefused(Refused):
    """A container image, its signature or its encryption does not hold."""

    __slots__ = ()


class PodPolicyRefused(Refused):
    """The pod policy does not allow this request in this state."""

    __slots__ = ()


class RequestRefused(Refused):
    """A request is not part of the closed schema of the interface it was sent to."""

    __slots__ = ()


class Unavailable(CloisterError):
    """The answer cannot be known now: network, storage, device, tool. Trying again may succeed."""

    __slots__ = ()


def detached(error: BaseException) -> BaseException:
    """Return an equal error that does not know where this one was raised, for whoever keeps it to raise it elsewhere.

    An error that was raised holds the frames it went through and all that is in them, connections among it. Only
    Cloister's own are made anew; others are returned as they are.
    """
    if not isinstance(error, CloisterError):
        return error
    return type(error)(
        error.code, error.message, path=error.path, expected=error.expected, actual=error.actual, hint=error.hint
    )
