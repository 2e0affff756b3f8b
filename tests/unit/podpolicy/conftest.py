"""One small pod that the pod-policy tests share: an init container and two app containers."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.podpolicy.model import PodPolicy, parse_pod_policy
from cloister.wire.canonicaljson import encode_canonical


@pytest.fixture
def wire() -> dict[str, Any]:
    """The JSON of the pod; a test changes one thing and parses it."""

    def container(name: str, kind: str, **fields: object) -> dict[str, Any]:
        return {
            "name": name,
            "kind": kind,
            "image_digest": "sha256:" + "ab" * 32,
            "repository": "example.test/" + name,
            "signature_keys": ["-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"],
            **fields,
        }

    return {
        "version": 1,
        "pod": "shop",
        "containers": [
            container("migrate", "init"),
            container(
                "web",
                "app",
                exec=[["/bin/check", "--now"]],
                signals=[9, 15],
                terminal=True,
                resources=["kbs:///default/model/web"],
            ),
            container("side", "app", signals=[]),
        ],
        "streams": {"mode": "sealed", "key": "kbs:///default/streams/shop"},
    }


@pytest.fixture
def policy(wire: dict[str, Any]) -> PodPolicy:
    """The parsed pod."""
    return parse_pod_policy(encode_canonical(wire))
