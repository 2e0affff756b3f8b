"""The `cloister` command. One file per noun; each verb is a thin call into the SDK or a plane."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; never returns."""
    # Imported here: importers of the package need not pay for the program's own imports.
    from cloister.cli.app import run_command_line

    run_command_line()
