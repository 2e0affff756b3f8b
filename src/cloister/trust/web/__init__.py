"""HTTP of the trust service: a thin ASGI application in front of the roles.

`gate` admits, bounds and times requests; `kbs` holds the guests' routes, `public` those that anybody may ask;
`router` finds the route of a path and mounts further ASGI applications. No module here decides about a key.
"""

from __future__ import annotations

from cloister.trust.web.exchange import json_response
from cloister.trust.web.public import JWKS, LOG, log_response
from cloister.trust.web.router import Mount, TrustApp, metrics_application, trust_application

__all__ = [
    "JWKS",
    "LOG",
    "Mount",
    "TrustApp",
    "json_response",
    "log_response",
    "metrics_application",
    "trust_application",
]
