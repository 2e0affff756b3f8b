"""Roots of Hygon CSV: none, because nothing here could use one (see the verifier)."""

from __future__ import annotations

from typing import Final

from cloister.rats.endorsement import PinnedRoot

PINS: Final[tuple[PinnedRoot, ...]] = ()
