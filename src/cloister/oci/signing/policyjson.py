"""`policy.json` of containers/image: which images are accepted under which names (containers-policy.json(5)).

Complete: every requirement type, every identity type, every transport. Anything the format does not define makes the
whole file invalid, so that a misspelt restriction is never no restriction; that goes for transports' names too, which
containers/image lets pass. `keyPath` may also be `file://..` or `kbs:///repository/type/tag` (CoCo), and `keyData` of
`sigstoreSigned` may be the PEM text itself (CoCo) besides base64. Pure: files are read by the function that is given.
docs/reference/signature-policy.md lists where this differs from CoCo's image-rs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from cloister.errors import FormatRefused, ImageRefused
from cloister.oci.document import Members, parse_document
from cloister.oci.reference import OCIReference, parse_reference
from cloister.oci.signing.identity import (
    ExactReference,
    ExactRepositoryName,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    RemapIdentity,
    SignedIdentity,
)
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import OPENPGP_KEYRING_BYTES, SIGNATURE_POLICY_BYTES, SIGNATURE_POLICY_ITEMS

TRANSPORTS: Final = (
    "atomic",
    "containers-storage",
    "dir",
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
)
_CODE: Final = "oci.signing.policy"
_PREFIX: Final = re.compile(r"[A-Za-z0-9.\-_:/@\[\]]{1,512}")
_WILDCARD: Final = re.compile(r"\*\.[A-Za-z0-9.-]+")


class KeySource(msgspec.Struct, frozen=True):
    """Where a key is: bytes in the policy itself, or a path to read."""

    data: bytes = b""
    path: str = ""


class Accept(msgspec.Struct, frozen=True):
    """`insecureAcceptAnything`: no signature is asked for."""


class Reject(msgspec.Struct, frozen=True):
    """`reject`: no image passes."""


class SignedBy(msgspec.Struct, frozen=True, kw_only=True):
    """`signedBy`: simple signing with OpenPGP."""

    keyrings: tuple[KeySource, ...]
    identity: SignedIdentity


class FulcioSource(msgspec.Struct, frozen=True, kw_only=True):
    """`fulcio`: who issues certificates, and to whom the signature's must be."""

    authority: KeySource
    issuer: str
    email: str


class PKISource(msgspec.Struct, frozen=True, kw_only=True):
    """`pki`: one's own certificate authority."""

    roots: KeySource
    intermediates: KeySource | None
    email: str
    hostname: str


class SigstoreSigned(msgspec.Struct, frozen=True, kw_only=True):
    """`sigstoreSigned`: exactly one of keys, Fulcio and PKI; with `rekor_keys` the signature must be logged as well."""

    keys: tuple[KeySource, ...] = ()
    fulcio: FulcioSource | None = None
    pki: PKISource | None = None
    rekor_keys: tuple[KeySource, ...] = ()
    identity: SignedIdentity


PolicyRequirement = Accept | Reject | SignedBy | SigstoreSigned


class SignaturePolicy(msgspec.Struct, frozen=True):
    """A parsed policy: requirements by transport and scope, and those for everything else."""

    default: tuple[PolicyRequirement, ...]
    transports: Mapping[str, Mapping[str, tuple[PolicyRequirement, ...]]]

    def requirements(self, transport: str, scopes: tuple[str, ...]) -> tuple[str, tuple[PolicyRequirement, ...]]:
        """Return the scope that counts and its requirements: of the first of `scopes` that the policy has."""
        known = self.transports.get(transport, {})
        for scope in (*scopes, ""):
            if scope in known:
                return f"transports.{transport}.{scope or '(any)'}", known[scope]
        return "default", self.default


def docker_scopes(reference: OCIReference) -> tuple[str, ...]:
    """Return the scopes an image in a registry is looked up under, most specific first."""
    name = reference.name
    tagged = f"{name}@{reference.digest}" if reference.digest else f"{name}:{reference.selector}"
    scopes = [tagged, name]
    while "/" in name:
        name = name.rpartition("/")[0]
        scopes.append(name)
    host = name.partition(":")[0]
    while "." in host:
        host = host.partition(".")[2]
        scopes.append(f"*.{host}")
    return tuple(scopes)


def path_scopes(path: str, selector: str = "") -> tuple[str, ...]:
    """Return the scopes of a layout, archive or directory under an absolute `path`, most specific first."""
    scopes = [f"{path}:{selector}"] if selector else []
    while path.strip("/"):
        scopes.append(path)
        path = path.rpartition("/")[0]
    return tuple(scopes)


