"""What eviction policies have learned of agents, kept for the next server."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter, ValidationError

from mlxlab.errors import UntrustedError
from mlxlab.files import cache_folder, write_private
from mlxlab.ownership import read_own
from mlxlab.strategies.eviction import Eviction
from mlxlab.strategies.use import Learned
from mlxlab.traces.schema import LearnedGaps

__all__ = ["Habits"]

log = logging.getLogger(__name__)

#: Commits of a policy after which it is written again.
_COMMITS = 64
_GAPS: TypeAdapter[LearnedGaps] = TypeAdapter(LearnedGaps)


class Habits:
    """Recalls and keeps what policies learn; one file for a policy and a credential.

    Models share it: how long an agent is away depends on its user and tools. Of several
    caches of a credential the last to write is kept.

    Args:
        generated: name of a credential that was made for this server alone. All such
            credentials are one, since each server makes another.
        folder: of the files; a folder of the user's cache if None.
    """

    def __init__(self, generated: str = "", folder: Path | None = None) -> None:
        self._generated = generated
        self._folder = folder
        # Whose the policies of this server are, and their commits.
        self._policies: WeakKeyDictionary[Eviction, tuple[str, int]] = (
            WeakKeyDictionary()
        )
        self._has_failed = False

    def recall(self, policy: Eviction, credential: str) -> Learned | None:
        """Return what a policy of this name had learned, for its first request."""
        if not credential:
            return None
        try:
            path = self._path(policy, credential)
            gaps = _GAPS.validate_json(read_own(path))
        except FileNotFoundError:  # none yet, or there is no home folder
            return None
        except (OSError, UntrustedError, ValidationError) as error:
            reason = "not what it wrote" if isinstance(error, ValueError) else error
            log.warning("%s: %s learns anew: %s", path, policy.name, reason)
            return None
        return {policy.name: gaps}

    def note(self, policy: Eviction, credential: str) -> None:
        """Note a commit; write what was learned now and then."""
        commits = self._policies.get(policy, (credential, 0))[1] + 1
        self._policies[policy] = credential, commits
        if commits % _COMMITS == 0:
            self._write(policy, credential)

    def close(self) -> None:
        """Write what was learned."""
        for policy, (credential, _) in self._policies.items():
            self._write(policy, credential)

    def _write(self, policy: Eviction, credential: str) -> None:
        learned = policy.learned()
        if not learned or not credential:
            return
        try:
            data = json.dumps(learned).encode()
            write_private(self._path(policy, credential), data)
        except OSError as error:
            if not self._has_failed:
                log.warning("what %s learns is not kept: %s", policy.name, error)
            self._has_failed = True

    def _path(self, policy: Eviction, credential: str) -> Path:
        owner = "generated" if credential == self._generated else credential
        folder = self._folder or cache_folder() / "habits"
        return folder / f"{policy.name}-{owner}.json"
