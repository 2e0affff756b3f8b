"""Doubles for tests: fake technologies that sign real structures under test roots, and other honest imitations.

Public and typed, so that users of Cloister can test against them too. Each module stands for one real thing and
implements its production interface; hostile variants are named options, not patches.
"""
