"""Progress bars for work over a second: bytes of layers, phases of a build."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from cloister.cli.output import stderr


class BytesBar:
    """A bar over bytes; implements `cloister.imagetool.encrypt.Progress`. Shown on a terminal only."""

    def __init__(self, text: str) -> None:
        columns = (TextColumn(" ..  {task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._progress.add_task(text, total=None)

    def __enter__(self) -> BytesBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, total_bytes: int) -> None:
        """Set the whole."""
        self._progress.update(self._task, total=total_bytes)

    def advance(self, count: int) -> None:
        """Move by so many bytes."""
        self._progress.advance(self._task, count)


class PhaseBar:
    """A bar over the phases of a build; call it with the phase's name and how much of that phase is done."""

    def __init__(self, text: str) -> None:
        columns = (TextColumn(" ..  {task.description}"), BarColumn(), TimeElapsedColumn())
        self._text = text
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._progress.add_task(text, total=1.0)

    def __enter__(self) -> PhaseBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, phase: str, fraction: float) -> None:
        """Show the phase and how much is done."""
        self._progress.update(self._task, description=f"{self._text}: {phase}", completed=fraction)
