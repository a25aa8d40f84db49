"""Changes of a running server that its users ask for in the live view."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mlxlab.errors import RequestError
from mlxlab.limits import CHANGE_BYTES
from mlxlab.rendering.messages import describe_errors
from mlxlab.rendering.rules import label_rules, parse_rules

if TYPE_CHECKING:
    from mlxlab.server.server import Server

__all__ = ["Change"]

Number = Annotated[int, Field(ge=1, le=2**53)]
Setting = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class Change(BaseModel):
    """What to change; what is not named stays.

    Attributes:
        strategy: of the default alias.
        rules: of the default alias.
        record: True to record into a new file of the working folder, False to end the
            recording.
        selected: requests for :attr:`~mlxlab.server.server.Server.selected`.
        stop: whether to stop the server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Setting | None = None
    rules: Setting | None = None
    record: bool | None = None
    selected: tuple[Number, ...] | None = None
    stop: bool = False

    @classmethod
    def read(cls, given: bytes | dict[str, Any]) -> Self:
        """Read a change from JSON, or from its values.

        Raises:
            RequestError: the message names the field.
        """
        if isinstance(given, bytes) and len(given) > CHANGE_BYTES:
            raise RequestError(f"body: over {CHANGE_BYTES:,} bytes; send a change only")
        try:
            if isinstance(given, bytes):
                return cls.model_validate_json(given)
            return cls.model_validate(given)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
            raise RequestError(describe_errors(found)) from None

    def apply(self, server: Server) -> None:
        """Change the server; this may load files, and so take a while.

        Raises:
            MlxlabError: see the methods of the server; what came before stays changed.
        """
        if self.strategy is not None or self.rules is not None:
            rules = self.rules and label_rules(parse_rules(self.rules))
            server.configure(strategy=self.strategy, rules=rules)
        if self.record is not None:
            server.record(_new_recording() if self.record else None)
        if self.selected is not None:
            server.select(self.selected)
        if self.stop:
            # The thread that asks may be one that the end waits for.
            Thread(target=server.stop, name="mlxlab-stop").start()


def _new_recording() -> Path:
    return Path(
        f"recording-{datetime.now().astimezone():%Y%m%d-%H%M%S}.jsonl"
    ).absolute()
