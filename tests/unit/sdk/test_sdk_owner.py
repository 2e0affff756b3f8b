"""The owner's signing key: made once, whoever asks at the same time."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cloister.sdk.home import Home
from cloister.sdk.owner import Owner


def test_everybody_who_asks_at_once_gets_the_same_key(tmp_path: Path) -> None:
    for number in range(5):
        home = Home(root=tmp_path / str(number), cache=tmp_path / "cache")
        home.signing_key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ThreadPoolExecutor(8) as pool:
            keys = set(pool.map(lambda _, home=home: Owner(home).signer().private_pem(), range(8)))
        assert len(keys) == 1
        assert [item.name for item in home.signing_key.parent.iterdir()] == [home.signing_key.name]
        assert stat.S_IMODE(home.signing_key.stat().st_mode) == 0o600
