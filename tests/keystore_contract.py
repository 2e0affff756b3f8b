"""What every key store has to do, whatever it is made of: run by the tests of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloister.crypto.keystore import KeyStore
from cloister.errors import Refused
from tampering import flipped

KEY = bytes(range(32))


def keep_contract(reopen: Callable[[], KeyStore], *, made: bool = False, forgets: bool = True) -> None:
    """Run a root key's life on a fresh store.

    Args:
        reopen: opens the store, each time as another process would.
        made: whether there is a root key already.
        forgets: whether `settle` removes root keys.
    """
    store = reopen()
    assert not store.sealed and len(store.identities()) == int(made)
    first = store.identities()[0] if made else store.create()
    assert store.identities() == (first,)
    wrapped = store.wrap(first, "one", KEY)
    assert KEY not in wrapped and wrapped != store.wrap(first, "one", KEY)
    assert reopen().unwrap("one", wrapped) == KEY
    for purpose, altered in (("two", wrapped), ("one", flipped(wrapped))):
        with pytest.raises(Refused) as caught:
            store.unwrap(purpose, altered)
        assert caught.value.code == "crypto.keystore.not_authentic"
    assert store.unwrap("one", wrapped) == KEY, "a refusal does not disturb"

    before = store.identities()
    second = store.create()
    assert set(reopen().identities()) == {first, second}
    anew = reopen().wrap(second, "one", KEY)
    for other in (store, reopen()):
        assert other.unwrap("one", wrapped) == other.unwrap("one", anew) == KEY
    store.settle(second, before)
    store.settle(second, before)
    assert reopen().unwrap("one", anew) == KEY
    assert (set(reopen().identities()) == {second}) is forgets
    if forgets:
        with pytest.raises(Refused) as caught:
            store.unwrap("one", wrapped)
        assert caught.value.code == "crypto.keystore.unknown_root"
    with pytest.raises(Refused) as caught:
        store.wrap("00" * 8, "one", KEY)
    assert caught.value.code == "crypto.keystore.unknown_root"
    store.check()
    store.close()
