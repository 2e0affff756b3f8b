"""The agent inside the pod VM: measures its orders, attests, fetches keys, pulls, verifies, decrypts, runs, reports.

Runs inside the TEE as part of the measured image. It trusts the measured init data (key broker address, its CA, the
pod policy) and nothing the host sends: the host decides when, never what. Modules here import lazily: what is not
needed to say hello and to measure is loaded later.
"""
