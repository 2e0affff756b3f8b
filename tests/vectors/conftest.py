"""Vector tests read language-neutral files; each test takes the part of the directory it is about."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def guest_vectors(vectors: Path) -> Path:
    """Vectors of images, signatures, init data and pod policy."""
    return vectors / "guest"


@pytest.fixture(scope="session")
def evidence_vectors(vectors: Path) -> Path:
    """Vectors of evidence with expected verdicts."""
    return vectors / "evidence"
