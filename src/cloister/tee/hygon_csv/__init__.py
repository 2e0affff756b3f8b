"""Hygon CSV: reports are read, not verified.

Source: Hygon's `csv-rs` (report and certificate layouts), as CoCo's guests send them.
"""
