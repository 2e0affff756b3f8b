"""What Intel SGX and TDX have in common: quotes signed by a quoting enclave, and the collateral that judges platforms.

Not a technology by itself: `cloister.tee.sgx` and `cloister.tee.tdx` are. `abi` is the quote's layout, `pck` and
`chain` the platform's certificate, `collateral` and `statements` Intel's signed statements, `tcb` what they say of a
platform, `verifier` the order of the checks, `tsm` the kernel's way to a quote.
"""
