"""Keys of the trust service: taken over from older directories, rotated, altered, rolled back, sealed, unreachable."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection

from cloister.crypto.jwt import key_id, verify_jwt
from cloister.crypto.keystore.file import file_uri, seal_file_by_shares
from cloister.crypto.signer import ECDSAP256Signer
from cloister.crypto.tlsca import CertificateAuthority
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.protocol.resourceuri import parse_resource_path
from cloister.testing.tpm import NOW
from cloister.testing.vault import FakeVault
from cloister.trust.admin import TrustAdmin
from cloister.trust.events import LogEvent
from cloister.trust.keys import KeyAdministration, ServiceKeys
from cloister.trust.keys.reseal import SEALED_COLUMNS, data_keys_in_use
from cloister.trust.keys.ring import RETIRED_KEPT
from cloister.trust.keys.signing import TOKEN_KEPT, TOKEN_LEAD
from cloister.trust.rowseal import LEGACY, ROW_MAGIC, data_key_of
from cloister.trust.statedir import StateDirectory
from cloister.trust.store.database import Store
from trust_world import CANARY, MODEL, Clock, World, all_bytes, furnished


def sealed_rows(state: Path) -> list[bytes]:
    with closing(sqlite3.connect(state / "trust.db")) as connection:
        return [row[0] for row in connection.execute("SELECT sealed FROM resources ORDER BY path")]


def alter(state: Path, *statements: str) -> None:
    with closing(sqlite3.connect(state / "trust.db")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def forget_keys_and_log(state: Path) -> None:
    """Leave rows and files of the state, and nothing of what sealed or logged them."""
    tables = ("data_keys", "key_ring", "signing_keys", "log_entries", "log_nodes", "log_checkpoints")
    alter(state, *map("DELETE FROM {}".format, tables))
    for name in ("keys.seen", "log.highwater"):
        (state / name).unlink()


def a_second_later(*services: ServiceKeys) -> None:
    """As if these had looked at the store, or had failed to, so long ago that they look again."""
    for keys in services:
        keys.ring._looked -= 1.05
        keys.ring._failed -= 1.05
        keys.signing._looked -= 1.05


@contextmanager
def service_keys(state: Path, clock: Callable[[], object] = lambda: NOW, **options: object) -> Iterator[ServiceKeys]:
    directory = StateDirectory(state)
    with closing(Store(directory.database, directory.write_lock)) as store:
        keys = ServiceKeys(directory, store, clock=clock, **options)
        yield keys
        keys.close()


class TestOlderDirectories:
    """A directory of before there were data keys, made here by hand from its description."""

    def make(self, state: Path) -> tuple[bytes, ECDSAP256Signer, CertificateAuthority]:
        with TrustAdmin(state) as admin:
            admin.put_resource(MODEL, CANARY)
        forget_keys_and_log(state)
        root, signer = os.urandom(32), ECDSAP256Signer.generate()
        authority = CertificateAuthority.create("cloister trust service CA", at=NOW)
        files = {"root.key": root, "token.key": signer.private_pem(), "ca.key": authority.key_pem()}
        for name, content in files.items():
            (state / name).write_bytes(content)
            (state / name).chmod(0o600)
        (state / "ca.pem").write_bytes(authority.certificate_pem)
        key = HKDF(SHA256(), 32, None, b"cloister trust resource v1").derive(root)
        nonce = os.urandom(12)
        sealed = nonce + AESGCM(key).encrypt(nonce, CANARY, f"{MODEL}#1".encode())
        with closing(sqlite3.connect(state / "trust.db")) as connection:
            connection.execute("UPDATE resources SET sealed = ?", [sealed])
            connection.commit()
        return root, signer, authority

    def test_everything_is_taken_over(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        root, signer, authority = self.make(state)
        with TrustAdmin(state) as admin:
            assert admin.get_resource(MODEL) == CANARY
            assert admin.ca_pem().encode() == authority.certificate_pem == (state / "ca.pem").read_bytes()
            [published] = admin.token_verification_keys()["keys"]
            assert published["kid"] == key_id(signer.public_key)
            assert data_key_of(sealed_rows(state)[0]) == LEGACY
            admin.put_resource(MODEL, b"new")
            admin.put_resource(parse_resource_path("default/model/two"), b"two")
            assert all(row.startswith(ROW_MAGIC) for row in sealed_rows(state))
        assert not (state / "token.key").exists() and not (state / "ca.key").exists()
        assert (state / "root.key").read_bytes() == root

    def test_a_crash_before_the_files_are_removed_is_repeated(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        self.make(state)
        before = {name: (state / name).read_bytes() for name in ("token.key", "ca.key")}
        with TrustAdmin(state) as admin:
            listed = admin.keys.list_keys()
        for name, content in before.items():
            (state / name).write_bytes(content)
            (state / name).chmod(0o600)
        with TrustAdmin(state) as admin:
            assert admin.keys.list_keys() == listed
        assert not (state / "token.key").exists()

    def test_old_rows_are_sealed_anew_and_the_old_key_goes(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        root, _, _ = self.make(state)
        clock = Clock()
        with TrustAdmin(state, clock=clock) as admin:
            assert admin.keys.reseal() == 1
            assert sealed_rows(state)[0].startswith(ROW_MAGIC)
            assert LEGACY in {key.id for key in admin.keys.list_keys()}, "a write may be under way"
            clock.now += RETIRED_KEPT
            assert admin.keys.reseal() == 0
            assert LEGACY not in {key.id for key in admin.keys.list_keys()}
            admin.keys.rotate_root()
            assert admin.get_resource(MODEL) == CANARY
        assert root not in all_bytes(state)

    def test_a_lost_ca_key_is_no_reason_to_make_a_new_ca(self, tmp_path: Path) -> None:
        self.make(tmp_path / "state")
        (tmp_path / "state/ca.key").unlink()
        with pytest.raises(Unavailable) as caught:
            TrustAdmin(tmp_path / "state")
        assert caught.value.code == "trust.state.io"

    @pytest.mark.parametrize("name", ["token.key", "ca.key"])
    def test_what_others_can_read_is_refused(self, tmp_path: Path, name: str) -> None:
        self.make(tmp_path / "state")
        (tmp_path / "state" / name).chmod(0o644)
        with pytest.raises(Refused) as caught:
            TrustAdmin(tmp_path / "state")
        assert caught.value.code == "trust.state.permissions"


class TestRotation:
    def test_the_root_keys_rotation_touches_no_row(self, world: World) -> None:
        rows, root = sealed_rows(world.state), (world.state / "root.key").read_bytes()
        guest = world.guest().handshake()
        new = world.admin.keys.rotate_root()
        assert sealed_rows(world.state) == rows
        assert (world.state / "root.key").read_bytes() != root
        assert root not in all_bytes(world.state)
        assert [path.name for path in world.state.glob("root.key*")] == ["root.key"]
        assert guest.open(guest.resource()) == CANARY, "the running service goes on"
        world.restart()
        assert guest.open(guest.resource()) == CANARY
        assert world.admin.keys.list_keys()[0].id == new

    def test_the_data_keys_rotation_seals_every_row_anew(self, world: World) -> None:
        guest, waiting = world.guest().handshake(), world.guest()
        assert waiting.auth().status == 200  # its session secret is sealed under the old key
        old = data_key_of(sealed_rows(world.state)[0])
        new = world.admin.keys.rotate_data_key()
        assert {data_key_of(row) for row in sealed_rows(world.state)} == {new} != {old}
        assert guest.open(guest.resource()) == CANARY, "a service that has not looked yet finds the new key"
        assert waiting.send_attestation().status == 200
        states = {key.id: key.state for key in world.admin.keys.list_keys() if key.purpose == "data"}
        assert states == {old: "retired", new: "active"}

    def test_at_no_moment_a_row_cannot_be_read(self, world: World) -> None:
        for number in range(20):
            world.admin.put_resource(parse_resource_path(f"default/model/r{number}"), b"%d" % number)
        failures: list[BaseException] = []
        reads, stop = [0], threading.Event()

        def read() -> None:
            with TrustAdmin(world.state, clock=world.clock) as reader:
                while not stop.is_set():
                    for number in range(20):
                        try:
                            assert (
                                reader.get_resource(parse_resource_path(f"default/model/r{number}")) == b"%d" % number
                            )
                            reads[0] += 1
                        except (CloisterError, AssertionError) as err:
                            failures.append(err)

        thread = threading.Thread(target=read)
        thread.start()
        for _ in range(3):
            world.admin.keys.rotate_data_key()
            world.admin.keys.rotate_root()
        stop.set()
        thread.join()
        assert failures == [] and reads[0] > 20

    def test_two_that_rotate_at_once_both_do(self, world: World) -> None:
        results: list[object] = []
        with TrustAdmin(world.state, clock=world.clock) as other:
            jobs = [
                job
                for admin in (world.admin, other)
                for job in (admin.keys.rotate_root, admin.keys.rotate_data_key) * 3
            ]

            def run(job: Callable[[], str]) -> None:
                try:
                    results.append(job())
                except CloisterError as err:
                    results.append(err)

            threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        done = [result for result in results if isinstance(result, str)]
        refused = {result.code for result in results if isinstance(result, CloisterError)}
        assert len(done) >= 4 and refused <= {"trust.keys.conflict"}, results
        with TrustAdmin(world.state, clock=world.clock) as after:
            assert after.get_resource(MODEL) == CANARY
            active = [key for key in after.keys.list_keys() if key.purpose == "data" and key.state == "active"]
            assert len(active) == 1
            after.keys.rotate_root()
        assert [path.name for path in world.state.glob("root.key*")] == ["root.key"], "what losers left goes next time"

    def test_a_key_that_a_row_names_is_never_removed(self, world: World) -> None:
        old = data_key_of(sealed_rows(world.state)[0])
        world.service.keys.ring.rotate_data_key()
        world.clock.now += 10 * RETIRED_KEPT
        assert world.service.keys.ring.drop_retired(data_keys_in_use) == ()
        world.admin.keys.reseal()
        assert old not in {key.id for key in world.admin.keys.list_keys()}
        assert world.admin.get_resource(MODEL) == CANARY


class TestAltered:
    """What somebody who can write the database, and nothing else, can do."""

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE data_keys SET state = 'active' WHERE state = 'retired'",
            "UPDATE data_keys SET state = CASE state WHEN 'active' THEN 'retired' ELSE 'active' END",
            "DELETE FROM data_keys WHERE state = 'retired'",
            "UPDATE data_keys SET retired_at = 0 WHERE state = 'retired'",
            "UPDATE data_keys SET wrapped = (SELECT wrapped FROM data_keys WHERE state = 'retired')",
            "UPDATE key_ring SET generation = generation + 1",
            "UPDATE key_ring SET root = '0000000000000000'",
            "UPDATE key_ring SET mac = zeroblob(32)",
            "DELETE FROM data_keys",
            "DELETE FROM key_ring",
        ],
    )
    def test_rows_of_the_ring(self, world: World, statement: str) -> None:
        world.admin.keys.rotate_data_key()
        world.service.close()
        world.admin.close()
        alter(world.state, "CREATE TABLE kept AS SELECT * FROM data_keys", statement)
        for _ in range(2):
            with pytest.raises(Unavailable) as caught, TrustAdmin(world.state):
                pass
            assert caught.value.code in ("trust.keys.ring", "crypto.keystore.not_authentic")
            (world.state / "keys.seen").unlink(missing_ok=True)  # not by its memory alone
        left = "SELECT count(*) FROM data_keys WHERE wrapped NOT IN (SELECT wrapped FROM kept)"
        with closing(sqlite3.connect(world.state / "trust.db")) as connection:
            assert connection.execute(left).fetchone() == (0,), "nothing was made over what is there"

    def test_a_ring_of_an_earlier_time(self, world: World, tmp_path: Path) -> None:
        world.service.close()
        with TrustAdmin(world.state, clock=world.clock) as running:
            with closing(sqlite3.connect(world.state / "trust.db")) as connection:
                connection.execute("CREATE TABLE old_keys AS SELECT * FROM data_keys")
                connection.execute("CREATE TABLE old_ring AS SELECT * FROM key_ring")
                connection.commit()
            world.admin.keys.rotate_data_key()
            assert running.get_resource(MODEL) == CANARY
            alter(
                world.state,
                "DELETE FROM data_keys",
                "INSERT INTO data_keys SELECT * FROM old_keys",
                "DELETE FROM key_ring",
                "INSERT INTO key_ring SELECT * FROM old_ring",
            )
            a_second_later(running._keys)
            for use in (lambda: running.get_resource(MODEL), lambda: TrustAdmin(world.state)):
                with pytest.raises(Unavailable) as caught:
                    use()
                assert caught.value.code == "trust.keys.rolled_back"
        (world.state / "keys.seen").unlink()  # what an owner does who restored a backup
        with pytest.raises(Unavailable) as caught:
            TrustAdmin(world.state)
        assert caught.value.code == "trust.keys.unknown_data_key", "here not all of a backup was restored"

    def test_rows_of_two_purposes_and_tenants_do_not_swap(self, world: World) -> None:
        two = parse_resource_path("default/model/two")
        world.admin.put_resource(two, b"two")
        alter(
            world.state,
            "UPDATE resources SET sealed=(SELECT sealed FROM resources WHERE path='default/model/one')"
            " WHERE path='default/model/two'",
        )
        with pytest.raises(Unavailable) as caught:
            world.admin.get_resource(two)
        assert caught.value.code == "trust.store.sealed_row"
        with pytest.raises(Unavailable):
            world.admin.keys.rotate_data_key()  # and sealing anew does not launder it
        assert world.admin.get_resource(MODEL) == CANARY

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE signing_keys SET not_after = 0 WHERE purpose = 'token'",
            "UPDATE signing_keys SET not_before = 0 WHERE purpose = 'token'",
            "UPDATE signing_keys SET kid = 'other' WHERE purpose = 'token'",
            "UPDATE signing_keys SET purpose = 'admin' WHERE purpose = 'token'",
            "UPDATE signing_keys SET sealed = (SELECT sealed FROM signing_keys WHERE purpose = 'ca')",
            "UPDATE signing_keys SET sealed = randomblob(400) WHERE purpose = 'ca'",
            "INSERT INTO signing_keys SELECT purpose, 'mine', sealed, 0, 0, NULL FROM signing_keys WHERE kid LIKE '_%'",
        ],
    )
    def test_signing_keys(self, world: World, statement: str) -> None:
        """Above all: nobody makes a key that tokens are accepted by."""
        alter(world.state, statement, "UPDATE counters SET value = value + 1 WHERE name = 'configuration'")
        a_second_later(world.admin._keys, world.service.keys)
        for use in (
            world.admin.token_verification_keys,
            world.service.keys.token_issuer,
            lambda: TrustAdmin(world.state),
        ):
            with pytest.raises(Unavailable) as caught:
                use()
            assert caught.value.code in ("trust.store.sealed_row", "trust.keys.unknown_data_key")

    def test_another_database_under_the_same_root_key(self, world: World, tmp_path: Path) -> None:
        """A data key wrapped for another database opens, but is not the key of these rows."""
        shutil.copytree(world.state, tmp_path / "other")
        alter(tmp_path / "other", "DELETE FROM data_keys", "DELETE FROM key_ring", "DELETE FROM signing_keys")
        (tmp_path / "other/keys.seen").unlink()
        with pytest.raises(Unavailable, match=r"trust\.releaselog\.damaged"):
            TrustAdmin(tmp_path / "other")
        alter(tmp_path / "other", "DELETE FROM log_checkpoints", "DELETE FROM log_entries", "DELETE FROM log_nodes")
        with TrustAdmin(tmp_path / "other") as admin, pytest.raises(Unavailable):
            admin.get_resource(MODEL)


class TestTokenKeys:
    def keys(self, world: World) -> KeyAdministration:
        return KeyAdministration(world.service.store, world.service.keys)

    def test_published_before_it_signs_and_accepted_after(self, world: World) -> None:
        early = world.guest().handshake()
        [old] = world.service.keys.signing.jwks()["keys"]
        new = self.keys(world).rotate_token_key()
        published = world.service.keys.signing.jwks()["keys"]
        assert [key["kid"] for key in published] == [old["kid"], new]
        assert all(key["use"] == "sig" and key["alg"] == "ES256" and key["kty"] == "EC" for key in published)
        world.clock.now += TOKEN_LEAD - timedelta(seconds=10)
        between = world.guest().handshake()
        assert kid_of(between.token) == old["kid"]
        assert {key.id: key.state for key in self.keys(world).list_keys() if key.purpose == "token"} == {
            old["kid"]: "active",
            new: "next",
        }
        world.clock.now += timedelta(seconds=10)
        late = world.guest().handshake()
        assert kid_of(late.token) == new
        for guest in (between, late):
            assert guest.open(guest.resource()) == CANARY
        world.clock.now += TOKEN_KEPT
        assert [key["kid"] for key in world.service.keys.signing.jwks()["keys"]] == [new]
        assert early.resource().code == "crypto.jwt.unknown_key"
        assert {key.state for key in self.keys(world).list_keys() if key.id == old["kid"]} == {"retired"}

    def test_other_replicas_follow(self, world: World) -> None:
        new = world.admin.keys.rotate_token_key()
        a_second_later(world.service.keys)
        assert new in world.service.keys.signing.token_keys()
        world.clock.now += TOKEN_LEAD
        assert kid_of(world.guest().handshake().token) == new

    def test_a_token_of_a_key_not_seen_yet_is_accepted(self, world: World) -> None:
        """The replica that gets it looks again instead of refusing."""
        assert len(world.service.keys.signing.token_keys()) == 1
        time.sleep(0.25)
        new = world.admin.keys.rotate_token_key()
        assert new in world.service.keys.signing.token_keys()

    def test_a_leaked_key_counts_no_more(self, world: World) -> None:
        guest = world.guest().handshake()
        self.keys(world).rotate_token_key(revoke=True)
        assert guest.resource().code == "crypto.jwt.unknown_key"
        again = world.guest().handshake()
        assert again.open(again.resource()) == CANARY

    def test_one_rotation_at_a_time(self, world: World) -> None:
        self.keys(world).rotate_token_key()
        with pytest.raises(Refused) as caught:
            world.admin.keys.rotate_token_key()
        assert caught.value.code == "trust.keys.pending"
        self.keys(world).rotate_token_key(revoke=True)
        world.clock.now += timedelta(hours=1)
        self.keys(world).rotate_token_key()

    def test_the_chain_is_that_of_the_key(self, world: World) -> None:
        self.keys(world).rotate_token_key(revoke=True)
        from cryptography import x509

        issuer = world.service.keys.token_issuer()
        leaf, root = (x509.load_der_x509_certificate(der) for der in issuer.chain)
        leaf.verify_directly_issued_by(root)
        assert ECDSAP256Signer.from_pem(issuer.signer.private_pem()).public_key.spki[-65:] in issuer.chain[0]
        guest = world.guest().handshake()
        assert verify_jwt(guest.token, world.service.keys.signing.token_keys(), at=world.clock.now)

    def test_a_log_key_is_ed25519_and_stays(self, world: World) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = world.service.keys.signing.signing_key("log")
        assert isinstance(key.private, Ed25519PrivateKey)
        world.admin.keys.rotate_data_key()
        world.admin.keys.rotate_root()
        with service_keys(world.state, world.clock) as other:
            again = other.signing.signing_key("log")
            assert again.kid == key.kid
            key.private.public_key().verify(again.private.sign(b"x"), b"x")

    def test_keys_are_not_printed(self, world: World) -> None:
        key = world.service.keys.signing.signing_key("token")
        assert repr(key) == f"SigningKey(token, {key.kid})"
        assert repr(world.service.keys.ring) == "KeyRing()"
        assert " at 0x" not in repr(world.admin.keys.list_keys())  # a key id may hold "0x"


class TestSealed:
    def sealed_world(self, world: World) -> tuple[str, ...]:
        world.service.close()
        world.admin.close()
        return seal_file_by_shares(world.state / "root.key", threshold=3, shares=5)

    def test_nothing_is_served_until_enough_shares(self, world: World) -> None:
        guest = world.guest().handshake()
        shares = self.sealed_world(world)
        world.restart()
        service = world.service
        for number, share in enumerate(shares[:2], 1):
            assert service.keys.sealed
            for route in (guest.auth, guest.send_attestation, guest.resource):
                with pytest.raises(Unavailable) as caught:
                    route()
                assert caught.value.code == "trust.keys.sealed"
            for use in (service.check, service.keys.token_issuer, service.keys.signing.jwks, service.keys.authority):
                with pytest.raises(Unavailable) as caught:
                    use()
                assert caught.value.code == "trust.keys.sealed"
            progress = service.keys.unseal(share)
            assert (progress.sealed, progress.given, progress.needed) == (True, number, 3)
        with pytest.raises(Refused):
            service.keys.unseal(shares[1])
        assert not service.keys.unseal(shares[4]).sealed
        service.check()
        assert guest.open(guest.resource()) == CANARY
        guest.handshake()

    def test_the_next_root_key_is_sealed_by_the_same_shares(self, world: World) -> None:
        shares = self.sealed_world(world)
        with service_keys(world.state, world.clock) as keys:
            for share in shares[2:]:
                keys.unseal(share)
            keys.ring.rotate_root()
        with service_keys(world.state, world.clock) as keys:
            assert keys.sealed
            for share in shares[:3]:
                keys.unseal(share)
            keys.check()

    def test_a_sealed_service_answers_with_a_certificate_of_before(self, world: World) -> None:
        shares = self.sealed_world(world)
        with service_keys(world.state, world.clock) as keys:
            with pytest.raises(Unavailable) as caught, keys.issued_tls(("localhost",), at=NOW):
                pass
            assert caught.value.code == "trust.keys.sealed"
            for share in shares[:3]:
                keys.unseal(share)
            with keys.issued_tls(("localhost",), at=NOW) as (certificate, _):
                issued = certificate.read_bytes()
        with service_keys(world.state, world.clock) as keys, keys.issued_tls(("other",), at=NOW) as (certificate, key):
            assert keys.sealed and certificate.read_bytes() == issued
            assert key.stat().st_mode & 0o077 == 0
            ca = (world.state / "ca.pem").read_bytes()
            assert issued.endswith(ca)


class TestVaultAway:
    def test_the_service_goes_on_for_a_while_then_refuses_then_recovers(self, tmp_path: Path) -> None:
        with (
            FakeVault(tmp_path) as vault,
            service_keys(tmp_path / "state", key_store=vault.uri, proved_seconds=2.0) as keys,
        ):
            sealed = keys.ring.seal("resource", "row", b"x")
            for trouble, code in (
                (lambda: setattr(vault, "sealed", True), "crypto.keystore.unreachable"),
                (lambda: vault.give_token("expired"), "crypto.keystore.denied"),
            ):
                keys.check()
                keys.ring._proved -= 2.5  # as if the last proof were that old; readiness looks every 5 s
                trouble()
                begun = time.monotonic()
                for _ in range(3):
                    with pytest.raises(Unavailable) as caught:
                        keys.ring.open("resource", "row", sealed)
                    assert caught.value.code == code
                assert time.monotonic() - begun < 1
                vault.sealed = False
                vault.give_token(vault.token)
                a_second_later(keys)
                assert keys.ring.open("resource", "row", sealed) == b"x"

    def test_readiness_is_false_before_requests_fail(self, tmp_path: Path) -> None:
        with FakeVault(tmp_path) as vault, service_keys(tmp_path / "state", key_store=vault.uri) as keys:
            sealed = keys.ring.seal("resource", "row", b"x")
            vault.close()
            keys.ring._proved -= 10
            with pytest.raises(Unavailable):
                keys.check()
            assert keys.ring.open("resource", "row", sealed) == b"x"
            vault.open()
            a_second_later(keys)
            keys.check()

    @pytest.mark.long
    def test_a_slow_one_holds_requests_no_longer_than_its_time(self, tmp_path: Path) -> None:
        with (
            FakeVault(tmp_path) as vault,
            service_keys(tmp_path / "state", key_store=vault.uri, proved_seconds=0.1) as keys,
        ):
            vault.delay = 10
            time.sleep(0.15)
            begun = time.monotonic()
            errors: list[str] = []

            def use() -> None:
                try:
                    keys.ring.seal("resource", "row", b"x")
                except Unavailable as err:
                    errors.append(err.code)

            threads = [threading.Thread(target=use) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert errors == ["crypto.keystore.unreachable"] * 8
            assert time.monotonic() - begun < 4.5, "all waited for one attempt, not each for its own"

    def test_two_replicas_share_one_root_key(self, tmp_path: Path) -> None:
        """Two state directories that come to one database; here, the second finds what the first made."""
        with FakeVault(tmp_path) as vault, service_keys(tmp_path / "one", key_store=vault.uri) as first:
            directory = StateDirectory(tmp_path / "two")
            shared = StateDirectory(tmp_path / "one")
            with closing(Store(shared.database, shared.write_lock)) as store:
                second = ServiceKeys(directory, store, key_store=vault.uri, clock=lambda: NOW)
                assert second.ring.open("p", "r", first.ring.seal("p", "r", b"x")) == b"x"
                assert second.authority().certificate_pem == first.authority().certificate_pem
                second.ring.rotate_root()
                second.ring.rotate_data_key()
                a_second_later(first)
                assert first.ring.open("p", "r", second.ring.seal("p", "r", b"y")) == b"y"
                assert first.ring.root == second.ring.root
            assert vault.secret() is not None and len(vault.secret() or {}) == 1
            assert not (tmp_path / "two/root.key").exists()


class Heard:
    """Listens for events; refuses all of them when told to."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self.refusing = False

    def append(self, connection: Connection, event: LogEvent) -> object:
        assert connection.in_transaction()
        if self.refusing:
            raise Unavailable("trust.store.failed", "the log must not be written now")
        self.events.append(event)
        return None


