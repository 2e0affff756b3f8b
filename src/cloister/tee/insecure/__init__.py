"""Simulated evidence: exercises the whole flow on a machine without a TEE, and protects nothing.

The process that is "attested" holds the signing key itself. Level `simulated`, always; default policies refuse it.
"""
