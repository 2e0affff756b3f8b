"""HTTP of the trust service."""
