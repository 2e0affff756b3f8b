"""Commands and the routes of an administration are made once for all tests."""

from __future__ import annotations

import pytest

import made_once


@pytest.fixture
def quick_administration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The routes are those of an earlier test; a command would make them each time."""
    made_once.administration_routes()  # by the product's function
    monkeypatch.setattr("cloister.trust.web.admin.application.admin_application", made_once.admin_application)
