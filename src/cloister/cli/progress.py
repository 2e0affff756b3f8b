"""Progress bars for work over a second: bytes of layers, phases of a build."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from cloister.cli.output import stderr

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class BytesBar:
    """A bar over bytes, with rate and time left; implements `cloister.imagetool.layers.Progress`.

    Shown on a terminal only, and nothing of it is loaded elsewhere.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> BytesBar:
        if not stderr.is_terminal:
            return self
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn(" ..  {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=stderr,
            transient=True,
        )
        self._task = self._progress.add_task(self._text, total=None)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def begin(self, total_bytes: int) -> None:
        """Set the whole."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total_bytes)

    def advance(self, count: int) -> None:
        """Move by so many bytes."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count)


class PhaseBar:
    """A bar over the phases of a build; call it with the phase's name and how much of that phase is done."""

    def __init__(self, text: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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


class CountBar:
    """A bar over things done one by one; shown on a terminal only."""

    def __init__(self, text: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn(" ..  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._text = text
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._progress.add_task(text, total=total or None)
        self._done = 0

    def __enter__(self) -> CountBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, what: str) -> None:
        """Count `what` as done; there may turn out to be more than was said."""
        self._done += 1
        total = max(self._progress.tasks[0].total or 0, self._done)
        self._progress.update(self._task, description=f"{self._text}: {what}", completed=self._done, total=total)
