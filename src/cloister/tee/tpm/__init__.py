"""TPM 2.0: quotes by a restricted key whose TPM proved itself by its endorsement key.

Inside the guest: `attester` (with `commands` and `transport`). On the owner's side: `credential` (the challenge),
`verifier` (with `abi`, `quote`, `eventlog`) and `endorsements` (the roots).
"""
