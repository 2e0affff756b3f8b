"""A guest's side of the CoCo key broker protocol (RCAR) over plain sockets, and nothing of Cloister in it.

Request, Challenge, Attestation, Response as the clients of CNCF Confidential Containers speak it, versions 0.4.0, 0.2.0
and 0.1.1: an independent second implementation, to test a broker with. Strict where those clients are: the answer is
opened with the header *as it would be written again* (`alg`, `enc`, then the rest sorted, compactly), a refusal must be
JSON with `type` and `detail`, and a session is a cookie. It makes no evidence: the caller does, over `report_data`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

PREFIX: Final = "/kbs/v0"
ERROR_TYPE: Final = "https://github.com/confidential-containers/kbs/errors/"
COOKIE: Final = "kbs-session-id"
WITH_RUNTIME_DATA: Final = "0.4.0"
TAG_IN_CIPHERTEXT: Final = "0.1.1"
_ANSWER_BYTES: Final = 4 * 1024 * 1024
_SECONDS: Final = 20
_COORDINATES: Final = {"P-256": 32, "P-521": 66}
_CURVES: Final[dict[str, ec.EllipticCurve]] = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}


class Violation(Exception):
    """The broker broke the protocol, as this client reads it."""


class Denied(Exception):
    """The broker said no, in the form that clients understand."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {body['detail']}")
        self.status = status
        self.variant = str(body["type"]).removeprefix(ERROR_TYPE)
        self.detail = str(body["detail"])
        self.body = body


@dataclass(frozen=True)
class Answer:
    """What came back: header names in lower case, each with all its values."""

    status: int
    headers: Mapping[str, list[str]]
    body: bytes


# -- keys


@dataclass(frozen=True)
class GuestKey:
    """A key pair with the public half as `tee-pubkey` says it."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    jwk: dict[str, str]

    def open(self, sealed: Mapping[str, Any], *, version: str = WITH_RUNTIME_DATA) -> bytes:
        """Open a resource's JWE, in the form of the protocol version.

        Raises:
            Violation: a member is missing or too much, an algorithm is not this key's, or it does not open.
        """
        if set(sealed) != {"protected", "encrypted_key", "iv", "ciphertext", "tag"}:
            raise Violation(f"members of a sealed resource: {sorted(sealed)}")
        in_ciphertext = version == TAG_IN_CIPHERTEXT
        text = sealed["protected"]
        header = json.loads(text if text.startswith("{") and in_ciphertext else unpadded(text))
        if header.get("enc") != "A256GCM" or header.get("alg") != self.jwk["alg"]:
            raise Violation(f"algorithms of a sealed resource: {header}")
        try:
            cek = self._content_key(header, unpadded(sealed["encrypted_key"]))
        except (InvalidUnwrap, ValueError):
            raise Violation("the content key is not this guest's") from None
        iv, tag = unpadded(sealed["iv"]), unpadded(sealed["tag"])
        if (len(cek), len(iv), len(tag)) != (32, 12, 0 if in_ciphertext else 16):
            raise Violation("lengths of a sealed resource")
        aad = None if in_ciphertext else written_again(header).encode()
        try:
            return AESGCM(cek).decrypt(iv, unpadded(sealed["ciphertext"]) + tag, aad)
        except InvalidTag:
            raise Violation("the resource does not open under the header as this client writes it") from None

    def _content_key(self, header: Mapping[str, Any], wrapped: bytes) -> bytes:
        if isinstance(self.private, rsa.RSAPrivateKey):
            oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
            return self.private.decrypt(wrapped, oaep if header["alg"] == "RSA-OAEP-256" else padding.PKCS1v15())
        ephemeral = header["epk"]
        if set(ephemeral) != {"crv", "kty", "x", "y"} or ephemeral["crv"] != self.jwk["crv"]:
            raise Violation(f"ephemeral key: {ephemeral}")
        x, y = (int.from_bytes(unpadded(ephemeral[name]), "big") for name in ("x", "y"))
        public = ec.EllipticCurvePublicNumbers(x, y, _CURVES[self.jwk["crv"]]).public_key()
        shared = self.private.exchange(ec.ECDH(), public)
        name = header["alg"].encode()
        numbers = (1).to_bytes(4, "big"), len(name).to_bytes(4, "big"), bytes(8), (256).to_bytes(4, "big")
        derived = hashlib.sha256(numbers[0] + shared + numbers[1] + name + numbers[2] + numbers[3]).digest()
        return aes_key_unwrap(derived, wrapped)


def written_again(header: Mapping[str, Any]) -> str:
    """Return the protected header as CoCo's clients write it: `alg`, `enc`, then everything else sorted."""
    rest = json.loads(json.dumps({key: header[key] for key in header if key not in ("alg", "enc")}, sort_keys=True))
    return b64url(json.dumps({"alg": header["alg"], "enc": header["enc"], **rest}, separators=(",", ":")).encode())


