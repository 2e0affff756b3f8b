"""Arm Confidential Compute Architecture (CCA): realms, their tokens and the platform that vouches for them.

Sources: Arm DEN0137 (Realm Management Monitor specification), section A7; draft-ffm-rats-cca-token.
"""