class TestEvents:
    def test_every_change_of_a_key_is_told(self, tmp_path: Path) -> None:
        heard, clock = Heard(), Clock()
        with service_keys(tmp_path / "state", clock, events=heard) as keys:
            ring = keys.ring
            ring.rotate_root()
            ring.rotate_data_key()
            keys.signing.rotate_token_key()
            keys.signing.rotate_token_key(revoke=True)
            told = [(event.kind, event.fields["action"]) for event in heard.events]
            assert told == [
                ("key", action)
                for action in ("begin", "create", "create", "rotate_root", "rotate_data_key", "rotate", "revoke")
            ]
            assert heard.events[4].fields["data_key"] == ring.current().active.identity
            assert heard.events[4].fields["generation"] == "3"

    def test_a_change_that_cannot_be_told_does_not_happen(self, tmp_path: Path) -> None:
        heard = Heard()
        with service_keys(tmp_path / "state", events=heard) as keys:
            before = (keys.ring.root, keys.ring.entries(), keys.signing.entries())
            heard.refusing = True
            for change in (keys.ring.rotate_root, keys.ring.rotate_data_key, keys.signing.rotate_token_key):
                with pytest.raises(Unavailable):
                    change()
            assert (keys.ring.root, keys.ring.entries(), keys.signing.entries()) == before
            heard.refusing = False
            keys.ring.rotate_root()
            keys.check()


