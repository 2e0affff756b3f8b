"""Encrypted layers as ocicrypt defines them, with the annotation packet of Confidential Containers. No imports
here."""
