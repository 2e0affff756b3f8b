"""Approvals whose process died are withdrawn, those of the living and the kept are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.abandoned import ApprovalClaim, withdraw_abandoned
from cloister.sdk.home import Home, home_from_environment, separate_home
from cloister.sdk.owner import Owner

SHARED = ResourcePath("default", "image-kek", "app")
OWN = ResourcePath("default", "stream-key", "run-1")
INIT_DATA = "sha256:" + "5" * 64
OTHER = "sha256:" + "6" * 64


@pytest.fixture
def owner() -> Owner:
    made = Owner(home_from_environment())
    with made.admin() as admin:
        for path in (SHARED, OWN):
            admin.put_resource(path, b"k" * 32)
        admin.approve(INIT_DATA, (SHARED, OWN))
        admin.approve(OTHER, (SHARED,))
    return made


def state(owner: Owner) -> tuple[set[str], set[str]]:
    """The approved init data, and what is stored."""
    with owner.admin() as admin:
        approved = {digest for rule in admin.release_rules().rules.values() for digest in rule.init_data}
        return approved, {str(entry.path) for entry in admin.list_resources()}


def claim_and_die(root: Path) -> None:
    """Claim in a process that ends without a word."""
    pid = os.fork()
    if pid == 0:
        ApprovalClaim(root, INIT_DATA, (OWN,))
        os._exit(0)
    os.waitpid(pid, 0)


def test_a_dead_process_approved_nothing(owner: Owner) -> None:
    claim_and_die(owner.home.root)
    assert withdraw_abandoned(owner, owner.home.root) == 1
    assert state(owner) == ({OTHER}, {str(SHARED)})
    assert withdraw_abandoned(owner, owner.home.root) == 0


def test_a_living_process_keeps_its_approval(owner: Owner) -> None:
    claim = ApprovalClaim(owner.home.root, INIT_DATA, (OWN,))
    assert withdraw_abandoned(owner, owner.home.root) == 0
    assert state(owner)[0] == {INIT_DATA, OTHER}
    claim.release()
    claim.release()


def test_a_released_claim_leaves_the_approval_in_force(owner: Owner) -> None:
    ApprovalClaim(owner.home.root, INIT_DATA, (OWN,)).release()
    assert withdraw_abandoned(owner, owner.home.root) == 0
    assert state(owner) == ({INIT_DATA, OTHER}, {str(SHARED), str(OWN)})


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"init_data": "x", "own": [], "more": 1}', b'{"init_data": 5, "own": []}']
)
def test_a_file_that_is_none_withdraws_nothing(owner: Owner, content: bytes) -> None:
    folder = owner.home.root / "approvals"
    folder.mkdir(parents=True)
    (folder / "x.json").write_bytes(content)
    assert withdraw_abandoned(owner, owner.home.root) == 0
    assert state(owner)[0] == {INIT_DATA, OTHER}


def test_a_claim_holds_no_secret_and_is_private(owner: Owner) -> None:
    claim = ApprovalClaim(owner.home.root, INIT_DATA, (OWN,))
    (path,) = (owner.home.root / "approvals").iterdir()
    assert path.stat().st_mode & 0o077 == 0 and b"k" * 8 not in path.read_bytes()
    claim.release()
    assert not path.exists()


def test_a_separate_home_shares_the_machine_and_nothing_of_the_owner(tmp_path: Path) -> None:
    machine = home_from_environment()
    home = separate_home(machine, tmp_path / "demo")
    assert (home.cache, home.vtpm_ca, home.vtpm_pool) == (machine.cache, machine.vtpm_ca, machine.vtpm_pool)
    assert {home.trust, home.registry, home.signing_key}.isdisjoint(
        {machine.trust, machine.registry, machine.signing_key}
    )
    assert separate_home(home, tmp_path / "again").vtpm_ca == machine.vtpm_ca
    assert (tmp_path / "demo").stat().st_mode & 0o077 == 0
    assert isinstance(home, Home)
