"""The table of ceilings: every line positive, every line final."""

from __future__ import annotations

import re
from pathlib import Path

from cloister.wire import limits


def test_every_ceiling_is_a_positive_number() -> None:
    ceilings = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert ceilings
    assert all(isinstance(value, int) and value > 0 for value in ceilings.values())


def test_every_ceiling_is_final() -> None:
    source = Path(limits.__file__).read_text("utf-8")
    assigned = re.findall(r"^([A-Z_]+)(.*?) = ", source, re.MULTILINE)
    assert assigned
    assert [name for name, annotation in assigned if annotation != ": Final"] == []


def test_containing_formats_hold_their_contents() -> None:
    """A ceiling inside another must fit, or the outer one decides in silence."""
    assert limits.POLICY_BYTES <= limits.INITDATA_BYTES
    assert limits.INITDATA_BYTES <= limits.KBS_REQUEST_BYTES
    assert limits.RESOURCE_BYTES * 4 // 3 < limits.KBS_RESPONSE_BYTES
    assert limits.STREAM_FRAME_BYTES <= limits.STREAM_WINDOW_BYTES
