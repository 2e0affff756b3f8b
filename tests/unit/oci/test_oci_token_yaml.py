"""The YAML of a key in a token: PyYAML follows nesting on the C stack, to the end of the process."""

from __future__ import annotations

import pytest

from cloister.errors import Refused
from cloister.oci.encryption.pkcs11 import ModulePolicy, parse_token_key

pytest.importorskip("yaml", reason="the extra pkcs11 is not installed")
POLICY = ModulePolicy(module_directories=("/nowhere",), allowed_module_paths=("/nowhere",))


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 60_000,
        b"- " * 30_000,
        b"{a: " * 16_000,
        b"? " * 30_000,
        b"pkcs11: &x [*x]\n",
        b"a: &a [x,x]\nb: &b [*a,*a]\npkcs11: {uri: *b}\n",
        b"pkcs11: {uri: [[[[[[[[[x]]]]]]]]]}\n",
    ],
)
def test_yaml_that_nests_or_refers_to_itself_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse_token_key(data, POLICY)
    assert caught.value.code == "oci.encryption.pkcs11.yaml"


def test_honest_yaml_gets_as_far_as_its_module() -> None:
    data = b"pkcs11:\n  uri: pkcs11:token=t;object=o?module-path=/nowhere/m.so\nmodule:\n  env:\n    A: b\n"
    with pytest.raises(Refused) as caught:
        parse_token_key(data, POLICY)
    assert caught.value.code == "oci.encryption.pkcs11.module"
