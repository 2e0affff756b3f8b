"""What every adversary test asks: the exact refusal, and that a person is told what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloister.cli.refusals import find_refusal
from cloister.errors import CloisterError


class Caught:
    """Filled in when the block of `refused` was left."""

    error: CloisterError


def require_fix(code: str) -> None:
    """Fail unless the catalogue knows `code` and says what to change."""
    entry = find_refusal(code)
    assert entry is not None, f"no entry for {code} in the catalogue of refusals"
    assert entry.fix.strip(), f"no fix for {code}"


@contextlib.contextmanager
def refused(code: str) -> Iterator[Caught]:
    """Fail unless the block is refused with exactly `code`, for which there is a fix."""
    caught = Caught()
    with pytest.raises(CloisterError) as info:
        yield caught
    caught.error = info.value
    assert info.value.code == code, info.value
    require_fix(code)


def refusal_of(code: str, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> CloisterError:
    """Call and return the refusal, which must be `code`."""
    with refused(code) as caught:
        call(*arguments, **named)
    return caught.error
