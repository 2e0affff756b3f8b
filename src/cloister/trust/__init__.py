"""The owner's trust service: verifier, reference values, key broker, and the store they share.

`cloister.trust.app` composes and serves them; `cloister.trust.admin` administers the same state directory from the
owner's machine. The RATS roles (RFC 9334) are separate packages that do not import each other.
"""
