"""Intel TDX: quotes over what a trust domain is and measured, signed by the platform's quoting enclave.

`abi` is the layout (shared with SGX), `evidence` what CoCo's guests send and files hold, `attester` the guest's side,
`verifier` who signed it and what it says, `appraisal` the owner's rules, `endorsements` Intel's root.
"""
