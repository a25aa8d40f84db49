"""Visits servers round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from tqdm import tqdm

from bench.processes import Server
from mlxlab.errors import ServerError

__all__ = ["visit_all"]


class _Sample(Protocol):
    @property
    def server(self) -> str: ...


T = TypeVar("T", bound=_Sample)


def visit_all(
    servers: Sequence[Server],
    rounds: int,
    visit: Callable[[Server, int], Iterable[T]],
) -> tuple[list[T], dict[str, str]]:
    """Visit every server in every round.

    Args:
        servers: in order; every other round goes backwards.
        rounds: number of rounds.
        visit: measures a server in the round of this number.

    Returns:
        The samples, and the reason for each server that failed. Such a server has no
        samples, and is not visited again.
    """
    samples: list[T] = []
    failed: dict[str, str] = {}
    with tqdm(total=rounds * len(servers), leave=False) as progress:
        for number in range(rounds):
            for server in servers[:: -1 if number % 2 else 1]:
                progress.set_description(server.name)
                if server.name not in failed:
                    try:
                        samples += visit(server, number)
                    except ServerError as error:
                        failed[server.name] = str(error)
                progress.update()
    return [s for s in samples if s.server not in failed], failed
