"""Client of the administration API (`cloister.protocol.admin`): one method per route, typed answers, typed errors.

TLS 1.3 under the one CA that the caller pins; without a CA, under those of the system. A plain address is refused
unless it is this machine's own. The token is sent to that server only and appears in no error and no repr. Nothing is
tried again: whoever gets no answer to a change reads before changing again.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from cloister.errors import CloisterError, FormatRefused, Refused, Unavailable
from cloister.protocol.admin import access, identities, policies, reappraisal, records, references
from cloister.protocol.admin.base import PREFIX, Done, Problem
from cloister.protocol.resourceuri import ResourcePath
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import RESOURCE_BYTES

_T = TypeVar("_T")

ANSWER_BYTES: Final = 64 * 1024 * 1024  # a thousand policies at their ceiling are none that anybody keeps
SECONDS: Final = 30.0
_BY_STATUS: Final[Mapping[int, type[CloisterError]]] = {400: FormatRefused, 413: FormatRefused, 503: Unavailable}
_EVERYTHING: Final = "*"


class AdminClient:
    """Speaks to the administration API of one trust service. Use as a context manager, or `close` it.

    Args:
        url: `https://host:port`; `http://` only to this machine.
        token: access token.
        ca_pem: the one CA to accept; empty for those of the system.
        tenant: whose things; empty for the token's own.
        transport: instead of the network.

    Raises:
        FormatRefused: not such an address (`client.admin.address`), or not a CA (`client.ca`).
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca_pem: str = "",
        tenant: str = "",
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base = _checked(url)
        self._peer = f"{base.host}:{base.port}" if base.port else base.host
        self._tenant = tenant
        self._client = httpx.Client(
            base_url=base,
            headers={"authorization": f"Bearer {token}", "accept": "application/json"},
            verify=_context(ca_pem) if base.scheme == "https" and transport is None else False,
            timeout=SECONDS,
            transport=transport,
            follow_redirects=False,
            trust_env=False,  # a proxy would see the token of a plain address
        )

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"AdminClient({self._peer!r})"

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    # Resources

    def list_resources(self, *, after: str = "", limit: int | None = None) -> policies.ResourcePage:
        """Return a page of resources, without content."""
        return self._get("/resources", policies.ResourcePage, after=after, limit=limit)

    def put_resource(self, path: ResourcePath, content: bytes, *, replaces: int | None = None) -> policies.ResourceMeta:
        """Store a resource."""
        body = policies.ResourceChange(content=encode_b64(content), replaces=replaces)
        return self._send("PUT", f"/resources/{path}", policies.ResourceMeta, body)

    def get_resource(self, path: ResourcePath) -> policies.ResourceMeta:
        """Return version and time of a resource."""
        return self._get(f"/resources/{path}", policies.ResourceMeta)

    def get_resource_content(self, path: ResourcePath) -> bytes:
        """Return the content of a resource."""
        answer = self._get(f"/resources/{path}/content", policies.ResourceContent)
        return decode_b64(answer.content, path="content", ceiling=RESOURCE_BYTES)

    def delete_resource(self, path: ResourcePath) -> Done:
        """Delete a resource."""
        return self._send("DELETE", f"/resources/{path}", Done)

    # Appraisal policies

    def list_appraisal_policies(self) -> policies.PolicyList:
        """Return the appraisal policies in force."""
        return self._get("/appraisal-policies", policies.PolicyList)

    def put_appraisal_policy(self, name: str, text: str, *, replaces: int | None = None) -> policies.PolicyVersion:
        """Store the next version of an appraisal policy."""
        body = policies.PolicyChange(text=text, replaces=replaces)
        return self._send("PUT", f"/appraisal-policies/{quote(name, safe='')}", policies.PolicyVersion, body)

    def get_appraisal_policy(self, name: str) -> policies.PolicyVersion:
        """Return an appraisal policy in force."""
        return self._get(f"/appraisal-policies/{quote(name, safe='')}", policies.PolicyVersion)

    def list_appraisal_history(self, name: str) -> policies.PolicyList:
        """Return all versions of an appraisal policy, the newest first."""
        return self._get(f"/appraisal-policies/{quote(name, safe='')}/history", policies.PolicyList)

    def roll_back_appraisal_policy(
        self, name: str, version: int, *, replaces: int | None = None
    ) -> policies.PolicyVersion:
        """Put an old version's text in force again."""
        body = policies.Rollback(version=version, replaces=replaces)
        return self._send("POST", f"/appraisal-policies/{quote(name, safe='')}/rollback", policies.PolicyVersion, body)

    # Release rules and demands; a prefix is `repository/type/tag`, with `*` from the right, or `*`

    def list_release_rules(self) -> policies.PolicyList:
        """Return the release rules in force."""
        return self._get("/release-rules", policies.PolicyList)

    def put_release_rule(self, prefix: str, text: str, *, replaces: int | None = None) -> access.Changed:
        """Store the next version of a release rule, or propose it."""
        body = policies.PolicyChange(text=text, replaces=replaces)
        return self._send("PUT", f"/release-rules/{_prefix(prefix)}", access.Changed, body)

    def get_release_rule(self, prefix: str) -> policies.PolicyVersion:
        """Return a release rule in force."""
        return self._get(f"/release-rules/{_prefix(prefix)}", policies.PolicyVersion)

    def list_release_rule_history(self, prefix: str) -> policies.PolicyList:
        """Return all versions of a release rule, the newest first."""
        return self._get(f"/release-rules/{_prefix(prefix)}/history", policies.PolicyList)

    def roll_back_release_rule(self, prefix: str, version: int, *, replaces: int | None = None) -> access.Changed:
        """Put an old version's rule in force again, or propose it."""
        body = policies.Rollback(version=version, replaces=replaces)
        return self._send("POST", f"/release-rules/{_prefix(prefix)}/rollback", access.Changed, body)

    def try_release_rule(self, prefix: str, text: str, *, limit: int) -> policies.DryRunAnswer:
        """Return what a release rule would change about past decisions."""
        body = policies.DryRun(text=text, limit=limit)
        return self._send("POST", f"/release-rules/{_prefix(prefix)}/dry-run", policies.DryRunAnswer, body)

    def delete_release_rule(self, prefix: str, *, replaces: int | None = None) -> access.Changed:
        """Remove a release rule, or propose to."""
        return self._send("DELETE", f"/release-rules/{_prefix(prefix)}", access.Changed, replaces=replaces)

    def revoke(self, init_data: str) -> Done:
        """Withdraw whatever the pod with this init data was approved for."""
        return self._send("POST", "/revocations", Done, access.Revocation(init_data=init_data))

    def list_demands(self) -> policies.PolicyList:
        """Return the demands for approvals in force."""
        return self._get("/approval-demands", policies.PolicyList)

    def put_demand(self, prefix: str, text: str, *, replaces: int | None = None) -> access.Changed:
        """Demand approvals for changes under a prefix, or propose to."""
        body = policies.PolicyChange(text=text, replaces=replaces)
        return self._send("PUT", f"/approval-demands/{_prefix(prefix)}", access.Changed, body)

    def get_demand(self, prefix: str) -> policies.PolicyVersion:
        """Return the demand of a prefix."""
        return self._get(f"/approval-demands/{_prefix(prefix)}", policies.PolicyVersion)

    def delete_demand(self, prefix: str, *, replaces: int | None = None) -> access.Changed:
        """Propose to demand no approvals under a prefix."""
        return self._send("DELETE", f"/approval-demands/{_prefix(prefix)}", access.Changed, replaces=replaces)

    # Reference values, publishers, roots

    def list_reference_values(self) -> references.ReferenceList:
        """Return reference values, expired ones too."""
        return self._get("/reference-values", references.ReferenceList)

    def add_reference_values(self, document: str) -> references.ReferenceList:
        """Register a signed set, or unsigned values."""
        body = references.ReferenceSubmission(document=document)
        return self._send("POST", "/reference-values", references.ReferenceList, body)

    def get_reference_value(self, identity: str) -> references.ReferenceValue:
        """Return one entry."""
        return self._get("/reference-values/entry", references.ReferenceValue, id=identity)

    def delete_reference_value(self, identity: str) -> Done:
        """Delete an entry."""
        return self._send("DELETE", "/reference-values/entry", Done, id=identity)

    def list_reference_history(self, identity: str = "", *, limit: int | None = None) -> references.ReferenceHistory:
        """Return changes of reference values, the newest first."""
        return self._get("/reference-values/history", references.ReferenceHistory, id=identity, limit=limit)

    def propose_reference_values(self, attestation: str, *, days: int) -> references.ReferenceProposal:
        """Return a file of values from observed evidence, to be checked and signed by a person."""
        body = references.ReferenceProposalRequest(attestation=attestation, days=days)
        return self._send("POST", "/reference-values/proposal", references.ReferenceProposal, body)

    def list_publishers(self) -> references.PublisherList:
        """Return whose signatures on reference values are accepted."""
        return self._get("/publishers", references.PublisherList)

    def put_publisher(self, name: str, pem: str) -> references.Publisher:
        """Accept a publisher's signatures."""
        return self._send("PUT", "/publishers", references.Publisher, references.PublisherKey(name=name, pem=pem))

    def delete_publisher(self, key: str) -> Done:
        """Accept nothing more of a publisher."""
        return self._send("DELETE", f"/publishers/{quote(key, safe='')}", Done)

    def list_roots(self) -> references.RootList:
        """Return trusted roots."""
        return self._get("/roots", references.RootList)

    def add_root(self, root: references.RootChange) -> references.Root:
        """Trust a root."""
        return self._send("POST", "/roots", references.Root, root)

    def delete_root(self, identity: str) -> Done:
        """Stop trusting a root."""
        return self._send("DELETE", f"/roots/{quote(identity, safe='')}", Done)

    # Tenants, tokens, proposals

    def list_tenants(self) -> access.TenantList:
        """Return tenants."""
        return self._get("/tenants", access.TenantList)

    def create_tenant(self, name: str, note: str = "") -> access.Tenant:
        """Make a tenant."""
        return self._send("POST", "/tenants", access.Tenant, access.TenantChange(id=name, note=note))

    def set_tenant_disabled(self, name: str, *, disabled: bool) -> access.Tenant:
        """Disable a tenant, or let it work again."""
        verb = "disable" if disabled else "enable"
        return self._send("POST", f"/tenants/{quote(name, safe='')}/{verb}", access.Tenant)

    def list_tokens(self) -> access.TokenList:
        """Return access tokens, without their text."""
        return self._get("/tokens", access.TokenList)

    def create_token(self, request: access.TokenRequest) -> access.NewToken:
        """Make an access token."""
        return self._send("POST", "/tokens", access.NewToken, request)

    def revoke_token(self, identity: str) -> access.Token:
        """Revoke an access token."""
        return self._send("DELETE", f"/tokens/{quote(identity, safe='')}", access.Token)

    def list_proposals(self, *, limit: int | None = None) -> access.ProposalList:
        """Return proposals, the newest first."""
        return self._get("/proposals", access.ProposalList, limit=limit)

    def get_proposal(self, identity: str) -> access.Proposal:
        """Return a proposal."""
        return self._get(f"/proposals/{quote(identity, safe='')}", access.Proposal)

    def propose_release(self, prefix: str, init_data: str, *, days: int) -> access.Proposal:
        """Ask for the release of what lies under a prefix to one pod."""
        body = access.ReleaseProposal(prefix=prefix, init_data=init_data, days=days)
        return self._send("POST", "/proposals", access.Proposal, body)

    def approve(self, identity: str, digest: str) -> access.Proposal:
        """Approve a proposal."""
        path = f"/proposals/{quote(identity, safe='')}/approve"
        return self._send("POST", path, access.Proposal, access.Approval(digest=digest))

    def reject(self, identity: str) -> access.Proposal:
        """End a proposal without applying it."""
        return self._send("POST", f"/proposals/{quote(identity, safe='')}/reject", access.Proposal)

    def list_keys(self) -> access.KeyList:
        """Return keys of the service, without private halves."""
        return self._get("/keys", access.KeyList)

    def rotate_key(self, purpose: str, *, revoke: bool = False) -> access.RotatedKey:
        """Make a new `root`, `data` or `token` key."""
        path = f"/keys/{quote(purpose, safe='')}/rotate"
        return self._send("POST", path, access.RotatedKey, access.KeyRotation(revoke=revoke))

    # What happened

    def list_audit(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        **words: str,
    ) -> records.AuditPage:
        """Return a page of audit rows. `words`: decision, code, resource, init_data, attestation, level."""
        return self._get(
            "/audit", records.AuditPage, after=after, limit=limit, since=_time(since), until=_time(until), **words
        )

    def list_denials(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        **words: str,
    ) -> records.DenialPage:
        """Return a page of denials. `words`: code, resource, attestation, stage."""
        return self._get(
            "/denials", records.DenialPage, after=after, limit=limit, since=_time(since), until=_time(until), **words
        )

    def get_denial(self, identity: str) -> records.Denial:
        """Return the whole record of a denial."""
        return self._get(f"/denials/{quote(identity, safe='')}", records.Denial)

    def list_calls(self, *, after: int = 0, limit: int | None = None) -> records.CallPage:
        """Return a page of administrative calls."""
        return self._get("/calls", records.CallPage, after=after, limit=limit)

    def get_evidence(self, attestation: str) -> records.Evidence:
        """Return an Attestation Result and its evidence."""
        return self._get(f"/evidence/{quote(attestation, safe='')}", records.Evidence)

    def survey(self, request: reappraisal.SurveyRequest) -> reappraisal.SurveyPage:
        """Have a page of kept evidence judged again; nothing changes."""
        return self._send("POST", "/surveys", reappraisal.SurveyPage, request)

    # Identities

    def get_identity_policy(self) -> policies.PolicyVersion:
        """Return the identity policy in force."""
        return self._get("/identity-policy", policies.PolicyVersion)

    def put_identity_policy(self, text: str, *, replaces: int | None = None) -> policies.PolicyVersion:
        """Store the next version of the identity policy."""
        change = policies.PolicyChange(text=text, replaces=replaces)
        return self._send("PUT", "/identity-policy", policies.PolicyVersion, change)

    def list_identity_keys(self, trust_domain: str) -> identities.IdentityKeyList:
        """Return the keys of a trust domain, oldest first."""
        return self._get(f"/identity-keys/{quote(trust_domain, safe='')}", identities.IdentityKeyList)

    def rotate_identity_keys(self, trust_domain: str) -> Done:
        """Make new keys for a trust domain."""
        return self._send("POST", f"/identity-keys/{quote(trust_domain, safe='')}/rotate", Done, None)

    def withdraw_identity_key(self, trust_domain: str, key: str) -> Done:
        """Take a key out of a trust domain's bundle at once."""
        where = f"/identity-keys/{quote(trust_domain, safe='')}/{quote(key, safe='')}/withdraw"
        return self._send("POST", where, Done, None)

    def status(self) -> access.Status:
        """Return what the service runs with."""
        return self._get("/status", access.Status)

    def _get(self, path: str, kind: type[_T], **query: str | int | None) -> _T:
        return self._send("GET", path, kind, None, **query)

    def _send(
        self,
        method: str,
        path: str,
        kind: type[_T],
        body: msgspec.Struct | None = None,
        /,
        **query: str | int | None,
    ) -> _T:
        """Send one request.

        Raises:
            FormatRefused: the service says that the request is malformed.
            Refused: the service refuses it, with its code; the server is not the pinned one
                (`client.server_untrusted`); its answer is none (`client.admin.answer`).
            Unavailable: no connection (`client.unreachable`), or the service cannot answer now.
        """
        parameters = {name: str(value) for name, value in {**query, "tenant": self._tenant}.items() if value}
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            with self._client.stream(
                method, PREFIX + path, params=parameters, content=content, headers=headers
            ) as response:
                data = _read(response)
        except httpx.ConnectError as err:
            if _untrusted(err):
                raise Refused(
                    "client.server_untrusted",
                    "the server is not the one the pinned CA certifies",
                    path=self._peer,
                    hint="give the CA of the trust service: --ca, the file ca.pem of its state directory",
                ) from None
            raise self._unreachable(err) from None
        except httpx.HTTPError as err:
            raise self._unreachable(err) from None
        if response.status_code >= 300:
            raise _error(response.status_code, data)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as err:
            raise _no_answer(response.status_code) from err

    def _unreachable(self, err: httpx.HTTPError) -> Unavailable:
        return Unavailable(
            "client.unreachable",
            f"no connection to the server: {type(err).__name__}",
            path=self._peer,
            hint="check that the trust service runs and that its address is reachable from here",
        )


