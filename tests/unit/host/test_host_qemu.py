"""What is made on the host before QEMU starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Unavailable
from cloister.host.vmm.qemu import make_scratch_file
from cloister.host.vmm.staging import Staging
from cloister.wire.limits import MIB


def test_file_of_the_scratch_disk_is_sparse_and_has_no_name(make_spec: Any) -> None:
    spec = make_spec(scratch_mib=64 * 1024)
    spec.work.mkdir()
    with Staging() as staging:
        file = make_scratch_file(staging, spec)
        assert file is not None
        state = os.fstat(file.fileno())
        assert (state.st_size, state.st_blocks, state.st_nlink, state.st_mode & 0o777) == (65536 * MIB, 0, 0, 0o600)
        assert not list(spec.work.iterdir())
    assert file.closed


def test_there_is_none_unless_asked_for(make_spec: Any) -> None:
    with Staging() as staging:
        assert make_scratch_file(staging, make_spec()) is None


def test_file_that_cannot_be_made(make_spec: Any, tmp_path: Path) -> None:
    with Staging() as staging, pytest.raises(Unavailable) as caught:
        make_scratch_file(staging, make_spec(scratch_mib=1, work=tmp_path / "missing"))
    assert caught.value.code == "host.scratch"
