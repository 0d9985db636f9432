"""What a catalogue entry with `engine = "openai"` says of its upstream, checked, and which parameters that knows.

A key is never in the catalogue: the file names an environment variable, which only the worker reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from common.errors import shown

NUMBER = (int, float)
OPTIONS: dict[str, type | tuple[type, ...]] = {
    "base_url": str,
    "flavour": str,
    "api_key_env": str,
    "api_key_header": str,
    "headers_env": dict,
    "concurrency": int,
    "connect_timeout_s": NUMBER,
    "timeout_s": NUMBER,
    "hold_s": NUMBER,
    "max_retries": int,
    "max_tokens_field": str,
    "extensions": bool,
    "batch_texts": int,
    "encoding_format": str,
    "input_type": str,
}
CHOICES = {
    "flavour": ("openai", "cohere"),
    "max_tokens_field": ("max_tokens", "max_completion_tokens"),
    "encoding_format": ("base64", "float"),
    "input_type": ("search_document", "search_query", "classification", "clustering"),
}
#: Texts in one call of each flavour: the most that OpenAI and Cohere take.
BATCH_TEXTS = {"openai": 2048, "cohere": 96}
#: Parameters of a generation job that every server of OpenAI's API understands, and those that vLLM's does too.
COMMON_PARAMS = (
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
)
EXTENDED_PARAMS = (
    *COMMON_PARAMS,
    "min_tokens",
    "ignore_eos",
    "top_k",
    "min_p",
    "repetition_penalty",
    "regex",
    "choice",
    "grammar",
)
#: Calls at once to an upstream whose entry does not say.
CONCURRENCY = 8
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
HEADER = re.compile(r"^[A-Za-z0-9-]+$")


class OptionInvalid(ValueError):
    """An option has a value that is not allowed."""

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        self.key = key
        super().__init__(f"{key} is {shown(value)}; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where an upstream is and how it wants to be asked."""

    base_url: str = ""  # up to and with the version: https://host/v1
    flavour: str = "openai"
    api_key_env: str = ""  # the name of the variable; none: no key is sent
    api_key_header: str = "Authorization"  # with `Bearer`; any other header gets the bare key
    headers_env: dict[str, str] = field(default_factory=dict)  # more headers: name -> variable
    concurrency: int = CONCURRENCY
    connect_timeout_s: float = 5.0
    timeout_s: float = 120.0  # of silence
    hold_s: float = 30.0  # so long a job waits in the worker while the upstream takes none
    max_retries: int = 2
    max_tokens_field: str = "max_tokens"
    extensions: bool = False
    batch_texts: int = 0
    encoding_format: str = "base64"
    input_type: str = "search_document"

    @classmethod
    def of(cls, options: dict[str, Any]) -> Upstream:
        """The options of a catalogue entry, whose types are checked already; raises OptionInvalid."""
        upstream = cls(**options)
        _check_url(upstream.base_url)
        for key, allowed in CHOICES.items():
            _check(upstream, key, allowed.__contains__, ", ".join(allowed))
        for key in ("connect_timeout_s", "timeout_s"):
            _check(upstream, key, lambda value: 0 < value <= 86_400, "more than 0, at most 86400")
        _check(upstream, "hold_s", lambda value: 0 <= value <= 3600, "0 to 3600")
        _check(upstream, "concurrency", lambda value: 1 <= value <= 10_000, "1 to 10000")
        _check(upstream, "max_retries", lambda value: 0 <= value <= 10, "0 to 10")
        _check(upstream, "batch_texts", lambda value: 0 <= value <= 10_000, "1 to 10000")
        _check(upstream, "api_key_env", lambda value: not value or VARIABLE.match(value), "the name of a variable")
        _check(upstream, "api_key_header", HEADER.match, "a header's name")
        for name, variable in upstream.headers_env.items():
            if not HEADER.match(name) or not isinstance(variable, str) or not VARIABLE.match(variable):
                raise OptionInvalid("headers_env", {name: variable}, "names of headers = names of variables")
        return upstream

    @property
    def texts(self) -> int:
        """Most texts in one call."""
        return self.batch_texts or BATCH_TEXTS[self.flavour]

    def unknown(self, params: Iterable[str]) -> list[str]:
        """Those parameters of a generation job that this upstream does not know."""
        known = EXTENDED_PARAMS if self.extensions else COMMON_PARAMS
        return [name for name in params if name not in known]


def _check(upstream: Upstream, key: str, is_allowed: Callable[[Any], Any], allowed: str) -> None:
    value = getattr(upstream, key)
    if not is_allowed(value):
        # Somebody may have written the key itself where the name of its variable belongs.
        raise OptionInvalid(key, "no name" if key == "api_key_env" else value, allowed)


def _check_url(url: str) -> None:
    if not url:
        raise OptionInvalid("base_url", None, "an address such as https://host/v1")
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        raise OptionInvalid("base_url", url, "an address such as https://host/v1") from None
    if parts.username or parts.password:
        raise OptionInvalid("base_url", "one with credentials", "one without; name their variable in api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid or parts.query:
        raise OptionInvalid("base_url", url, "an address such as https://host/v1 (http or https)")
