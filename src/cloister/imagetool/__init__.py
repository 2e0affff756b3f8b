"""The owner's build side: pod-VM images and what they will measure as.

Runs on the owner's machine or in the owner's CI. It trusts the archive keyring of that machine and the hashes in the
image's lock; it never runs on the host that boots the result.
"""
