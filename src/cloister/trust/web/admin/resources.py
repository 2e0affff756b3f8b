"""Routes of resources."""

from __future__ import annotations

from typing import Annotated

from litestar.params import JSONBody, QueryParameter

from cloister.protocol.admin.base import PAGE, Done
from cloister.protocol.admin.policies import ResourceChange, ResourceContent, ResourceMeta, ResourcePage
from cloister.protocol.resourceuri import ResourcePath
from cloister.trust.access import Permission
from cloister.trust.web.admin import wire
from cloister.trust.web.admin.entrance import Admitted, deleting, putting, reading
from cloister.trust.web.admin.parameters import Limit, Segment, Words
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import RESOURCE_BYTES

_ONE = "/resources/{repository:str}/{kind:str}/{tag:str}"


@reading("/resources", Permission.RESOURCE_LIST, "List resources, without content")
def list_resources(
    office: Admitted,
    limit: Limit = PAGE,
    after: Annotated[Words, QueryParameter(name="after", description="Path of the last one seen.")] = "",
) -> ResourcePage:
    """Return a page of resources by path."""
    wanted = [entry for entry in office.resources.list() if str(entry.path) > after]
    page = [wire.resource_meta(entry) for entry in wanted[:limit]]
    return ResourcePage(resources=page, next=page[-1].path if len(wanted) > limit else "")


@putting(_ONE, Permission.RESOURCE_WRITE, "Store a resource, replacing an older version")
def put_resource(
    office: Admitted, repository: Segment, kind: Segment, tag: Segment, data: JSONBody[ResourceChange]
) -> ResourceMeta:
    """Store a resource. Nobody gets it without a release rule."""
    content = decode_b64(data.content, path="content", ceiling=RESOURCE_BYTES)
    path = ResourcePath(repository, kind, tag)
    return wire.resource_meta(office.resources.put(path, content, replaces=data.replaces))


@reading(_ONE, Permission.RESOURCE_LIST, "Version and time of a resource")
def get_resource(office: Admitted, repository: Segment, kind: Segment, tag: Segment) -> ResourceMeta:
    """Return a resource without its content."""
    return wire.resource_meta(office.resources.meta(ResourcePath(repository, kind, tag)))


@reading(f"{_ONE}/content", Permission.SECRET_READ, "Content of a resource")
def get_resource_content(office: Admitted, repository: Segment, kind: Segment, tag: Segment) -> ResourceContent:
    """Return a resource's content."""
    content = office.resources.content(ResourcePath(repository, kind, tag))
    return ResourceContent(content=encode_b64(content))


@deleting(_ONE, Permission.RESOURCE_DELETE, "Delete a resource")
def delete_resource(office: Admitted, repository: Segment, kind: Segment, tag: Segment) -> Done:
    """Delete a resource."""
    path = ResourcePath(repository, kind, tag)
    office.resources.delete(path)
    return Done(subject=str(path))


ROUTES = (list_resources, put_resource, get_resource, get_resource_content, delete_resource)
