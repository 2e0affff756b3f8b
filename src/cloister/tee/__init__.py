"""Trusted execution environments: one package per technology, the same four files in each.

`abi` (layouts, pure), `attester` (devices, inside the guest only), `verifier` (pure: no input, output or clock) and
`endorsements` (roots and vendor statements). `registry` maps wire names to packages. Nothing is imported here: the
guest loads this package before it says hello.
"""
