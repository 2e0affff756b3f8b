"""The host side: boots pod VMs and carries bytes between a guest and its owner.

Hostile by assumption: nothing here holds a secret, and no decision that confidentiality depends on is taken here. What
this package does is measured by the guest's TPM (or by hardware) and judged by the owner.
"""
