"""NVIDIA GPUs (Hopper, Blackwell) and NVSwitches (LS10): signed measurements of all devices, bound to one nonce.

Inside the guest: `attester` (NVML). On the owner's side: `verifier` (with `abi`, `opaque`, `certificate`, `reference`),
`manifest` and `xmlsignature` (NVIDIA's signed reference values), `topology` (which device is wired to which),
`appraisal` and `endorsements`.
"""
