"""The description of the administration API against the application it describes, by schemathesis.

Requests are made from the OpenAPI document, well-formed and malformed ones. No answer may be a fault of ours (5xx), and
each must have a status, a media type and a body that the document promises. Bounded: a few requests per route.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core import NotSet
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from admin_world import PREFIX, AdminWorld, admin_world
from cloister.trust.web.admin.application import ROUTES
from cloister.trust.web.admin.description import openapi_document
from trust_world import quick_directory

EXAMPLES = int(os.environ.get("CLOISTER_OPENAPI_EXAMPLES", "6"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def served() -> Iterator[AdminWorld]:
    with quick_directory() as directory, admin_world(directory / "world") as made:
        yield made


def test_the_document_is_openapi_3_1_and_complete(served: AdminWorld) -> None:
    document = served.call("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document == openapi_document(ROUTES)
    assert document["security"] and all(path.startswith(PREFIX) for path in document["paths"])
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert {"401", "403", "503"} <= set(operation["responses"]), (method, path)
            assert operation["description"].startswith("Needs `"), (method, path)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_fault_and_no_other_shape_than_described(served: AdminWorld, mode: GenerationMode) -> None:
    """Every operation with a few generated requests; the order lets deletions and changes meet each other."""
    schema = schemathesis.openapi.from_dict(served.call("GET", "/openapi.json").json())
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: schemathesis.Case) -> None:
            nonlocal tried
            response = send(served, case)
            tried += 1
            case.validate_response(response, checks=CHECKS)

        run()
    assert tried > 50


def send(served: AdminWorld, case: schemathesis.Case) -> Any:
    """Send what was generated through the one client that is open; query values as text, like a browser would."""
    headers = {name: str(value) for name, value in (case.headers or {}).items()}
    options: dict[str, Any] = {}
    if not isinstance(case.body, NotSet):
        options["content"] = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
        headers["content-type"] = case.media_type or "application/json"
    headers["authorization"] = f"Bearer {served.root}"
    return served.client.request(
        case.method, case.formatted_path, params=dict(case.query or {}), headers=headers, **options
    )
