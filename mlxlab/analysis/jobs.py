"""Runs independent tasks on Dask and keeps what they found, so that a run can go on.

Knows nothing of what a task does.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.errors import MlxlabError
from mlxlab.extras import needs
from mlxlab.files import replaced

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["HERE", "Task", "run_tasks"]

#: In this process, one after the other.
HERE = "here"

Row: TypeAlias = Mapping[str, Any]
Run: TypeAlias = Callable[["Task", Any], list[Row]]

_CONNECT_S = 5


@dataclass(frozen=True, slots=True)
class Task:
    """Something to find out.

    Attributes:
        what: everything that decides the result, as JSON values.
        data: key of what it needs.
    """

    what: Mapping[str, Any]
    data: Any

    @property
    def digest(self) -> str:
        """Names the result."""
        text = json.dumps(self.what, sort_keys=True)
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
    """Rows of all tasks, in the order of the tasks.

    Args:
        run: a function of a module, called where the scheduler decides.
        tasks: what it is called with.
        data: and with what of this.
        folder: where the rows of each task are kept as Parquet; tasks whose rows are
            there are not run again.
        scheduler: address of a Dask cluster; None for processes on this machine, one a
            core; ``here`` for this process.
        progress: whether to show a bar.

    Raises:
        MlxlabError: the cluster cannot be reached, or the folder not be used.
        KeyboardInterrupt: stopped by hand; what was finished is kept.
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
    """Tasks and their rows as they come."""
    if scheduler == HERE or not tasks:
        for task in tasks:
            yield task, run(task, data[task.data])
        return
    with needs("sweep"):
        from distributed import as_completed

    with _client(scheduler, len(tasks)) as client:
        sent = {key: client.scatter(value, hash=False) for key, value in data.items()}
        # Callers name the slowest last; begun first it keeps nobody waiting.
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

    # Its samples of other threads cost more than they tell here.
    dask.config.set({"distributed.worker.profile.enabled": False})
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if scheduler:
        try:
            client = Client(scheduler, timeout=_CONNECT_S)
        except (OSError, ValueError) as error:
            raise MlxlabError(
                f"scheduler {scheduler}: {error}; give the address of a Dask scheduler "
                f"such as tcp://host:8786, or {HERE!r}"
            ) from None
        with client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=min(tasks, _cores()), threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _cores() -> int:
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)


def _kept(folder: Path | None, task: Task) -> list[Row]:
    """Rows of an earlier run; none if there are none, or they are damaged."""
    if folder is None or not (path := folder / f"{task.digest}.parquet").exists():
        return []
    try:
        return _records(pd.read_parquet(path))
    except (OSError, ValueError):
        return []


def _keep(folder: Path | None, task: Task, rows: list[Row]) -> None:
    if folder is None:
        return
    path = folder / f"{task.digest}.parquet"
    try:
        with replaced(path) as file:
            pd.DataFrame(rows).to_parquet(file)
    except OSError as error:
        raise MlxlabError(f"{path}: {error.strerror}; give a folder") from None


def _records(frame: pd.DataFrame) -> list[Row]:
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(key): value for key, value in record.items()} for record in records]
