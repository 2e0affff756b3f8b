"""Intel SGX: quotes over an enclave, signed by the platform's quoting enclave.

`abi` is the layout (shared with TDX), `evidence` what CoCo's guests send and files hold, `attester` the enclave's side
under Gramine, `verifier` who signed it and what it says, `appraisal` the owner's rules, `endorsements` Intel's root.
"""
