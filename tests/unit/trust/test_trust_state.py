"""The state directory, the root key, resources at rest."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.protocol.resourceuri import parse_resource_path
from cloister.testing.tpm import NOW
from cloister.trust.admin import TrustAdmin
from cloister.trust.rowseal import DataKey
from cloister.wire.limits import RESOURCE_BYTES
from trust_world import CANARY, MODEL, World, all_bytes


def test_what_is_secret_is_private(world: World) -> None:
    assert stat.S_IMODE(world.state.stat().st_mode) == 0o700
    public = {"ca.pem", "tls.pem"}
    for path in world.state.iterdir():
        expected = 0o644 if path.name in public else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path.name


def test_a_directory_may_be_named_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with TrustAdmin(Path("some/state")) as admin:
        admin.put_resource(MODEL, b"x")
    monkeypatch.chdir("/")
    with TrustAdmin(tmp_path / "some" / "state") as admin:
        assert admin.get_resource(MODEL) == b"x"


@pytest.mark.parametrize("name", ["root.key", "."])
def test_what_others_can_read_is_refused(world: World, name: str) -> None:
    (world.state / name).chmod(0o750 if name == "." else 0o640)
    with pytest.raises(Refused) as caught:
        TrustAdmin(world.state)
    assert caught.value.code in ("trust.state.permissions", "crypto.keystore.permissions")
    assert "chmod" in caught.value.hint


def test_keys_are_made_once(tmp_path: Path) -> None:
    with TrustAdmin(tmp_path / "s") as first, TrustAdmin(tmp_path / "s") as second:
        assert first.ca_pem() == second.ca_pem()
        assert first.token_verification_keys() == second.token_verification_keys()
        first.put_resource(MODEL, b"x")
        assert second.get_resource(MODEL) == b"x"
    assert {path.name for path in (tmp_path / "s").iterdir()} >= {"root.key", "ca.pem", "keys.seen", "trust.db"}
    assert not {path.name for path in (tmp_path / "s").iterdir()} & {"token.key", "ca.key"}


def test_a_cut_root_key_is_refused(world: World) -> None:
    (world.state / "root.key").write_bytes(b"short")
    with pytest.raises(Refused) as caught:
        TrustAdmin(world.state)
    assert caught.value.code == "crypto.keystore.malformed"


def test_tls_keys_live_as_long_as_their_service(world: World) -> None:
    left = world.state / "tls-999999999.key"
    left.write_bytes(b"of a killed service")
    other = world.state / "tls-1.key"
    other.write_bytes(b"of a living one")
    with world.service.keys.issued_tls(("localhost",), at=NOW) as (certificate, key):
        assert certificate.exists() and key.stat().st_mode & 0o077 == 0
        assert not left.exists() and other.exists()
    assert not certificate.exists() and not key.exists()
    assert not (world.state / "tls-kept.key").exists(), "only a service that starts sealed needs one"


def test_no_plaintext_at_rest(world: World) -> None:
    assert world.admin.get_resource(MODEL) == CANARY
    guest = world.guest().handshake()
    guest.open(guest.resource())
    world.service.close()
    assert CANARY not in all_bytes(world.state)
    (world.state / "planted").write_bytes(b"..." + CANARY)
    assert CANARY in all_bytes(world.state), "the scan finds what is there"


def test_a_row_moved_to_another_path_does_not_open(world: World) -> None:
    other = parse_resource_path("default/model/other")
    world.admin.put_resource(other, b"other")
    alter(
        world,
        "UPDATE resources SET sealed=(SELECT sealed FROM resources WHERE path='default/model/one')"
        " WHERE path='default/model/other'",
    )
    with pytest.raises(Unavailable) as caught:
        world.admin.get_resource(other)
    assert caught.value.code == "trust.store.sealed_row"


def test_a_row_with_another_version_does_not_open(world: World) -> None:
    alter(world, "UPDATE resources SET version=7")
    guest = world.guest().handshake()
    with pytest.raises(Unavailable):
        guest.resource()


def test_another_root_key_opens_nothing(world: World) -> None:
    world.admin.close()
    (world.state / "root.key").write_bytes(bytes(32))
    with pytest.raises(Unavailable) as caught:
        TrustAdmin(world.state)
    assert caught.value.code == "crypto.keystore.unknown_root"


def test_purposes_do_not_mix() -> None:
    key = DataKey("11" * 8, bytes(32))
    sealed = key.seal("resource", "row", b"x")
    for purpose, row in (("session secret", "row"), ("resource", "row2")):
        with pytest.raises(Unavailable):
            key.open(purpose, row, sealed)
    assert key.open("resource", "row", sealed) == b"x"
    assert repr(key) == "DataKey(1111111111111111)"


def test_resources_have_versions_and_a_size(world: World) -> None:
    assert world.admin.put_resource(MODEL, b"new") == 2
    assert world.admin.get_resource(MODEL) == b"new"
    [entry] = world.admin.list_resources()
    assert (entry.path, entry.version, entry.updated_at) == (MODEL, 2, NOW)
    for content in (b"", bytes(RESOURCE_BYTES + 1)):
        with pytest.raises(FormatRefused) as caught:
            world.admin.put_resource(MODEL, content)
        assert caught.value.code == "trust.resource.size"
    world.admin.delete_resource(MODEL)
    for refuse in (world.admin.get_resource, world.admin.delete_resource):
        with pytest.raises(Refused) as missing:
            refuse(MODEL)
        assert missing.value.code == "trust.resource.missing"


def alter(world: World, statement: str) -> None:
    connection = sqlite3.connect(world.state / "trust.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
