"""Runs independent tasks on Dask and keeps their rows, so that a run can continue."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.tables import list_records
from mlxlab.errors import MlxlabError
from mlxlab.extras import needs
from mlxlab.files import written

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["HERE", "Task", "run_tasks"]

#: A scheduler: this process, one task after the other.
HERE = "here"

Row: TypeAlias = Mapping[str, Any]
Run: TypeAlias = Callable[["Task", Any], list[Row]]

_CONNECT_S = 5


@dataclass(frozen=True, slots=True)
class Task:
    """One independent task.

    Attributes:
        asked: everything that decides the result, as JSON values.
        data: key of the data that the task needs.
    """

    asked: Mapping[str, Any]
    data: Any

    @property
    def digest(self) -> str:
        """The name of the result's file."""
        text = json.dumps(self.asked, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def run_tasks(
    run: Run,
    tasks: Sequence[Task],
    data: Mapping[Any, Any],
    *,
    folder: Path | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> list[Row]:
    """Run all tasks and return their rows, in the order of the tasks.

    Args:
        run: a module's function, called with a task and its data in any process.
        tasks: to run.
        data: the data of the tasks, by key.
        folder: keeps the rows of each task as Parquet; tasks with kept rows are not run
            again.
        scheduler: address of a Dask cluster; None for one process per core on this
            machine; ``here`` for this process.
        progress: whether to show a bar.

    Raises:
        MlxlabError: the cluster cannot be reached, or the folder cannot be written.
        KeyboardInterrupt: stopped by the user; finished tasks are kept.
    """
    if folder is not None:
        with needs("sweep"):
            import_module("pyarrow")  # pandas needs it for Parquet
    found = {task.digest: rows for task in tasks if (rows := _kept(folder, task))}
    left = [task for task in tasks if task.digest not in found]
    bar = tqdm(total=len(tasks), initial=len(found), disable=not progress, unit="run")
    with bar:
        for task, rows in _results(run, left, data, scheduler):
            _keep(folder, task, rows)
            found[task.digest] = rows
            bar.update(1)
    return [row for task in tasks for row in found[task.digest]]


def _results(
    run: Run, tasks: Sequence[Task], data: Mapping[Any, Any], scheduler: str | None
) -> Iterator[tuple[Task, list[Row]]]:
    """Yield tasks and their rows as they finish."""
    if scheduler == HERE or not tasks:
        for task in tasks:
            yield task, run(task, data[task.data])
        return
    with needs("sweep"):
        from distributed import as_completed

    with _client(scheduler, len(tasks)) as client:
        sent = {key: client.scatter(value, hash=False) for key, value in data.items()}
        # Callers name the slowest task last; started first it ends sooner.
        waiting = {
            client.submit(run, task, sent[task.data], pure=False): task
            for task in reversed(tasks)
        }
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            client.cancel(list(waiting))


@contextmanager
def _client(scheduler: str | None, tasks: int) -> Iterator[Client]:
    import dask
    from distributed import Client, LocalCluster

    dask.config.set(
        {
            # Its sampling of other threads slows short tasks down.
            "distributed.worker.profile.enabled": False,
            # What an interrupt breaks off is no news: for processes that start later.
            "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
        }
    )
    if scheduler:
        try:
            client = Client(scheduler, timeout=_CONNECT_S)
        except (OSError, ValueError) as error:
            raise MlxlabError(
                f"scheduler {scheduler}: {error}; give the address of a Dask scheduler "
                f"such as tcp://host:8786, or {HERE!r}"
            ) from None
        with _silenced("distributed"), client:
            yield client
        return
    workers = min(tasks, _cores())
    with _silenced("distributed", "asyncio"), ExitStack() as stack:
        # A Ctrl-C that was held back arrives when the cluster can be closed.
        with _interrupts_held():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, dashboard_address=None
                )
            )
        yield stack.enter_context(Client(cluster))


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Keep loggers from printing until the block ends; errors are raised as ever."""
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in before:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; what it starts never gets one.

    Threads and processes inherit the mask. A terminal interrupts all processes, and
    those of a cluster would print where they were.
    """
    resource_tracker.ensure_running()  # it would lift the mask
    held: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        before = signal.signal(signal.SIGINT, lambda kind, _: held.append(kind))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)


def _cores() -> int:
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)


def _kept(folder: Path | None, task: Task) -> list[Row]:
    """Return the rows of an earlier run; none if they are missing or damaged."""
    if folder is None or not (path := folder / f"{task.digest}.parquet").exists():
        return []
    try:
        return list(list_records(pd.read_parquet(path)))
    except (OSError, ValueError):
        return []


def _keep(folder: Path | None, task: Task, rows: list[Row]) -> None:
    if folder is None:
        return
    path = folder / f"{task.digest}.parquet"
    try:
        with written(path) as file:
            pd.DataFrame(rows).to_parquet(file)
    except OSError as error:
        raise MlxlabError(f"{path}: {error.strerror}; give a folder") from None
