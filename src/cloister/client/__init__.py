"""Clients of the trust service, for the guest and for others. Standard library first; nothing imported early."""
