"""CoCo's `sample` TEE: evidence that nobody signed, for trying a key broker out with unmodified CoCo guests.

It proves nothing at all: anybody can write it. Level `simulated`, tier never better than a warning; a resource goes to
such a guest only by a release rule that says `insecure_allow_levels = ["simulated"]`.
"""
