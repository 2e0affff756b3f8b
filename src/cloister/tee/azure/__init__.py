"""Azure confidential VMs: a paravisor with a virtual TPM inside the hardware's protection, SNP or TDX below it.

A composition: `cloister.tee.sev_snp` and `cloister.tee.tdx` judge the hardware, `cloister.tee.tpm` the quote; this
package ties the two together by the paravisor's report.
"""
