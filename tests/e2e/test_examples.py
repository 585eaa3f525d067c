"""The programs of the manual and the README work as they stand, with nothing changed but address and keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.examples import Example, examples, pages
from tests.e2e.processes import Proxy, StandIn
from tests.e2e.sdk_runs import OPENAI_KEY, Sdks, shell

pytestmark = pytest.mark.e2e


MARKED = [example for page in pages() for example in examples(page)]
PROGRAMS = [
    (sdk, example)
    for example in MARKED
    for sdk in example.words[1:]
    if example.words[0] == "run" and sdk != "curl"
]  # fmt: skip


def one(word: str) -> Example:
    (found,) = (example for example in MARKED if word in example.words)
    return found


def test_curl_with_both_headers_gets_the_upstreams_answer(proxy: Proxy, stand_in: StandIn, tmp_path: Path) -> None:
    through = shell(one("curl").at(proxy.base_url, proxy.key, OPENAI_KEY), tmp_path)
    direct = shell(one("curl").at(f"{stand_in.url}/v1", "none", OPENAI_KEY), tmp_path)
    assert json.loads(through)["choices"][0]["message"]["content"]
    assert through == direct


def test_curl_without_the_flowstack_header_is_told_what_to_send(proxy: Proxy, tmp_path: Path) -> None:
    text = one("curl").at(proxy.base_url, proxy.key, OPENAI_KEY)
    lines = [line for line in text.splitlines() if "Flowstack-Auth" not in line]
    error = json.loads(shell("\n".join(lines), tmp_path))["error"]
    assert error["code"] == "missing_flowstack_key"
    assert "Flowstack-Auth: Bearer" in error["message"]


@pytest.mark.parametrize(("sdk", "example"), PROGRAMS, ids=[f"{example.page}-{sdk}" for sdk, example in PROGRAMS])
def test_a_program_gets_the_upstreams_answer(
    sdk: str, example: Example, proxy: Proxy, stand_in: StandIn, sdks: Sdks
) -> None:
    def answer(base_url: str, key: str) -> str:
        text = example.at(base_url, key, OPENAI_KEY)
        assert text != example.text, "it names no address that is replaced"
        text = text.replace("none~", "")  # two keys in one string are Flowstack's alone
        return sdks.program(sdk, text, env={"OPENAI_API_KEY": OPENAI_KEY, "FLOWSTACK_KEY": key})

    through = answer(proxy.base_url, proxy.key)
    assert through.strip()
    assert through == answer(f"{stand_in.url}/v1", "none")


def test_an_unmodified_python_program_is_led_through_by_its_environment(
    proxy: Proxy, stand_in: StandIn, sdks: Sdks
) -> None:
    exports = one("environment").at(proxy.base_url, proxy.key, OPENAI_KEY)
    led = dict(re.findall(r'^export (\w+)="?(.*?)"?$', exports, re.MULTILINE))
    assert led["OPENAI_BASE_URL"] == proxy.base_url
    keyed = {"OPENAI_API_KEY": OPENAI_KEY}
    through = sdks.program("python-openai", one("unmodified").text, env=keyed | led)
    assert json.loads(through)["choices"][0]["message"]["content"]
    direct = keyed | {"OPENAI_BASE_URL": f"{stand_in.url}/v1"}
    assert through == sdks.program("python-openai", one("unmodified").text, env=direct)


def test_every_sdk_has_a_program() -> None:
    assert {sdk for sdk, _ in PROGRAMS} == {
        "python-openai", "python-openai-0.28", "langchain", "llamaindex", "node-openai", "node-openai-4",
        "python-agents", "python-livekit", "node-agents",
    }  # fmt: skip
