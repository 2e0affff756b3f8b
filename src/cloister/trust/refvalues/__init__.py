"""The Reference Value Provider's side of RFC 9334: what registers may hold, who vouches for it, and since when.

Knows nothing of keys that are released or evidence that is verified. `registration` takes signed and unsigned values
into the store, `observed` makes a file of values out of what one guest showed, which nobody has vouched for.
"""

from cloister.trust.refvalues.observed import observed_values
from cloister.trust.refvalues.registration import (
    ReferenceBook,
    RegisteredValue,
    is_envelope,
    register_signed,
    register_unsigned,
    registered_values,
    withdraw,
)

__all__ = [
    "ReferenceBook",
    "RegisteredValue",
    "is_envelope",
    "observed_values",
    "register_signed",
    "register_unsigned",
    "registered_values",
    "withdraw",
]
