"""IBM Secure Execution: evidence is read, not verified; host key documents are verified.

Source: s390-tools (`rust/pv`, `pvattest`), and the book "Introducing IBM Secure Execution for Linux".
"""
