"""A trust service that releases a key and hides it: guests refuse a key whose release is not in the log they pin.

The broker is the real one, and what it sends would open. What is hostile is the log: who runs the service has its key
and signs whatever helps. Witnesses are honest. Each lie stands beside the honest receipt, with which the guest gets
the key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest

from adversary.expect import refusal_of, require_fix
from cloister.client.channel import Response
from cloister.client.keybroker import KeyBrokerClient
from cloister.errors import Refused
from cloister.protocol.initdata import BrokerAddress, InitData, ReleaseLogPins
from cloister.protocol.resourceuri import parse_resource_path
from cloister.tlog.receipt import Receipt, encode_receipt, parse_receipt
from cloister.trust.keybroker import Credentials
from tlog_world import World as LogWorld
from tlog_world import cosigned
from trust_world import CANARY, MODEL, World, booted_tpm, init_data, make_world, quick_directory, rule

OTHER = parse_resource_path("default/model/other")
Lie = Callable[[Receipt], str]


@pytest.fixture
def trust() -> Iterator[World]:
    with quick_directory() as directory:
        made = make_world(directory)
        made.admin.put_resource(OTHER, CANARY)
        yield made
        made.close()


@pytest.fixture
def log() -> LogWorld:
    """The log that guests pin, with three witnesses of which two must have cosigned."""
    return LogWorld()


class Service:
    """The real broker, whose receipts are replaced by those of the log, or of a lie about it."""

    def __init__(self, trust: World, log: LogWorld) -> None:
        self.trust = trust
        self.log = log
        self.lie: Lie | None = None
        self.receipts: list[Receipt] = []

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        headers = headers or {}
        broker, route = self.trust.service.broker, path.removeprefix("/kbs/v0/")
        credentials = Credentials(
            cookie=headers.get("Cookie", "").removeprefix("kbs-session-id="),
            bearer=headers.get("Authorization", "").removeprefix("Bearer "),
        )
        if route == "auth":
            answer = broker.auth(body or b"")
        elif route == "attest":
            answer = broker.attest(body or b"", credentials)
        else:
            wanted = route.removeprefix("resource/")
            answer = broker.resource(wanted, credentials, deadline=time.monotonic() + 5)
        given = {name.decode(): value.decode() for name, value in answer.headers}
        if answer.cookie:
            given["set-cookie"] = f"kbs-session-id={answer.cookie}; Path=/kbs/v0"
        if "cloister-receipt" in given:
            given["cloister-receipt"] = self.receipt(parse_receipt(given["cloister-receipt"]))
        return Response(status=answer.status, headers=given, body=answer.body)

    def receipt(self, true: Receipt) -> str:
        self.receipts.append(true)
        if self.lie is not None:
            return self.lie(true)
        return encode_receipt(self.log.receipt(true.fields, self.log.release(true.fields)))

    def close(self) -> None:
        pass


@pytest.fixture
def service(trust: World, log: LogWorld) -> Service:
    return Service(trust, log)


def guest_of(service: Service, data: InitData | None = None, **pins: Any) -> KeyBrokerClient:
    data = data or service.trust.data
    log = service.log
    values = {
        "key": str(log.log.signer.verifier),
        "witnesses": tuple(str(item.signer.verifier) for item in log.witnesses),
        "cosignatures": 2,
    }
    broker = BrokerAddress(url="https://x:1", ca_pem="unused", release_log=ReleaseLogPins(**{**values, **pins}))
    tpm = booted_tpm(service.trust.ca, data, launch=b'{"profile":"test"}')
    return KeyBrokerClient(broker, tpm, data.text.decode(), "tpm", channel=service)


def refuses(service: Service, lie: Lie, code: str, guest: KeyBrokerClient | None = None) -> None:
    """The guest refuses what the lie makes of the receipt, and takes the honest one before and after."""
    guest = guest or guest_of(service)
    assert guest.get_resource(MODEL) == CANARY
    service.lie = lie
    refusal_of(code, guest.get_resource, MODEL)
    service.lie = None
    assert guest.get_resource(MODEL) == CANARY


def honest(service: Service, fields: Mapping[str, str], **changes: Any) -> str:
    """A true receipt of an entry that the log made for the lie."""
    return encode_receipt(service.log.receipt(fields, service.log.release(fields, **changes), **changes))


def test_a_key_without_a_receipt_is_refused(service: Service) -> None:
    refuses(service, lambda _: "", "client.receipt.missing")


@pytest.mark.parametrize("text", ["!", "e30", "AAAA"])
def test_what_is_no_receipt_is_refused(service: Service, text: str) -> None:
    service.lie = lambda _: text
    with pytest.raises(Refused) as caught:
        guest_of(service).get_resource(MODEL)
    require_fix(caught.value.code)


def test_the_receipt_of_another_resource_is_refused(service: Service) -> None:
    refuses(service, lambda true: honest(service, {**true.fields, "resource": str(OTHER)}), "client.receipt.other")


def test_the_receipt_of_another_guest_is_refused(service: Service) -> None:
    other = guest_of(service)
    assert other.get_resource(MODEL) == CANARY
    theirs = service.receipts[-1].fields
    refuses(service, lambda _: honest(service, theirs), "client.receipt.other")


def test_the_receipt_of_another_pod_is_refused(service: Service) -> None:
    digest = init_data(other="pod").digest_text
    refuses(service, lambda true: honest(service, {**true.fields, "init_data": digest}), "client.receipt.other")


@pytest.mark.parametrize("field", ["resource", "guest_key", "init_data"])
def test_an_entry_that_leaves_out_what_it_is_about_is_refused(service: Service, field: str) -> None:
    def lie(true: Receipt) -> str:
        return honest(service, {name: value for name, value in true.fields.items() if name != field})

    refuses(service, lie, "client.receipt.other")


def test_a_release_that_is_logged_as_a_denial_is_refused(service: Service) -> None:
    refuses(service, lambda true: honest(service, true.fields, kind="denial"), "client.receipt.other")


def test_a_receipt_that_was_used_before_is_refused(service: Service) -> None:
    used: list[str] = []

    def keep(true: Receipt) -> str:
        used.append(honest(service, true.fields))
        return used[-1]

    guest = guest_of(service)
    service.lie = keep
    assert guest.get_resource(MODEL) == CANARY
    refuses(service, lambda _: used[0], "client.receipt.replayed", guest)


def test_the_receipt_of_another_log_is_refused(service: Service) -> None:
    other = LogWorld()
    other.log.signer = type(other.log.signer)(service.log.log.signer.verifier.name, bytes(32))

    def lie(true: Receipt) -> str:
        index = other.release(true.fields)
        return encode_receipt(other.receipt(true.fields, index, note=other.log.checkpoint()))

    refuses(service, lie, "tlog.note.signature")


def test_an_edited_entry_is_refused(service: Service) -> None:
    """The log holds something else than the receipt opens."""

    def lie(true: Receipt) -> str:
        receipt = service.log.receipt({**true.fields, "resource": "x/y/z"}, service.log.release({"resource": "x/y/z"}))
        return encode_receipt(msgspec.structs.replace(receipt, fields=true.fields))

    refuses(service, lie, "tlog.proof.inclusion")


def fork(service: Service, size: int) -> LogWorld:
    """Another history under the same key, from that size on."""
    other = LogWorld()
    other.log.entries.clear()
    other.log.nodes.clear()
    other.log.tree = type(other.log.tree)()
    for entry in service.log.log.entries[:size]:
        other.log.add(entry)
    return other


def receipt_of(shown: LogWorld, true: Receipt) -> Receipt:
    """The receipt of the release in another history, which no witness cosigned."""
    salt = bytes(32)
    index = shown.release(true.fields, salt=salt)
    return shown.receipt(true.fields, index, salt=salt, note=shown.log.checkpoint())


def test_a_forked_log_is_refused(service: Service) -> None:
    """The release is in a history that only this guest is shown; witnesses have cosigned the other one."""

    def lie(true: Receipt) -> str:
        shown = fork(service, 5)
        shown.log.fill(3)
        receipt = receipt_of(shown, true)
        for witness in service.log.witnesses:
            with pytest.raises(Refused, match=r"tlog\.(proof|witness)"):
                witness.cosign(shown.log)
        return encode_receipt(receipt)

    refuses(service, lie, "tlog.receipt.cosignatures")


def test_a_forked_log_under_the_cosignatures_of_the_other_branch_is_refused(service: Service) -> None:
    def lie(true: Receipt) -> str:
        stolen = [witness.cosign(service.log.log) for witness in service.log.witnesses]
        shown = fork(service, 5)
        receipt = receipt_of(shown, true)
        lines = "".join(note.signatures[-1].line() for note in stolen)
        return encode_receipt(msgspec.structs.replace(receipt, checkpoint=receipt.checkpoint + lines))

    refuses(service, lie, "tlog.receipt.cosignatures")


def test_a_truncated_log_is_refused(service: Service) -> None:
    """The entry was written, cosigned, and cut off again: the checkpoint is the one from before."""

    def lie(true: Receipt) -> str:
        before = service.log.log.checkpoint()
        before = cosigned(before, [witness.cosign(service.log.log) for witness in service.log.witnesses])
        receipt = service.log.receipt(true.fields, service.log.release(true.fields), note=None)
        return encode_receipt(msgspec.structs.replace(receipt, checkpoint=before.encode()))

    refuses(service, lie, "tlog.proof.inclusion")


def test_a_rolled_back_log_is_refused(service: Service) -> None:
    """An older state of the log goes on as if nothing had been: no witness cosigns it."""

    def lie(true: Receipt) -> str:
        shown = fork(service, len(service.log.log.entries) - 1)
        receipt = receipt_of(shown, true)
        for witness in service.log.witnesses:
            with pytest.raises(Refused, match=r"tlog\.(proof|witness)"):
                witness.cosign(shown.log)
        return encode_receipt(receipt)

    refuses(service, lie, "tlog.receipt.cosignatures")


def test_without_witnesses_a_guest_still_notices_a_log_that_became_smaller(service: Service) -> None:
    """What a single guest can see by itself: the log is never smaller than it was within its own life."""

    def lie(true: Receipt) -> str:
        shown = fork(service, 2)
        return encode_receipt(receipt_of(shown, true))

    refuses(service, lie, "client.receipt.replayed", guest_of(service, witnesses=(), cosignatures=0))


def test_two_names_of_one_witness_are_no_two_witnesses(service: Service) -> None:
    seed = bytes([10]) * 32
    signer = type(service.log.witnesses[0].signer)
    names = tuple(str(signer(name, seed).verifier) for name in ("a", "b"))
    refusal_of("tlog.receipt.pins", guest_of(service, witnesses=names).get_resource, MODEL)


def test_the_host_cannot_take_the_log_out_of_init_data(service: Service) -> None:
    """Other init data have another digest, and a pod with them gets nothing."""
    without = init_data(**{"aa.toml": "[release_log]\ninsecure_no_release_log = true\n"})
    refusal_of("trust.release.init_data", guest_of(service, without).get_resource, MODEL)
    service.trust.admin.add_release_rule(rule(service.trust.data))
    assert guest_of(service).get_resource(MODEL) == CANARY
