"""Key stores against the real things: a SoftHSM2 token and an OpenBao server."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloister.crypto.keystore import KeyStore, open_keystore
from cloister.errors import CloisterError, Unavailable
from cloister.testing.tpm import NOW
from cloister.testing.vault import FakeVault
from cloister.trust.admin import TrustAdmin
from cloister.trust.keys import ServiceKeys
from cloister.trust.statedir import StateDirectory
from cloister.trust.store.database import Store
from conformance.hsm import PIN, Bao, SoftHSM, openbao, softhsm
from keystore_contract import KEY, keep_contract
from trust_world import MODEL

pytestmark = pytest.mark.tool
Opener = Callable[[str], KeyStore]


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHSM]:
    directory = tmp_path_factory.mktemp("hsm")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(directory / "softhsm2.conf")
    yield softhsm(directory)
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    with openbao(tmp_path_factory.mktemp("bao")) as server:
        yield server


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens key stores and closes them: a token asks for a PIN only when no session of the process is logged in."""
    stores: list[KeyStore] = []

    def open_one(uri: str) -> KeyStore:
        stores.append(open_keystore(uri))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def tool(hsm: SoftHSM) -> list[str]:
    return ["pkcs11-tool", "--module", hsm.module, "--login", "--pin", PIN]


def label(hsm: SoftHSM, name: str) -> str:
    return hsm.uri.replace("object=trust-root", f"object={name}")


