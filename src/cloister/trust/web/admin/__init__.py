"""The administration API: HTTP over `cloister.trust.administration`."""

from cloister.trust.web.admin.application import admin_application, routes_of

__all__ = ["admin_application", "routes_of"]
