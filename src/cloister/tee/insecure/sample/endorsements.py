"""Roots of the sample TEE: none, and none can be configured, because its evidence bears no signature."""

from __future__ import annotations

from typing import Final

from cloister.rats.endorsement import PinnedRoot

PINS: Final[tuple[PinnedRoot, ...]] = ()
