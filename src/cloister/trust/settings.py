"""Settings of the trust service: one table drives command line, environment, configuration file and reference page.

What an attacker gains who controls a setting is said with it. No setting turns appraisal off. A setting whose name
begins with `insecure_` gives protection up and says what. No secret is a setting: those that need one name a file.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloister.errors import FormatRefused, Refused
from cloister.protocol.kbs import VERSIONS
from cloister.protocol.spiffe import parse_trust_domain
from cloister.protocol.tenants import DEFAULT_TENANT, parse_tenant

LOOPBACK: Final = "127.0.0.1"
PORT: Final = 7070
WORKERS: Final = 64
SLIRP_HOST: Final = "10.0.2.2"  # where a guest with QEMU's user networking finds its host

# OpenID Connect Discovery 1.0, section 3: https, host, perhaps port and path, nothing else; no slash at the end.
_ISSUER: Final = re.compile(r"https://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[A-Za-z0-9._~-]{1,100}){0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustSettings:
    """Everything the service can be told.

    Attributes:
        state: directory of the service's state, private to its user.
        database: address of the database, `postgresql://...` or `sqlite:///PATH`; empty for the one that the
            state directory names.
        database_password_file: file with the password of the database's user and nothing else, or None.
        host: IP address to listen on.
        port: TCP port; 0 takes a free one, which the ready report names.
        names: subjectAltNames of the TLS certificate.
        ready_file: where to write the ready report (JSON), or None.
        ready_fd: inherited file descriptor to write the ready report to, or None.
        appraisal_policy: id of the appraisal policy that evidence is judged under.
        key_store: address of the key store that holds the root key; empty for `root.key` in the state directory.
        collateral: directory below which `cloister collateral` keeps what vendors publish, as `CLOISTER_CACHE` names it
            there; None for the state directory. Only read.
        trust_domain: SPIFFE trust domain of the identities it issues; none are issued when empty.
        identity_issuer: https address under which clouds find the keys of JWT-SVIDs; empty for no such issuer.
        session_seconds: time a guest may take between `/auth` and its `/attest`.
        store_seconds: time after which a stalled store becomes a refusal.
        request_seconds: time after which any request becomes a refusal.
        concurrency: requests worked on at once.
        queue: requests admitted at once; more are turned away with 503.
        client_rate: requests per second of one client address; more are turned away with 429. 0 for no limit.
        log_witnesses: who is asked for cosignatures, `KEY@URL` each.
        log_cosignatures: how many of them must have cosigned a release before the resource goes out.
        shutdown_seconds: time given to requests in flight on SIGTERM.
        die_with_parent: end when the starting process ends.
        workers: processes that share state and port.
        metrics_listen: address and port for `/metrics` alone; None to serve it with everything else.
        metrics_tenants: whether metrics tell tenants apart by name.
        traces_endpoint: address that takes traces (OTLP over HTTP); empty for none.
        webhook_url: address that is told of denied guests; empty for none.
        webhook_secret_file: file with the key that signs these calls.
        collateral_days: age of the newest collateral from which on the service is not ready; 0 to ignore it.
        insecure_http: plain HTTP, for a proxy on the same machine that ends TLS.
        insecure_http_any_address: allow that on an address that others can reach.
        minimum_protocol: oldest version of the key broker protocol that is spoken; nothing is negotiated below it.
        insecure_rsa1_5: seal to keys for RSA1_5, without which guests of protocol 0.1.1 get nothing.
        insecure_unsigned_reference_values: take CoCo's unsigned reference value messages.
        trusted_token_roots: PEM file of CAs that name other verifiers, whose tokens are accepted; None for none.
        trusted_token_tenant: whose resources such tokens may ask for.

    Raises:
        Refused: plain HTTP on an address that others can reach (`trust.settings.insecure_http`).
    """

    state: Path
    database: str = ""
    database_password_file: Path | None = None
    host: str = LOOPBACK
    port: int = PORT
    names: tuple[str, ...] = ("localhost", LOOPBACK, SLIRP_HOST)
    ready_file: Path | None = None
    ready_fd: int | None = None
    appraisal_policy: str = "default"
    key_store: str = ""
    collateral: Path | None = None
    trust_domain: str = ""
    identity_issuer: str = ""
    session_seconds: float = 300.0
    store_seconds: float = 4.0
    request_seconds: float = 10.0
    concurrency: int = 8
    queue: int = 128
    client_rate: float = 0.0
    log_witnesses: tuple[str, ...] = ()
    log_cosignatures: int = 0
    shutdown_seconds: float = 5.0
    die_with_parent: bool = False
    workers: int = 1
    metrics_listen: tuple[str, int] | None = None
    metrics_tenants: bool = False
    traces_endpoint: str = ""
    webhook_url: str = ""
    webhook_secret_file: Path | None = None
    collateral_days: int = 7
    insecure_http: bool = False
    insecure_http_any_address: bool = False
    minimum_protocol: str = VERSIONS[0]
    insecure_rsa1_5: bool = False
    insecure_unsigned_reference_values: bool = False
    trusted_token_roots: Path | None = None
    trusted_token_tenant: str = DEFAULT_TENANT

    def __post_init__(self) -> None:
        if self.webhook_url and self.webhook_secret_file is None:
            raise FormatRefused(
                "trust.settings.webhook_secret",
                "a webhook needs a secret that signs its calls",
                path="webhook_secret_file",
                hint="name a file of mode 0600 in webhook_secret_file",
            )
        exposed = not ipaddress.ip_address(self.host).is_loopback
        if self.insecure_http and exposed and not self.insecure_http_any_address:
            raise Refused(
                "trust.settings.insecure_http",
                "plain HTTP on an address that others can reach",
                path="listen",
                expected="a loopback address",
                actual=self.host,
                hint="listen on 127.0.0.1 behind your proxy, or give insecure_http_any_address as well",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One line of the table.

    Attributes:
        field: attribute of `TrustSettings`, and key in the configuration file; `listen` stands for host and port.
        flag: command-line flag.
        parse: text to value; None for a switch.
        help: one line for people.
        controls: what an attacker gains who controls it.
    """

    field: str
    flag: str
    parse: Callable[[str], Any] | None  # Any: the type of the field
    help: str
    controls: str


