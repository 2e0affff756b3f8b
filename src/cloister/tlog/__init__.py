"""Transparency log mechanisms: Merkle tree, signed notes, checkpoints, tiles, witnesses, receipts. Pure: no input or
output, no clock.

C2SP's formats (signed-note, tlog-checkpoint, tlog-tiles, tlog-cosignature, tlog-witness) over RFC 6962's tree, so that
anybody's monitor and witness understands a log of ours.
"""