class TestAddressOfTheKeyStore:
    def test_it_is_remembered(self, tmp_path: Path) -> None:
        other = tmp_path / "elsewhere.key"
        with TrustAdmin(tmp_path / "state", key_store=file_uri(other)) as admin:
            admin.put_resource(MODEL, b"x")
        assert not (tmp_path / "state/root.key").exists()
        with TrustAdmin(tmp_path / "state") as admin:
            assert admin.get_resource(MODEL) == b"x"

    def test_another_one_is_refused(self, tmp_path: Path) -> None:
        with TrustAdmin(tmp_path / "state", key_store=file_uri(tmp_path / "a.key")) as admin:
            admin.put_resource(MODEL, b"x")
        with pytest.raises(CloisterError) as caught:
            TrustAdmin(tmp_path / "state", key_store=file_uri(tmp_path / "b.key"))
        assert caught.value.code == "crypto.keystore.unknown_root"


def kid_of(token: str) -> str:
    import base64

    head = token.partition(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])


def test_the_template_of_these_tests_has_no_keys_in_files() -> None:
    state, _, _ = furnished()
    assert not {path.name for path in state.iterdir()} & {"token.key", "ca.key"}


def test_every_module_that_seals_rows_says_where_they_are(repository: Path) -> None:
    """A column that sealing anew does not know would keep rows under a data key that is then removed."""
    package = repository / "src/cloister/trust"
    known = {column.table.name for column in SEALED_COLUMNS}
    for module in sorted(package.rglob("*.py")):
        text = module.read_text()
        if "keys" in module.relative_to(package).parts or module.name == "rowseal.py":
            continue
        if re.search(r"(root_key|sealer|ring)\.seal\(", text):
            named = re.findall(r"SealedColumn\([^)]*?table=(\w+)", text, re.DOTALL)
            assert named and set(named) <= known, f"{module.name}: declare a SealedColumn, and add it to SEALED_COLUMNS"
