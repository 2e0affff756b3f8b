"""The one place where the image builder runs other programs.

Argument list, no shell, an environment of four variables, a time limit, captured output. Output of a program is never
trusted to be more than text or bytes: callers check what they take from it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cloister.errors import Unavailable

_SHOWN_OUTPUT: Final = 400
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON: Final = ("http_proxy", "https_proxy", "no_proxy", "TMPDIR")  # where the machine says how to reach mirrors


def run(
    command: Sequence[str],
    *,
    seconds: int,
    cwd: Path | None = None,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run `command` and return its standard output.

    Raises:
        Unavailable: the program is missing (`imagetool.tool.missing`), took too long (`imagetool.tool.timeout`) or
            failed (`imagetool.tool.failed`; the message ends with the tail of its error output).
    """
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    clean = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", "TZ": "UTC", **passed, **(environment or {})}
    try:
        done = subprocess.run(
            list(command), input=stdin, capture_output=True, timeout=seconds, check=False, cwd=cwd, env=clean
        )
    except FileNotFoundError as err:
        raise Unavailable("imagetool.tool.missing", "a program is missing", expected=command[0]) from err
    except subprocess.TimeoutExpired as err:
        raise Unavailable(
            "imagetool.tool.timeout", f"{Path(command[0]).name} did not end", expected=f"within {seconds} s"
        ) from err
    if done.returncode != 0:
        tail = done.stderr.decode(errors="replace").strip()[-_SHOWN_OUTPUT:]
        raise Unavailable(
            "imagetool.tool.failed",
            f"{Path(command[0]).name} gave {done.returncode}: {tail}",
            hint=f"run again by hand: {shlex.join(command)}",
        )
    return done.stdout
