"""Progress bars for work over a second: bytes of layers, phases of a build."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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


class CountBar:
    """A bar over things done one by one; shown on a terminal only."""

    def __init__(self, text: str, total: int) -> None:
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
