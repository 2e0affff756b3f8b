"""Byte-level codecs shared by all planes: strict, bounded, without I/O."""
