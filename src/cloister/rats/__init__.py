"""The nouns of RFC 9334 (RATS): Evidence, Claims, Endorsement, Reference Value, Appraisal Policy, Attestation Result.

Values only: no cryptography, no clock, no input or output. Technology packages under `cloister.tee` produce
`VerifiedEvidence`; `cloister.rats.appraise` turns it into an `AttestationResult` under a policy; everybody else
consumes that.
"""