def _listen(text: str) -> tuple[str, int]:
    return parse_listen(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if not names:
        raise ValueError(text)
    return names


def _trust_domain(text: str) -> str:
    try:
        return parse_trust_domain(text)
    except FormatRefused as err:
        raise ValueError(text) from err


def _issuer(text: str) -> str:
    if not _ISSUER.fullmatch(text):
        raise ValueError(text)
    return text


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise ValueError(text)
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1_000_000:
        raise ValueError(text)
    return value


def _days(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 3660:
        raise ValueError(text)
    return value


def _workers(text: str) -> int:
    value = int(text)
    if not 0 < value <= WORKERS:
        raise ValueError(text)
    return value


def _natural(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _protocol(text: str) -> str:
    if text not in VERSIONS:
        raise ValueError(text)
    return text


def _count(text: str) -> int:
    value = int(text)
    if not 0 < value <= 1_000_000:
        raise ValueError(text)
    return value


TABLE: Final[Sequence[Setting]] = (
    Setting(
        field="data",
        flag="--data",
        parse=Path,
        help="directory of the service's state",
        controls="everything: root key, policies and resources live there",
    ),
    Setting(
        field="listen",
        flag="--listen",
        parse=_listen,
        help="address and port; port 0 takes a free one",
        controls="who can reach the service; guests pin its CA, so a stranger there gets no further",
    ),
    Setting(
        field="database",
        flag="--database",
        parse=str,
        help="postgresql://USER@HOST/DATABASE, for replicas; SQLite in the state directory when absent",
        controls="what is released to whom: policies are read from there; not the resources, which are sealed",
    ),
    Setting(
        field="database_password_file",
        flag="--database-password-file",
        parse=Path,
        help="file with the password of the database's user; otherwise PGPASSFILE",
        controls="nothing without the database's address; a wrong password stops the service",
    ),
    Setting(
        field="names",
        flag="--names",
        parse=_names,
        help="comma-separated names and addresses in the TLS certificate",
        controls="nothing without the CA key; wrong names stop guests from connecting",
    ),
    Setting(
        field="ready_file",
        flag="--ready-file",
        parse=Path,
        help="file that receives the ready report as JSON",
        controls="where the report is written; it holds no secret",
    ),
    Setting(
        field="ready_fd",
        flag="--ready-fd",
        parse=int,
        help="inherited descriptor that receives the ready report",
        controls="where the report is written; it holds no secret",
    ),
    Setting(
        field="appraisal_policy",
        flag="--appraisal-policy",
        parse=str,
        help="id of the stored appraisal policy to judge by",
        controls="which of the owner's own policies applies; release rules name the id they accept",
    ),
    Setting(
        field="key_store",
        flag="--key-store",
        parse=str,
        help="address of the key store of the root key, remembered; root.key in the state directory when absent",
        controls="nothing without the old root key: the service refuses data keys that another root key wraps",
    ),
    Setting(
        field="collateral",
        flag="--collateral",
        parse=Path,
        help="CLOISTER_CACHE of what `cloister collateral` fetches; the state directory when absent",
        controls="availability, and how old vendors' statements may be within the policy's grace; each is signed",
    ),
    Setting(
        field="trust_domain",
        flag="--trust-domain",
        parse=_trust_domain,
        help="SPIFFE trust domain of the identities issued to attested pods; none are issued when absent",
        controls="which names pods get; relying parties trust keys per domain, and a new domain has new keys",
    ),
    Setting(
        field="identity_issuer",
        flag="--identity-issuer",
        parse=_issuer,
        help="https address that JWT-SVIDs name as issuer, where clouds find their keys",
        controls="which clouds accept JWT-SVIDs; who serves that address can publish keys of their own",
    ),
    Setting(
        field="session_seconds",
        flag="--session-seconds",
        parse=_seconds,
        help="time a guest may take between /auth and /attest",
        controls="how long a challenge stays open; a nonce is accepted once regardless",
    ),
    Setting(
        field="store_seconds",
        flag="--store-seconds",
        parse=_seconds,
        help="time after which a stalled store becomes a refusal",
        controls="availability only",
    ),
    Setting(
        field="request_seconds",
        flag="--request-seconds",
        parse=_seconds,
        help="time after which any request becomes a refusal",
        controls="availability only",
    ),
    Setting(
        field="concurrency",
        flag="--concurrency",
        parse=_count,
        help="requests worked on at once",
        controls="availability only",
    ),
    Setting(
        field="queue",
        flag="--queue",
        parse=_count,
        help="requests admitted at once",
        controls="availability only",
    ),
    Setting(
        field="client_rate",
        flag="--client-rate",
        parse=_rate,
        help="requests per second of one client address; 0 for no limit",
        controls="availability only; behind a proxy all clients have one address",
    ),
    Setting(
        field="log_witnesses",
        flag="--log-witnesses",
        parse=_names,
        help="comma-separated witnesses of the release log, KEY@URL each",
        controls="who can stop the log, and whose word is taken that a restored database is the newest",
    ),
    Setting(
        field="log_cosignatures",
        flag="--log-cosignatures",
        parse=_natural,
        help="how many witnesses must have cosigned a release before the resource goes out",
        controls="how much later a fork is noticed; guests demand what their measured init data says regardless",
    ),
    Setting(
        field="shutdown_seconds",
        flag="--shutdown-seconds",
        parse=_seconds,
        help="time given to requests in flight on SIGTERM",
        controls="availability only",
    ),
    Setting(
        field="minimum_protocol",
        flag="--minimum-protocol",
        parse=_protocol,
        help="oldest version of the key broker protocol that is spoken: 0.1.1, 0.2.0 or 0.4.0",
        controls="whether guests may speak versions that bind no init data; rules have to allow such guests besides",
    ),
    Setting(
        field="insecure_rsa1_5",
        flag="--insecure-rsa1-5",
        parse=None,
        help="seal to keys for RSA1_5, the only ones that guests of protocol 0.1.1 have",
        controls="resources of guests with such keys, for who can ask those guests to open many texts (Bleichenbacher)",
    ),
    Setting(
        field="insecure_unsigned_reference_values",
        flag="--insecure-unsigned-reference-values",
        parse=None,
        help="take reference values in CoCo's message, which nobody signs, from who may register reference values",
        controls="nothing alone; whoever has such a credential then decides which code is acceptable",
    ),
    Setting(
        field="trusted_token_roots",
        flag="--trusted-token-roots",
        parse=Path,
        help="accept tokens of other attestation services (CoCo's) whose certificates end at a CA in this PEM file",
        controls="resources whose rule names such a service's policy or is in Rego: who adds a CA can sign results",
    ),
    Setting(
        field="trusted_token_tenant",
        flag="--trusted-token-tenant",
        parse=parse_tenant,
        help="tenant whose resources such tokens may ask for",
        controls="which tenant's resources an accepted attestation service can ask for",
    ),
    Setting(
        field="die_with_parent",
        flag="--die-with-parent",
        parse=None,
        help="end when the starting process ends",
        controls="availability only",
    ),
    Setting(
        field="workers",
        flag="--workers",
        parse=_workers,
        help="processes that share state and port",
        controls="availability only",
    ),
    Setting(
        field="metrics_listen",
        flag="--metrics-listen",
        parse=_listen,
        help="address and port for /metrics alone; with everything else when absent",
        controls="who reads how many guests come and are denied; no name, path or secret is among it",
    ),
    Setting(
        field="metrics_tenants",
        flag="--metrics-tenants",
        parse=None,
        help="tell tenants apart by name in metrics",
        controls="the names of tenants, for whoever reads metrics",
    ),
    Setting(
        field="traces_endpoint",
        flag="--traces-endpoint",
        parse=str,
        help="address that takes traces, OTLP over HTTP; needs the extra otel",
        controls="who learns when which technology attested, and how long each step took",
    ),
    Setting(
        field="webhook_url",
        flag="--webhook-url",
        parse=str,
        help="address that is told of denied guests",
        controls="who learns of denials (code, denial id, tenant), and one address that the service connects to",
    ),
    Setting(
        field="webhook_secret_file",
        flag="--webhook-secret-file",
        parse=Path,
        help="file of mode 0600 with the key that signs calls to the webhook",
        controls="forged calls to the webhook's receiver",
    ),
    Setting(
        field="collateral_days",
        flag="--collateral-days",
        parse=_days,
        help="age of the newest collateral from which on /readyz says no; 0 to ignore it",
        controls="how late you notice that nothing is fetched any more; verdicts go by each policy's own grace",
    ),
    Setting(
        field="insecure_http",
        flag="--insecure-http",
        parse=None,
        help="plain HTTP, for a proxy on the same machine that ends TLS",
        controls="reading and changing every message on the way: guests no longer know whom they talk to",
    ),
    Setting(
        field="insecure_http_any_address",
        flag="--insecure-http-any-address",
        parse=None,
        help="allow plain HTTP on an address that others can reach",
        controls="the same, from the network",
    ),
)


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        FormatRefused: not an IP address and a port (`trust.settings.listen`).
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError as err:
        raise FormatRefused(
            "trust.settings.listen", "not an address to listen on", expected="127.0.0.1:0", actual=text[:60]
        ) from err
    if not 0 <= number <= 65535:
        raise FormatRefused("trust.settings.listen", "no such port", expected="0 to 65535", actual=str(number))
    return host, number
