"""`cloister demo`: the scene a newcomer sees first. Everything in it is real; every attack is carried out."""

from __future__ import annotations

from cloister.cli.demo.command import demo_command

__all__ = ["demo_command"]
