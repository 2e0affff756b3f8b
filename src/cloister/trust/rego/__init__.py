"""Rego policies of key release, run in a process of their own, under limits."""
