"""Cloister as a library: what a program needs to seal, run and check a confidential container."""
