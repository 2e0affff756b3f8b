"""AMD SEV-SNP: a report signed by a key of the chip (VCEK) or of the cloud (VLEK), chained to AMD's root of its line.

`abi` and `products` hold the layouts as data, `vek` reads the key's certificate, `chain` leads it to a root, `verifier`
says who signed (also for a report without the JSON around it: `verify_report`), `appraisal` applies the owner's rules,
`attester` asks the kernel.
"""
