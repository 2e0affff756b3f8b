"""An embedded registry, read and write (OCI distribution specification 1.1), for `cloister run`, the demo and tests.

`python -m cloister.host.registry --root DIRECTORY` serves it on 127.0.0.1. It stands on the hostile side: what it
holds is ciphertext, and nothing believes what it says. No import here.
"""