def ec_key(curve: str = "P-256") -> GuestKey:
    """Make a key on P-256, the clients' own choice, or P-521."""
    private = ec.generate_private_key(_CURVES[curve])
    numbers, width = private.public_key().public_numbers(), _COORDINATES[curve]
    x, y = b64url(numbers.x.to_bytes(width, "big")), b64url(numbers.y.to_bytes(width, "big"))
    return GuestKey(private, {"kty": "EC", "crv": curve, "alg": "ECDH-ES+A256KW", "x": x, "y": y})


def rsa_key(algorithm: str = "RSA-OAEP-256") -> GuestKey:
    """Make an RSA key of 2048 bits; `RSA1_5` is what version 0.1.1 has."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    numbers = private.public_key().public_numbers()
    n, e = b64url(numbers.n.to_bytes(256, "big")), b64url(numbers.e.to_bytes(3, "big"))
    return GuestKey(private, {"kty": "RSA", "alg": algorithm, "n": n, "e": e})


# -- the protocol


@dataclass
class Client:
    """One guest. `auth`, then `attest`, then `resource`; what each got is kept, and may be replaced by a test."""

    url: str
    ca_pem: str
    key: GuestKey
    version: str = WITH_RUNTIME_DATA
    cookies: dict[str, str] = field(default_factory=dict)
    nonce: str = ""
    token: str = ""

    def auth(self, tee: str, extra_params: Any = "") -> Any:
        """Ask for a challenge; return its `extra-params`."""
        answer = self._post("auth", {"version": self.version, "tee": tee, "extra-params": extra_params})
        if set(answer) != {"nonce", "extra-params"}:
            raise Violation(f"members of a challenge: {sorted(answer)}")
        if len(base64.b64decode(answer["nonce"], validate=True)) != 32 or COOKIE not in self.cookies:
            raise Violation("a challenge is 32 bytes and begins a session")
        self.nonce = answer["nonce"]
        return answer["extra-params"]

    def report_data(self, additional: str = "") -> bytes:
        """Return the SHA-384 digest that evidence of the CPU binds."""
        bound: dict[str, Any] = {"nonce": self.nonce, "tee-pubkey": self.key.jwk}
        if self.version == WITH_RUNTIME_DATA:
            bound["additional-evidence"] = additional
        return hashlib.sha384(canonical(bound)).digest()

    def attest(self, evidence: Any, init_data: str | None = None, additional: str = "") -> str:
        """Send evidence; return the token."""
        answer = self._post("attest", self.attestation(evidence, init_data, additional))
        if set(answer) != {"token"} or answer["token"].count(".") != 2:
            raise Violation("no token")
        self.token = answer["token"]
        return self.token

    def attestation(self, evidence: Any, init_data: str | None = None, additional: str = "") -> dict[str, Any]:
        """Return the body of `/attest`, of this version's shape."""
        if self.version == WITH_RUNTIME_DATA:
            return {
                "init-data": None if init_data is None else {"format": "toml", "body": init_data},
                "runtime-data": {"nonce": self.nonce, "tee-pubkey": self.key.jwk},
                "tee-evidence": {"primary_evidence": evidence, "additional_evidence": additional},
            }
        text = json.dumps(evidence) if self.version == TAG_IN_CIPHERTEXT else evidence
        return {"tee-pubkey": self.key.jwk, "tee-evidence": text}

    def resource(self, path: str, *, by: str = "cookie") -> bytes:
        """Get `repository/type/tag` by `cookie` or by `bearer`, and open it."""
        return self.key.open(json.loads(self.sealed(path, by=by)), version=self.version)

    def sealed(self, path: str, *, by: str = "cookie") -> bytes:
        """Get a resource as it is sent."""
        headers = {"Authorization": f"Bearer {self.token}"} if by == "bearer" else {}
        answer = self.exchange("GET", f"/resource/{path}", None, headers, cookies=by == "cookie")
        if answer.headers.get("content-type") != ["application/json"]:
            raise Violation(f"content type of a resource: {answer.headers.get('content-type')}")
        return answer.body

    def _post(self, path: str, body: object) -> dict[str, Any]:
        answer = self.exchange("POST", f"/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        value = json.loads(answer.body)
        if not isinstance(value, dict):
            raise Violation("an answer is an object")
        return value

    def exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, cookies: bool = True
    ) -> Answer:
        """Send one request on a connection of its own; return the answer if it is 200.

        Raises:
            Denied: it is not, and says why.
            Violation: it is not, and does not.
        """
        sent = dict(headers)
        if cookies and self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = request(self.url, self.ca_pem, method, PREFIX + path, body, sent)
        for line in answer.headers.get("set-cookie", []):
            name, _, value = line.partition(";")[0].strip().partition("=")
            self.cookies[name] = value
        if answer.status == 200:
            return answer
        raise refusal(answer)


