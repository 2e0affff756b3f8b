"""The administration API in this process: the real application over a furnished store, and tokens of every role."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litestar.testing import TestClient

from cloister.trust.access import LOCAL_OWNER, TOKEN_FILE, Role
from cloister.trust.administration import Administration, Office
from made_once import admin_application
from trust_world import World, make_world

OTHER = "other"
PREFIX = "/admin/v1"


@dataclass
class AdminWorld:
    """A trust service with an administration API.

    Attributes:
        world: the service.
        client: speaks HTTP to the application.
        root: text of the first token.
        tokens: texts by role and tenant, made on demand.
    """

    world: World
    client: TestClient[Any]
    root: str
    tokens: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def administration(self) -> Administration:
        return self.world.admin.administration

    def office(self, tenant: str = "default") -> Office:
        """What the owner of the state directory does."""
        return self.administration.office(LOCAL_OWNER, tenant, None)

    def token(self, role: str, tenant: str = "default", *, name: str = "") -> str:
        """Return a token of a role in a tenant; one for each role unless it is given a name."""
        if role == "root":
            return self.root
        if name or (role, tenant) not in self.tokens:
            _, text = self.office(tenant).tokens.create(
                name or f"{role}-of-{tenant}", Role(role), all_tenants=False, lifetime=None
            )
            if name:
                return text
            self.tokens[(role, tenant)] = text
        return self.tokens[(role, tenant)]

    def call(self, method: str, path: str, *, token: str | None = None, body: Any = None, **query: Any) -> Any:
        """Send a request below the prefix; by default with the first token, none with an empty one."""
        text = self.root if token is None else token
        headers = {"authorization": f"Bearer {text}"} if text else {}
        parameters = {name: value for name, value in query.items() if value is not None}
        options = {"json": body} if body is not None else {}
        return self.client.request(method, PREFIX + path, headers=headers, params=parameters, **options)


@contextmanager
def admin_world(directory: Path) -> Iterator[AdminWorld]:
    """Give a furnished service, with a second tenant, behind its administration API."""
    world = make_world(directory)
    file = directory / TOKEN_FILE
    administration = world.admin.administration
    administration.access.bootstrap(file)
    with TestClient(admin_application(administration), raise_server_exceptions=False) as client:
        made = AdminWorld(world=world, client=client, root=file.read_text().strip())
        made.office().tenants.create(OTHER, "another one")
        yield made
    world.close()