def _read(response: httpx.Response) -> bytes:
    parts, left = [], ANSWER_BYTES
    for part in response.iter_bytes():
        left -= len(part)
        if left < 0:
            raise Refused("client.answer_too_long", "the answer is too long", expected=f"at most {ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _error(status: int, data: bytes) -> CloisterError:
    try:
        problem = msgspec.json.decode(data, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _no_answer(status)
    denied = f"; the whole record: cloister explain {problem.denial}" if problem.denial else ""
    return _BY_STATUS.get(status, Refused)(
        problem.code,
        problem.detail,
        path=problem.path,
        expected=problem.expected,
        actual=problem.actual,
        hint=problem.hint + denied,
    )


def _no_answer(status: int) -> Refused:
    return Refused(
        "client.admin.answer",
        "what answers is not the administration API of a trust service",
        actual=f"status {status}",
        hint="compare the address with the one `cloister serve` prints",
    )


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL()
    plain = parsed.scheme == "http" and _is_loopback(parsed.host)
    if not parsed.host or (parsed.scheme != "https" and not plain) or parsed.userinfo or parsed.query:
        raise FormatRefused(
            "client.admin.address",
            "not an address of a trust service",
            path="--server",
            expected="https://host:port, or http:// to this machine",
            actual=url[:80],
        )
    return parsed


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _context(ca_pem: str) -> ssl.SSLContext:
    context = ssl.create_default_context() if not ca_pem else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca_pem:
        try:
            context.load_verify_locations(cadata=ca_pem)
        except (ssl.SSLError, ValueError) as err:
            raise FormatRefused("client.ca", "not a CA certificate in PEM", path="ca") from err
    return context


def _untrusted(err: BaseException) -> bool:
    seen: BaseException | None = err
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _prefix(text: str) -> str:
    segments = [_EVERYTHING] * 3 if text == _EVERYTHING else text.split("/")
    return "/".join(quote(segment, safe=_EVERYTHING) for segment in segments)


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
