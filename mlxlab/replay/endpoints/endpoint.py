"""A running server as a target: its address, its protocol and its model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from mlxlab.client.discovery import DEFAULT, running
from mlxlab.errors import ConfigError, MlxlabError, ServerError
from mlxlab.replay.endpoints.answers import WARM_UP, BrokenAnswerError, ask
from mlxlab.replay.endpoints.chat_completions import ChatCompletions
from mlxlab.replay.endpoints.dialect import Dialect
from mlxlab.replay.endpoints.messages import Messages
from mlxlab.web.guard import is_loopback

__all__ = ["DIALECTS", "Endpoint", "EndpointSpec", "connect", "parse_endpoints"]

#: Protocols in the order in which a server is tried.
DIALECTS: tuple[Dialect, ...] = (Messages(), ChatCompletions())

_FORM = "give http(s)://HOST[:PORT][#MODEL][=NAME]"
_CONNECT_S = 10.0
#: Seconds without a byte; a long prompt takes minutes on a small machine.
_SILENCE_S = 600.0
#: Model ids that an error lists.
_LISTED = 5


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """A server that is to be asked.

    Attributes:
        url: base URL, without ``/v1``.
        name: in tables and errors.
        model: the model id that requests name; empty for the one that it lists.
    """

    url: str
    name: str
    model: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``URL[#MODEL][=NAME]``; the name is host and port by default.

        Raises:
            ConfigError: it is not such a text.
        """
        address, _, name = text.strip().partition("=")
        address, _, model = address.partition("#")
        if "@" in address:
            raise ConfigError(
                "endpoint: a URL with a password; give the token in MLXLAB_TOKEN or "
                "--token-file"
            )
        if not _is_url(address):
            raise ConfigError(f"endpoint {text!r}: not a URL; {_FORM}")
        url = address.rstrip("/").removesuffix("/v1")
        return cls(url, name.strip() or urlsplit(url).netloc, model)

    @property
    def host(self) -> str:
        """The name or address of its machine."""
        return urlsplit(self.url).hostname or ""


def _is_url(address: str) -> bool:
    try:
        parts = urlsplit(address)
        whole = parts.hostname and parts.port != 0 and not parts.query
    except ValueError:  # a port beyond all ports
        return False
    spaces = any(c.isspace() for c in address)
    return parts.scheme in ("http", "https") and bool(whole) and not spaces


def parse_endpoints(
    texts: Iterable[str], taken: Iterable[str] = ()
) -> tuple[EndpointSpec, ...]:
    """Read several endpoints.

    Args:
        texts: see :meth:`EndpointSpec.parse`.
        taken: names of other rows.

    Raises:
        ConfigError: a text is malformed, or two have one name.
    """
    specs: dict[str, EndpointSpec] = {}
    for text in texts:
        spec = EndpointSpec.parse(text)
        if spec.name in specs or spec.name in taken:
            raise ConfigError(
                f"endpoint {text!r}: the name {spec.name} is taken; give URL=NAME"
            )
        specs[spec.name] = spec
    return tuple(specs.values())


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that has answered.

    Attributes:
        spec: as it was named.
        dialect: the protocol that it speaks.
        model: the model id that requests name; empty for the server's own choice.
        token: sent with each request; never shown.
    """

    spec: EndpointSpec
    dialect: Dialect
    model: str
    token: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Its name in tables and errors."""
        return self.spec.name

    def client(self) -> httpx.Client:
        """Return a new client of the server; callers close it."""
        return _client(self.spec, self.token)

    def describe(self) -> dict[str, Any]:
        """Return what decides its numbers, as JSON values."""
        return {
            "name": self.name,
            "url": self.spec.url,
            "protocol": self.dialect.path,
            "model": self.model,
        }


def connect(spec: EndpointSpec, token: str | None = None) -> Endpoint:
    """Find a server's protocol and model with a request for one token.

    The request also lets the server load its model, so that the first measured one does
    not wait for that.

    Args:
        spec: the server.
        token: its token. By default that of a server of mlxlab that runs there.

    Raises:
        ServerError: it is not reached, refuses, or has none of the protocols; or the
            token cannot be sent.
    """
    token = token or _own_token(spec)
    if token and not (token.isascii() and token.isprintable()):
        raise ServerError("token: give printable ASCII characters")
    refusals: list[str] = []
    with _client(spec, token) as client:
        models = _list_models(spec, client)
        model = spec.model or _choose(models)
        for dialect in DIALECTS:
            endpoint = Endpoint(spec, dialect, model, token)
            try:
                ask(endpoint, client, WARM_UP)
            except BrokenAnswerError as error:
                refusals.append(f"{dialect.path} {error.reason}")
                continue
            return endpoint
    advice = ""
    if not model and models:
        first = ", ".join(models[:_LISTED])
        advice = f"; give one of its models as {spec.url}#MODEL: {first}"
    raise ServerError(f"endpoint {spec.name}: {'; '.join(refusals)}{advice}")


def _client(spec: EndpointSpec, token: str | None) -> httpx.Client:
    both = {"x-api-key": token, "authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(
        base_url=spec.url,
        headers=both,
        timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=None),
        trust_env=not is_loopback(spec.host),  # loopback is reached without a proxy
    )


def _own_token(spec: EndpointSpec) -> str | None:
    """Return the token of a server of ours; None if none runs there."""
    with suppress(MlxlabError):
        return next((own.token for own in running() if own.url == spec.url), None)
    return None


def _list_models(spec: EndpointSpec, client: httpx.Client) -> Sequence[str]:
    """Return the model ids that a server lists; none if it lists none.

    Raises:
        ServerError: the server is not reached, or refuses the token.
    """
    try:
        answer = client.get("/v1/models")
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        reason = str(error) or type(error).__name__
        raise ServerError(
            f"endpoint {spec.name}: {spec.url}: {reason}; start a server there"
        ) from None
    except httpx.HTTPError:
        return []
    if answer.status_code in (401, 403):
        raise ServerError(
            f"endpoint {spec.name}: {answer.status_code}, it wants another token; give "
            "it in MLXLAB_TOKEN or --token-file"
        )
    return _listed(answer) if answer.is_success else []


def _choose(models: Sequence[str]) -> str:
    """Return the only model, or the default one; empty for the server's own choice."""
    if len(models) == 1:
        return models[0]
    return DEFAULT if DEFAULT in models else ""


def _listed(answer: httpx.Response) -> Sequence[str]:
    try:
        return [str(model["id"]) for model in answer.json()["data"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
