"""Collateral: what vendors publish about their platforms, had before it is needed.

Verifiers never fetch. `needs` says what a piece of evidence will need, `sources` and `transport` get it, `cache` and
`bundle` keep it, `load` makes `Endorsements` of it, `files` sorts what a user has on disk. The guest loads none of
this. Nothing here is trusted by being here: every item is checked again, under pinned roots, by the verifier.
"""
