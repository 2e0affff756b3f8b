"""AWS Nitro Enclaves: attestation documents of the Nitro Security Module.

Source: AWS, "Verifying the root of trust" (attestation_process.md of aws-nitro-enclaves-nsm-api).
"""
