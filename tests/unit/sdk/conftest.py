"""Commands are made once for all tests."""

from __future__ import annotations

import made_once  # noqa: F401
