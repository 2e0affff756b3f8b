"""The appraisal policy that applies while an owner has stored none: every technology, hardware only, strict. Pure.

Its text is fixed and its digest published (docs/reference/kbs-api.md), so that a token which carries that digest says
what it was judged by. Reference values are asked for as by any policy: without them nothing is acceptable.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final

from cloister.rats.policy import AppraisalPolicy, parse_appraisal_policy

BUILTIN_ID: Final = "default"
BUILTIN_TEXT: Final = (
    b'{"version":1,"id":"default","tees":["az-snp-vtpm","az-tdx-vtpm","cca","cloister-simulated","csv","nitro",'
    b'"nvidia","sample","se","sgx","snp","tdx","tpm"]}'
)
BUILTIN_DIGEST: Final = "sha256:" + hashlib.sha256(BUILTIN_TEXT).hexdigest()


@cache
def builtin_policy() -> AppraisalPolicy:
    """Return the policy."""
    return parse_appraisal_policy(BUILTIN_TEXT)
