"""Signatures over image manifests. No imports here."""