def refusal(answer: Answer) -> Denied:
    """Return what an answer that is not 200 says.

    Raises:
        Violation: its body is not what clients need: a type, without which they hide the cause, and a detail.
    """
    try:
        told = json.loads(answer.body)
    except ValueError:
        raise Violation(f"{answer.status} with a body that is no JSON") from None
    if not (isinstance(told, dict) and isinstance(told.get("detail"), str) and told["detail"]):
        raise Violation(f"{answer.status} without a detail")
    if not str(told.get("type")).startswith(ERROR_TYPE) or told["type"] == ERROR_TYPE:
        raise Violation(f"{answer.status} of type {told.get('type')}")
    return Denied(answer.status, told)


def request(url: str, ca_pem: str, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
    """Send one HTTP/1.1 request over TLS, whose only authority is the given one; over plain TCP for `http://`."""
    address = urlsplit(url)
    host, port = str(address.hostname), int(address.port or 443)
    context = ssl.create_default_context(cadata=ca_pem) if address.scheme != "http" else None
    lines = [f"{method} {target} HTTP/1.1", f"Host: {address.netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    with (
        socket.create_connection((host, port), _SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) if context else plain as channel,
    ):
        channel.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        return _read(channel.recv)


def _read(receive: Callable[[int], bytes]) -> Answer:
    data = b""
    while part := receive(65536):
        data += part
        if len(data) > _ANSWER_BYTES:
            raise Violation("the answer is too long")
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        raise Violation("no answer")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), []).append(value.strip())
    if "transfer-encoding" in headers:
        body = _dechunked(body)
    elif headers.get("content-length") != [str(len(body))]:
        raise Violation("the length of the answer is not as said")
    return Answer(int(first.split(" ")[1]), headers, body)


def _dechunked(data: bytes) -> bytes:
    whole = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            return whole
        whole, data = whole + data[:length], data[length + 2 :]


# -- encodings


def canonical(value: object) -> bytes:
    """Return JSON of RFC 8785, for texts, arrays and objects with ASCII keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unpadded(text: str) -> bytes:
    """Decode base64url without padding.

    Raises:
        Violation: it has padding, or other characters.
    """
    if not set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"):
        raise Violation("not base64url without padding")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