def parse_policy(data: bytes) -> SignaturePolicy:
    """Parse a policy.

    Raises:
        ImageRefused: `oci.signing.policy.*`.
    """
    top = Members(parse_document(data, ceiling=SIGNATURE_POLICY_BYTES, code=_CODE), path="", code=_CODE)
    top.only("default", "transports")
    transports = {}
    members = top.members("transports") if "transports" in top else Members({}, path="transports", code=_CODE)
    for name in members.names():
        if name not in TRANSPORTS:
            raise ImageRefused(
                f"{_CODE}.transport",
                "policy names a transport that does not exist",
                path=f"transports.{name[:80]}",
                expected=", ".join(TRANSPORTS),
            )
        scopes = members.members(name)
        for scope in scopes.names():
            _check_scope(name, scope)
        transports[name] = {scope: _requirements(scopes, scope) for scope in scopes.names()}
    return SignaturePolicy(_requirements(top, "default"), transports)


def _check_scope(transport: str, scope: str) -> None:
    if not scope:
        return
    if transport == "docker":
        good = bool(_WILDCARD.fullmatch(scope)) if scope.startswith("*.") else bool(_PREFIX.fullmatch(scope))
        good = good and not scope.endswith("/") and "://" not in scope
    elif transport in ("oci", "oci-archive", "dir"):
        good = scope.startswith("/") and "/../" not in f"{scope}/" and "//" not in scope and scope != "/"
    else:
        good = transport not in ("docker-archive", "tarball")
    if not good:
        raise ImageRefused(
            f"{_CODE}.scope", "scope can match nothing", path=f"transports.{transport}", actual=scope[:120]
        )


def _requirements(members: Members, name: str) -> tuple[PolicyRequirement, ...]:
    items = members.array(name, ceiling=SIGNATURE_POLICY_ITEMS, required=True)
    place = members.place(name)
    if not items:
        raise ImageRefused(
            f"{_CODE}.empty",
            "list of requirements is empty",
            path=place,
            hint="write `reject` or `insecureAcceptAnything`: an empty list would say neither",
        )
    return tuple(
        _requirement(Members(item, path=f"{place}[{number}]", code=_CODE)) for number, item in enumerate(items)
    )


def _requirement(members: Members) -> PolicyRequirement:
    kind = members.text("type")
    parse = _TYPES.get(kind)
    if parse is None:
        raise ImageRefused(
            f"{_CODE}.requirement",
            "requirement is of a type that does not exist",
            path=members.place("type"),
            expected=", ".join(_TYPES),
            actual=kind[:80],
        )
    return parse(members)


def _accept(members: Members) -> Accept:
    members.only("type")
    return Accept()


def _reject(members: Members) -> Reject:
    members.only("type")
    return Reject()


def _signed_by(members: Members) -> SignedBy:
    members.only("type", "keyType", "keyPath", "keyPaths", "keyData", "signedIdentity")
    if members.text("keyType") != "GPGKeys":
        raise ImageRefused(
            f"{_CODE}.key_type",
            "kind of keys is not one that can be verified",
            path=members.place("keyType"),
            expected="GPGKeys",
            actual=members.text("keyType")[:40],
        )
    _exactly_one(members, "keyPath", "keyPaths", "keyData")
    return SignedBy(keyrings=_sources(members, "keyPath", "keyPaths", "keyData", ""), identity=_identity(members))


def _sigstore_signed(members: Members) -> SigstoreSigned:
    keys = ("keyPath", "keyPaths", "keyData", "keyDatas")
    rekor = ("rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas")
    members.only("type", *keys, "fulcio", "pki", *rekor, "signedIdentity")
    _exactly_one(members, *keys, "fulcio", "pki")
    logs = [name for name in rekor if name in members]
    if logs:
        _exactly_one(members, *rekor)
    if ("fulcio" in members and not logs) or ("pki" in members and logs):
        raise ImageRefused(
            f"{_CODE}.combination",
            "fulcio needs the key of a transparency log, and pki has none",
            path=members.place("rekorPublicKeyPath"),
        )
    return SigstoreSigned(
        keys=_sources(members, *keys),
        fulcio=_fulcio(members.members("fulcio")) if "fulcio" in members else None,
        pki=_pki(members.members("pki")) if "pki" in members else None,
        rekor_keys=_sources(members, *rekor),
        identity=_identity(members),
    )


_TYPES: Final[Mapping[str, Callable[[Members], PolicyRequirement]]] = {
    "insecureAcceptAnything": _accept,
    "reject": _reject,
    "signedBy": _signed_by,
    "sigstoreSigned": _sigstore_signed,
}


def _fulcio(members: Members) -> FulcioSource:
    members.only("caPath", "caData", "oidcIssuer", "subjectEmail")
    _exactly_one(members, "caPath", "caData")
    return FulcioSource(
        authority=_sources(members, "caPath", "", "caData", "")[0],
        issuer=members.text("oidcIssuer"),
        email=members.text("subjectEmail"),
    )


