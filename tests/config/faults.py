"""What several test files expect of faults."""

from __future__ import annotations

import pytest

from flowstack.config import ConfigError, Settings, parse

URL = "http:// or https://, a host, perhaps a port and a path, such as https://api.openai.com/v1"
SECONDS = "a number of seconds above 0, at most 31536000"
WORKERS = "a whole number of processes from 1 to 1024, or 0 or 'auto' for one for each core"
PATH = "the path of a file or directory"


def lines_of(text: str | bytes, **overrides: object) -> list[str]:
    """The faults' lines, the file's name taken off."""
    with pytest.raises(ConfigError) as caught:
        parse(text if isinstance(text, bytes) else text.encode(), "f.toml", overrides)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.faults)
    return [line.removeprefix("f.toml: ") for line in lines]


def parsed(text: str, **overrides: object) -> Settings:
    return parse(text.encode(), "f.toml", overrides)


def server(line: str) -> str:
    return f"[server]\n{line}"


def openai(line: str) -> str:
    return f"[upstreams.openai]\n{line}"