class TestHSM:
    def test_the_contract(self, hsm: SoftHSM, opened: Opener) -> None:
        keep_contract(lambda: opened(label(hsm, "contract")), forgets=False)

    def test_the_key_never_leaves(self, hsm: SoftHSM, opened: Opener) -> None:
        opened(label(hsm, "stays")).create()
        listed = subprocess.run(
            [*tool(hsm), "--list-objects", "--type", "secrkey"],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout
        mine = listed[listed.index("stays") :].split("Secret Key Object")[0]
        assert "never extractable" in mine and "sensitive" in mine and "AES" in listed

    def test_a_key_that_pkcs11_tool_made(self, hsm: SoftHSM, opened: Opener) -> None:
        subprocess.run(
            [*tool(hsm), "--keygen", "--key-type", "aes:32", "--label", "by-hand", "--id", "01", "--sensitive"],
            check=True,
            capture_output=True,
            timeout=30,
        )
        store = opened(label(hsm, "by-hand"))
        [identity] = store.identities()
        assert store.unwrap("p", store.wrap(identity, "p", KEY)) == KEY

    def test_pulled_it_refuses_in_time_and_put_back_it_goes_on(self, hsm: SoftHSM, opened: Opener) -> None:
        store = opened(label(hsm, "pulled"))
        wrapped = store.wrap(store.create(), "p", KEY)
        hsm.pull()
        try:
            begun = time.monotonic()
            for _ in range(2):
                with pytest.raises(Unavailable) as caught:
                    store.unwrap("p", wrapped)
                assert caught.value.code == "crypto.keystore.unreachable"
            assert time.monotonic() - begun < 3
        finally:
            hsm.put_back()
        assert store.unwrap("p", wrapped) == KEY

    def test_a_wrong_pin_is_tried_once(self, hsm: SoftHSM, opened: Opener) -> None:
        store = opened(label(hsm, "pinned"))
        try:
            hsm.give_pin("00000")
            for _ in range(5):
                with pytest.raises(Unavailable) as caught:
                    store.identities()
                assert caught.value.code == "crypto.keystore.denied"
            assert "not changed" in caught.value.message
        finally:
            hsm.give_pin(PIN)
        assert store.identities() == ()

    @pytest.mark.parametrize(
        "change", ["module-path=/nonexistent.so", "token=other", "object=;", "pin-value=24680", "pin-source=file:/none"]
    )
    def test_an_address_that_leads_nowhere(self, hsm: SoftHSM, opened: Opener, change: str) -> None:
        name, _, value = change.partition("=")
        old = {"module-path": hsm.module, "token": "cloister", "object": "trust-root"}.get(name, f"file:{hsm.pin_file}")
        uri = hsm.uri + f"&{change}" if name == "pin-value" else hsm.uri.replace(f"{name}={old}", f"{name}={value}")
        assert uri != hsm.uri
        with pytest.raises(CloisterError) as caught:
            opened(uri).identities()
        assert caught.value.code in ("crypto.keystore.unreachable", "crypto.keystore.uri")

    def test_a_service_without_its_hsm_refuses_and_goes_on_when_it_is_back(self, hsm: SoftHSM, tmp_path: Path) -> None:
        state = StateDirectory(tmp_path / "state")
        with closing(Store(state.database, state.write_lock)) as store:
            keys = ServiceKeys(state, store, key_store=label(hsm, "served"), clock=lambda: NOW, proved_seconds=0.2)
            sealed = keys.ring.seal("resource", "row", b"x")
            hsm.pull()
            try:
                time.sleep(0.25)
                begun = time.monotonic()
                for use in (lambda: keys.ring.open("resource", "row", sealed), keys.token_issuer, keys.check):
                    with pytest.raises(Unavailable) as caught:
                        use()
                    assert caught.value.code == "crypto.keystore.unreachable"
                assert time.monotonic() - begun < 4
            finally:
                hsm.put_back()
            time.sleep(1.05)  # a failure is remembered for a second
            assert keys.ring.open("resource", "row", sealed) == b"x"
            keys.check()
            assert keys.token_issuer().chain
            keys.close()

    def test_a_directory_moves_into_the_hsm(self, hsm: SoftHSM, tmp_path: Path) -> None:
        with TrustAdmin(tmp_path / "state") as admin:
            admin.put_resource(MODEL, b"x")
            pem = admin.ca_pem()
            admin.keys.move_root(label(hsm, "moved"))
            assert admin.get_resource(MODEL) == b"x"
        assert not (tmp_path / "state/root.key").exists()
        with TrustAdmin(tmp_path / "state") as admin:
            assert (admin.get_resource(MODEL), admin.ca_pem()) == (b"x", pem)
            assert admin.keys.list_keys()[0].place == "pkcs11:token=cloister;object=moved"
            admin.keys.rotate_root()
            assert admin.get_resource(MODEL) == b"x"


class TestOpenBao:
    def test_the_contract(self, bao: Bao) -> None:
        keep_contract(lambda: open_keystore(bao.uri.replace("cloister/root", "cloister/contract")))

    def test_the_fake_answers_as_the_real_one(self, bao: Bao, tmp_path: Path) -> None:
        """Status and shape of each answer that the key store looks at, from both."""

        def shapes(uri: str, give: object) -> list[object]:
            import httpx

            from cloister.crypto.keystore.vault import from_uri

            store = from_uri(uri, seconds=5)
            seen: list[object] = []

            def note(answer: httpx.Response) -> None:
                answer.read()
                seen.append(
                    (answer.request.method, answer.status_code, shape(answer.json() if answer.content else None))
                )

            store._client.event_hooks = {"response": [note]}
            store.identities()
            first = store.create()
            store.create()
            store.settle(first, store.identities())
            assert store._ask("POST", {"options": {"cas": 1}, "data": {}}).status_code == 400
            store._client.request("DELETE", store._route, headers={"X-Vault-Token": read_token(uri)})
            assert store.identities() == ()
            store.create()
            give("nobody")
            with pytest.raises(Unavailable) as caught:
                store.identities()
            assert caught.value.code == "crypto.keystore.denied"
            store.close()
            return seen

        real = shapes(bao.uri.replace("cloister/root", "cloister/shapes"), bao.give_token)
        bao.give_token(bao.token)
        with FakeVault(tmp_path) as fake:
            assert shapes(fake.uri, fake.give_token) == real

    def test_sealed_it_is_unavailable(self, bao: Bao) -> None:
        store = open_keystore(bao.uri)
        store.create()
        bao.call("PUT", "sys/seal", {})
        with pytest.raises(Unavailable) as caught:
            store.check()
        assert caught.value.code == "crypto.keystore.unreachable" and "503" in caught.value.message
        bao.call("PUT", "sys/unseal", {"key": bao.unseal_key})
        until = time.monotonic() + 5
        while True:  # it answers 503 until it became active
            try:
                store.check()
                break
            except Unavailable:
                assert time.monotonic() < until
                time.sleep(0.05)


def read_token(uri: str) -> str:
    return Path(uri.partition("token-file=")[2].partition("&")[0]).read_text().strip()


def shape(value: object) -> object:
    """Names and types; texts and numbers differ between runs, root key names too."""
    if isinstance(value, dict):
        if value and all(len(name) == 16 for name in value):
            return f"{len(value)} root keys"
        return {name: shape(item) for name, item in sorted(value.items())}
    if isinstance(value, list):
        return [type(item).__name__ for item in value]
    return type(value).__name__
