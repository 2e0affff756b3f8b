"""Who may do what in the embedded registry: accounts, Basic, and tokens (RFC 7617; CNCF Distribution's "Token
Authentication Specification" and "OAuth2 Authentication").

Off unless accounts are given. Accounts are all alike: whoever has one may do everything, which is what a registry of
one owner needs; `anonymous_pull` lets everybody read. Tokens are random words this process remembers, so a restart
ends them. The registry stands on the hostile side: none of this protects an image, only the registry's disk.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from cloister.errors import FormatRefused, RequestRefused
from cloister.wire.base64 import decode_b64

_SCOPE: Final = re.compile(r"repository:([a-z0-9._/-]{1,255}):([a-z,*]{1,40})")
_BASIC_BYTES: Final = 2048
_TOKENS: Final = 1024
_TOKEN_BYTES: Final = 24
_SCOPES: Final = 8
_WORD: Final = re.compile(r"[^\s:]{1,255}")
_ACTIONS: Final = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}
TOKEN_SECONDS: Final = 300


class Grant(NamedTuple):
    """What a token is good for."""

    account: str
    scopes: frozenset[tuple[str, str]]
    until: float


class AccessControl:
    """Decides about requests.

    Args:
        accounts: names and passwords.
        tokens: ask for tokens of this registry's own `/token` instead of Basic.
        anonymous_pull: let everybody read.
        token_seconds: how long a token is good.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        accounts: Mapping[str, str],
        *,
        tokens: bool,
        anonymous_pull: bool = False,
        token_seconds: float = TOKEN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accounts = dict(accounts)
        self._tokens = tokens
        self._anonymous_pull = anonymous_pull
        self._seconds = token_seconds
        self._clock = clock
        self._granted: OrderedDict[str, Grant] = OrderedDict()
        self._refresh: OrderedDict[str, str] = OrderedDict()

    def may(self, authorization: str, repository: str, action: str) -> bool:
        """Whether a request may do `action` (`pull`, `push`, `delete`) in `repository`; empty for the ping."""
        scheme, _, word = authorization.partition(" ")
        if scheme.lower() == "basic" and not self._tokens and self._account_of(word):
            return True
        if scheme.lower() == "bearer" and self._tokens:
            grant = self._granted.get(word)
            if grant is not None and self._clock() < grant.until:
                return not repository or (repository, action) in grant.scopes
        return self._anonymous_pull and bool(repository) and action == "pull" and not self._tokens

    def challenge(self, origin: str, repository: str, action: str) -> str:
        """Return the `WWW-Authenticate` value of a refusal, for a registry that was asked at `origin`."""
        if not self._tokens:
            return 'Basic realm="cloister registry"'
        actions = "pull" if action == "pull" else "pull,push" if action == "push" else "pull,push,delete"
        scope = f',scope="repository:{repository}:{actions}"' if repository else ""
        return f'Bearer realm="{origin}/token",service="{origin.partition("://")[2]}"{scope}'

    def issue(self, authorization: str, form: Mapping[str, Iterable[str]], *, oauth: bool) -> dict[str, object] | None:
        """Return the token service's answer to a GET's query or an OAuth2 form, or None when it lets nobody in."""
        account = self._account_by_form(form) if oauth else self._account_of(authorization.partition(" ")[2])
        presented = bool(_first(form, "grant_type")) if oauth else bool(authorization)
        if not account and (presented or not self._anonymous_pull):
            return None
        scopes: set[tuple[str, str]] = set()
        texts = [part for text in form.get("scope", ()) for part in text.split(" ")]
        for text in texts[:_SCOPES]:
            match = _SCOPE.fullmatch(text)
            actions = match[2].split(",") if match else []
            scopes |= {(match[1], action) for action in actions if match and (account or action == "pull")}
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._granted[token] = Grant(account, frozenset(scopes), self._clock() + self._seconds)
        while len(self._granted) > _TOKENS:
            self._granted.popitem(last=False)
        answer: dict[str, object] = {"access_token": token, "token": token, "expires_in": int(self._seconds)}
        wants = _first(form, "offline_token") == "true" or _first(form, "access_type") == "offline"
        if account and wants:
            refresh = secrets.token_urlsafe(_TOKEN_BYTES)
            self._refresh[refresh] = account
            while len(self._refresh) > _TOKENS:
                self._refresh.popitem(last=False)
            answer["refresh_token"] = refresh
        return answer

    def _account_of(self, basic: str) -> str:
        try:
            name, colon, password = decode_b64(basic, ceiling=_BASIC_BYTES).decode("utf-8").partition(":")
        except (FormatRefused, UnicodeDecodeError):
            return ""
        return name if colon and self._is_password(name, password) else ""

    def _account_by_form(self, form: Mapping[str, Iterable[str]]) -> str:
        if _first(form, "grant_type") == "refresh_token":
            return self._refresh.get(_first(form, "refresh_token"), "")
        name = _first(form, "username")
        return name if self._is_password(name, _first(form, "password")) else ""

    def _is_password(self, name: str, password: str) -> bool:
        known = self._accounts.get(name, "")
        return hmac.compare_digest(known.encode(), password.encode()) and bool(known)


def action_of(method: str) -> str:
    """Return what a method does to a repository."""
    return _ACTIONS.get(method, "push")


def parse_accounts(text: str) -> dict[str, str]:
    """Parse lines of `name:password`; empty lines and those that begin with `#` are left out.

    Raises:
        RequestRefused: `host.registry.accounts`, also when there is none.
    """
    accounts = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        name, colon, password = line.partition(":")
        if not colon or not _WORD.fullmatch(name) or not password:
            raise RequestRefused(
                "host.registry.accounts", "not an account", path=f"line {number}", expected="name:password"
            )
        accounts[name] = password
    if not accounts:
        raise RequestRefused("host.registry.accounts", "file names no account", expected="name:password")
    return accounts


def _first(form: Mapping[str, Iterable[str]], name: str) -> str:
    return next(iter(form.get(name, ())), "")