def _pki(members: Members) -> PKISource:
    inner = ("caIntermediatesPath", "caIntermediatesData")
    members.only("caRootsPath", "caRootsData", *inner, "subjectEmail", "subjectHostname")
    _exactly_one(members, "caRootsPath", "caRootsData")
    between = [name for name in inner if name in members]
    if between:
        _exactly_one(members, *inner)
    source = PKISource(
        roots=_sources(members, "caRootsPath", "", "caRootsData", "")[0],
        intermediates=_sources(members, inner[0], "", inner[1], "")[0] if between else None,
        email=members.text("subjectEmail", ""),
        hostname=members.text("subjectHostname", ""),
    )
    if not source.email and not source.hostname:
        raise ImageRefused(f"{_CODE}.combination", "pki names nobody", path=members.place("subjectEmail"))
    return source


def _exactly_one(members: Members, *names: str) -> None:
    found = [name for name in names if name in members]
    if len(found) != 1:
        raise ImageRefused(
            f"{_CODE}.combination",
            "not exactly one of several members",
            path=members.place(""),
            expected=", ".join(names),
            actual=", ".join(found) or "none",
        )


def _sources(members: Members, path: str, paths: str, data: str, datas: str) -> tuple[KeySource, ...]:
    """Return the keys that one of four members names; a member with an empty name does not exist."""
    found: list[KeySource] = []
    if path in members:
        found.append(_path(members.text(path), members.place(path)))
    if paths and paths in members:
        found += [_path(text, members.place(paths)) for text in members.texts(paths, ceiling=SIGNATURE_POLICY_ITEMS)]
    if data in members:
        found.append(_data(members.text(data), members.place(data)))
    if datas and datas in members:
        found += [_data(text, members.place(datas)) for text in members.texts(datas, ceiling=SIGNATURE_POLICY_ITEMS)]
    if not found and (paths in members or datas in members):
        raise ImageRefused(f"{_CODE}.empty", "list of keys is empty", path=members.place(paths or datas))
    return tuple(found)


def _path(text: str, place: str) -> KeySource:
    if text.startswith("kbs:///"):
        return KeySource(path=text)
    text = text.removeprefix("file://")
    if not text.startswith("/"):
        raise ImageRefused(
            f"{_CODE}.key_path",
            "path is not absolute",
            path=place,
            expected="/path, file:///path or kbs:///repository/type/tag",
            actual=text[:120],
        )
    return KeySource(path=text)


def _data(text: str, place: str) -> KeySource:
    if text.lstrip().startswith("-----BEGIN"):  # CoCo's image-rs takes the text itself
        return KeySource(data=text.encode())
    try:
        return KeySource(data=decode_b64(text, path=place, ceiling=OPENPGP_KEYRING_BYTES))
    except FormatRefused as err:
        raise ImageRefused(f"{_CODE}.key_data", "key is neither base64 nor PEM", path=place) from err


def _identity(members: Members) -> SignedIdentity:
    if "signedIdentity" not in members:
        return MatchRepoDigestOrExact()
    inner = members.members("signedIdentity")
    kind = inner.text("type")
    try:
        if kind == "exactReference":
            inner.only("type", "dockerReference")
            reference = parse_reference(inner.text("dockerReference"))
            if not reference.tag and reference.digest is None:
                raise _bad_identity(inner, "reference has neither tag nor digest")
            return ExactReference(reference)
        if kind == "exactRepository":
            inner.only("type", "dockerRepository")
            repository = parse_reference(inner.text("dockerRepository"))
            if repository.tag or repository.digest is not None:
                raise _bad_identity(inner, "repository has a tag or digest")
            return ExactRepositoryName(repository)
    except ImageRefused as err:
        if err.code.startswith(_CODE):
            raise
        raise _bad_identity(inner, err.message, err.actual) from err
    if kind == "remapIdentity":
        inner.only("type", "prefix", "signedPrefix")
        prefixes = inner.text("prefix"), inner.text("signedPrefix")
        if not all(_PREFIX.fullmatch(text) and not text.endswith("/") for text in prefixes):
            raise _bad_identity(inner, "not a prefix of references")
        return RemapIdentity(*prefixes)
    inner.only("type")
    simple = _SIMPLE_IDENTITIES.get(kind)
    if simple is None:
        raise ImageRefused(
            f"{_CODE}.identity", "identity is of a type that does not exist", path=inner.place("type"), actual=kind[:80]
        )
    return simple


def _bad_identity(members: Members, message: str, actual: str = "") -> ImageRefused:
    return ImageRefused(f"{_CODE}.identity", message, path=members.place("type"), actual=actual[:120])


_SIMPLE_IDENTITIES: Final[Mapping[str, SignedIdentity]] = {
    "matchExact": MatchExact(),
    "matchRepoDigestOrExact": MatchRepoDigestOrExact(),
    "matchRepository": MatchRepository(),
}
