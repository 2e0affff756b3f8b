"""Who may administer the trust service: principals, roles, permissions and their tokens.

Knows nothing of HTTP and nothing of what is administered.
"""

from cloister.trust.access.control import TOKEN_FILE, AccessControl, LocalAccess
from cloister.trust.access.permissions import PERMISSIONS, Permission, Role
from cloister.trust.access.principals import LOCAL_OWNER, Principal
from cloister.trust.access.tokens import is_token, new_token

__all__ = [
    "LOCAL_OWNER",
    "PERMISSIONS",
    "TOKEN_FILE",
    "AccessControl",
    "LocalAccess",
    "Permission",
    "Principal",
    "Role",
    "is_token",
    "new_token",
]
