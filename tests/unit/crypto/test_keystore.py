"""Key stores: what each one has to do (one contract, run over all that need no tool), and each one's own refusals."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.crypto.keystore import KeyStore, open_keystore
from cloister.crypto.keystore.file import FileKeyStore, file_uri, seal_file_by_passphrase, seal_file_by_shares
from cloister.crypto.keystore.sealedroot import LEAST_COST, parse_sealed_root, parse_share, seal_by_passphrase
from cloister.errors import CloisterError, FormatRefused, Refused, Unavailable
from cloister.testing.vault import FakeVault
from keystore_contract import KEY, keep_contract
from tampering import flipped

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[FakeVault]:
    with FakeVault(tmp_path) as server:
        yield server


class TestContract:
    def test_a_file(self, tmp_path: Path) -> None:
        place = tmp_path / "root.key"
        keep_contract(lambda: open_keystore(file_uri(place)))
        assert [path.name for path in tmp_path.iterdir()] == ["root.key"]
        assert place.stat().st_mode & 0o777 == 0o600

    def test_a_file_sealed_by_a_passphrase(self, tmp_path: Path) -> None:
        place, source = tmp_path / "root.key", tmp_path / "passphrase"
        source.write_text(PASSPHRASE + "\n")
        source.chmod(0o600)
        first = FileKeyStore(place)
        first.create()
        place.write_bytes(seal_by_passphrase(place.read_bytes(), PASSPHRASE, cost=LEAST_COST))
        keep_contract(lambda: open_keystore(f"{file_uri(place)}?seal=passphrase&passphrase-file={source}"), made=True)
        assert place.read_bytes().startswith(b"{"), "the next root key is sealed, too"

    def test_vault(self, vault: FakeVault) -> None:
        keep_contract(lambda: open_keystore(vault.uri))
        secret = vault.secret()
        assert secret is not None and len(secret) == 1


class TestAddress:
    @pytest.mark.parametrize(
        "uri",
        [
            "",
            "root.key",
            "http://host/secret/root",
            "file://host/root.key",
            "file:///",
            "file:///root.key?pin=1",
            "file:///root.key?seal=hope",
            "file:///root.key?seal=shares&passphrase-file=/p",
            "file:///root.key?seal=shares&seal=shares",
            "file:///root.key#x",
            "file:///root%00.key",
            "vault://host/secret/root",
            "vault://host/secret?token-file=/t",
            "vault:///secret/root?token-file=/t",
            "vault://host/secret/../sys?token-file=/t",
            "vault://user:pass@host/secret/root?token-file=/t",
            "vault://host:99999/secret/root?token-file=/t",
            "file:///" + "a" * 1100,
        ],
    )
    def test_what_is_no_address_is_refused(self, uri: str) -> None:
        with pytest.raises(FormatRefused) as caught:
            open_keystore(uri)
        assert caught.value.code == "crypto.keystore.uri"


class TestFile:
    def test_others_must_not_read_it(self, tmp_path: Path) -> None:
        store = FileKeyStore(tmp_path / "root.key")
        store.create()
        (tmp_path / "root.key").chmod(0o640)
        with pytest.raises(Refused) as caught:
            store.identities()
        assert caught.value.code == "crypto.keystore.permissions"

    @pytest.mark.parametrize("content", [b"", b"short", bytes(33), b"{}", b'{"version":2}'])
    def test_what_is_no_root_key_is_refused(self, tmp_path: Path, content: bytes) -> None:
        place = tmp_path / "root.key"
        place.write_bytes(content)
        place.chmod(0o600)
        with pytest.raises(FormatRefused) as caught:
            FileKeyStore(place)
        assert caught.value.code == "crypto.keystore.malformed"

    def test_a_file_that_vanished_comes_back(self, tmp_path: Path) -> None:
        place = tmp_path / "root.key"
        store = FileKeyStore(place)
        identity = store.create()
        wrapped = store.wrap(identity, "p", KEY)
        place.rename(tmp_path / "away")
        with pytest.raises(CloisterError):
            store.unwrap("p", wrapped)
        (tmp_path / "away").rename(place)
        assert store.unwrap("p", wrapped) == KEY

    def test_of_two_rotations_neither_removes_what_the_other_made(self, tmp_path: Path) -> None:
        first, second = FileKeyStore(tmp_path / "root.key"), FileKeyStore(tmp_path / "root.key")
        old = first.create()
        before_first = first.identities()
        one = first.create()
        before_second = second.identities()
        two = second.create()
        second.settle(two, before_second)
        first.settle(one, before_first)  # late, and overtaken: `one` is gone, and nothing else may go
        assert second.identities() == (two,)
        assert {old, one} & set(first.identities()) == set()


class TestSealedFile:
    def test_shares_open_it_and_one_fewer_does_not(self, tmp_path: Path) -> None:
        place = tmp_path / "root.key"
        plain = FileKeyStore(place)
        identity = plain.create()
        root = place.read_bytes()
        wrapped = plain.wrap(identity, "p", KEY)
        shares = seal_file_by_shares(place, threshold=3, shares=5)
        assert root not in place.read_bytes() and len(shares) == 5
        store = open_keystore(f"{file_uri(place)}?seal=shares")
        assert store.sealed and store.sealable
        assert store.unseal(shares[0]).given == 1
        assert store.unseal(shares[4]).given == 2
        for use in (lambda: store.unwrap("p", wrapped), store.check, lambda: store.create()):
            with pytest.raises(Unavailable) as caught:
                use()
            assert caught.value.code == "crypto.keystore.sealed"
        assert not store.unseal(shares[2]).sealed
        assert store.unwrap("p", wrapped) == KEY
        store.close()
        assert store.sealed, "closing forgets the unseal key"

    def test_a_share_counts_once(self, tmp_path: Path) -> None:
        store, shares = sealed(tmp_path)
        store.unseal(shares[0])
        with pytest.raises(Refused) as caught:
            store.unseal(shares[0])
        assert caught.value.code == "crypto.keystore.share"
        assert store.sealed and store.progress().given == 1

    def test_a_slip_is_found_at_once(self, tmp_path: Path) -> None:
        store, shares = sealed(tmp_path)
        text = shares[0]
        for position in range(len(text)):
            other = "B" if text[position] != "B" else "C"
            with pytest.raises(Refused) as caught:
                store.unseal(text[:position] + other + text[position + 1 :])
            assert caught.value.code == "crypto.keystore.share"
        for wrong in ("", "cloister-share", text[:-1], text + "A", "é" * 300):
            with pytest.raises(Refused):
                store.unseal(wrong)
        assert store.progress().given == 0

    def test_shares_of_another_root_key_are_refused(self, tmp_path: Path) -> None:
        store, _ = sealed(tmp_path / "a")
        _, foreign = sealed(tmp_path / "b")
        with pytest.raises(Refused) as caught:
            store.unseal(foreign[0])
        assert caught.value.code == "crypto.keystore.share"

    def test_a_forged_share_opens_nothing_and_all_begin_again(self, tmp_path: Path) -> None:
        store, shares = sealed(tmp_path)
        store.unseal(shares[0])
        store.unseal(shares[1])
        with pytest.raises(Refused) as caught:
            store.unseal(forged(shares[2]))
        assert caught.value.code == "crypto.keystore.unseal"
        assert store.sealed and store.progress().given == 0
        for share in shares[:3]:
            store.unseal(share)
        assert not store.sealed

    @pytest.mark.long
    def test_a_passphrase(self, tmp_path: Path) -> None:
        place = tmp_path / "root.key"
        seal_file_by_passphrase(place, PASSPHRASE)
        store = open_keystore(file_uri(place))
        for wrong in ("", "wrong", PASSPHRASE + " "):
            with pytest.raises(Refused) as caught:
                store.unseal(wrong)
            assert caught.value.code == "crypto.keystore.unseal"
            assert store.sealed
        assert not store.unseal(PASSPHRASE).sealed
        with pytest.raises(Refused):
            seal_file_by_passphrase(place, "another")

    def test_a_plain_file_where_a_sealed_one_is_expected_is_refused(self, tmp_path: Path) -> None:
        place = tmp_path / "root.key"
        FileKeyStore(place).create()
        for seal in ("shares", "passphrase"):
            with pytest.raises(Refused) as caught:
                open_keystore(f"{file_uri(place)}?seal={seal}")
            assert caught.value.code == "crypto.keystore.malformed"

    def test_the_file_cannot_choose_what_opening_costs(self, tmp_path: Path) -> None:
        document = json.loads(seal_by_passphrase(KEY, "x", cost=LEAST_COST))
        for cost in (2**30, 3, 0, -1, LEAST_COST + 1):
            with pytest.raises(FormatRefused):
                parse_sealed_root(json.dumps({**document, "cost": cost}).encode())

    def test_the_document_is_authenticated(self, tmp_path: Path) -> None:
        store, shares = sealed(tmp_path)
        place = tmp_path / "root.key"
        document = json.loads(place.read_bytes())
        place.write_bytes(json.dumps({**document, "shares": 9}).encode())
        for share in shares[:2]:
            store.unseal(share)
        with pytest.raises(Refused) as caught:
            store.unseal(shares[2])
        assert caught.value.code == "crypto.keystore.unseal"


class TestVault:
    def test_refusals_are_told_apart_and_pass(self, vault: FakeVault, tmp_path: Path) -> None:
        store = open_keystore(vault.uri)
        wrapped = store.wrap(store.create(), "p", KEY)
        vault.sealed = True
        assert code_of(store, wrapped) == "crypto.keystore.unreachable"
        vault.sealed = False
        assert store.unwrap("p", wrapped) == KEY
        vault.give_token("of somebody else")
        assert code_of(store, wrapped) == "crypto.keystore.denied"
        vault.give_token(vault.token)
        assert store.unwrap("p", wrapped) == KEY
        vault.close()
        assert code_of(store, wrapped) == "crypto.keystore.unreachable"
        vault.open()
        assert store.unwrap("p", wrapped) == KEY
        (tmp_path / "vault-token").chmod(0o644)
        assert code_of(store, wrapped) == "crypto.keystore.permissions"

    def test_a_slow_one_is_given_up_in_time(self, vault: FakeVault) -> None:
        store = open_keystore(vault.uri, seconds=0.2)
        wrapped = store.wrap(store.create(), "p", KEY)
        vault.delay = 1.0
        begun = time.monotonic()
        assert code_of(store, wrapped) == "crypto.keystore.unreachable"
        assert time.monotonic() - begun < 0.9
        vault.delay = 0
        assert store.unwrap("p", wrapped) == KEY

    def test_another_server_gets_no_token(self, vault: FakeVault, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        with FakeVault(tmp_path / "other", port=0) as other:
            uri = vault.uri.replace(str(vault.port), str(other.port))
            with pytest.raises(Unavailable) as caught:
                open_keystore(uri).check()
            assert caught.value.code == "crypto.keystore.unreachable"
            assert other.log == []

    def test_two_that_make_a_root_key_at_once_both_keep_theirs(self, vault: FakeVault) -> None:
        made: list[str] = []
        stores = [open_keystore(vault.uri) for _ in range(2)]
        threads = [threading.Thread(target=lambda store=store: made.append(store.create())) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(stores[0].identities()) == set(made) and len(made) == 2

    def test_what_is_no_root_key_is_refused(self, vault: FakeVault) -> None:
        store = open_keystore(vault.uri)
        identity = store.create()
        for data in ({"password": "x"}, {identity: "AAAA"}, {"00" * 8: vault.secret()[identity]}, {identity: 7}):
            vault._secrets["cloister/root"][-1].data = data
            with pytest.raises(CloisterError):
                store.identities()
        vault._secrets["cloister/root"][-1].data = None
        assert store.identities() == ()
        store.create()  # over a deleted version: check-and-set names it


class TestWrapped:
    def test_truncated_or_altered_it_does_not_open(self, tmp_path: Path) -> None:
        store = FileKeyStore(tmp_path / "root.key")
        wrapped = store.wrap(store.create(), "p", KEY)
        for position in range(len(wrapped)):
            with pytest.raises(Refused):
                store.unwrap("p", wrapped[:position])
            with pytest.raises(Refused):
                store.unwrap("p", flipped(wrapped, position))


def sealed(directory: Path) -> tuple[KeyStore, tuple[str, ...]]:
    directory.mkdir(exist_ok=True)
    shares = seal_file_by_shares(directory / "root.key", threshold=3, shares=5)
    return open_keystore(file_uri(directory / "root.key")), shares


def forged(text: str) -> str:
    """A well-formed share of the same set with another value."""
    from cloister.crypto.keystore import sealedroot

    share = parse_share(text)
    return sealedroot._encode_share(share.set, share.threshold, share.x, bytes(32))


def code_of(store: KeyStore, wrapped: bytes) -> str:
    with pytest.raises(CloisterError) as caught:
        store.unwrap("p", wrapped)
    return caught.value.code
