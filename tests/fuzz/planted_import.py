"""A table of targets whose import never ends where it is fuzzed."""

from __future__ import annotations

import sys

from fuzz.planted import TARGETS as TARGETS

while "--in-forks" in sys.argv:
    pass
