"""Our side of ocicrypt's key provider protocol: container tools encrypt and decrypt with keys of the owner's broker."""

from cloister.imagetool.keyprovider.keys import AdministeredKeys, KEKStore, OneKey, ReleasedKeys, read_key
from cloister.imagetool.keyprovider.provider import DEFAULT_NAME, Provider

__all__ = ["DEFAULT_NAME", "AdministeredKeys", "KEKStore", "OneKey", "Provider", "ReleasedKeys", "read_key"]
