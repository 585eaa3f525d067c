"""The programs that users were given work as they stand, with nothing changed but base URL and keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.processes import Proxy, StandIn
from tests.e2e.sdk_runs import OPENAI_KEY, Sdks, shell, snippet

pytestmark = pytest.mark.e2e


def test_curl_with_both_headers_gets_the_upstreams_answer(proxy: Proxy, stand_in: StandIn, tmp_path: Path) -> None:
    through = shell(snippet("curl.txt", proxy.base_url, proxy.key), tmp_path)
    direct = shell(snippet("curl.txt", f"{stand_in.url}/v1", "none"), tmp_path)
    assert json.loads(through)["choices"][0]["message"]["content"]
    assert through == direct


def test_curl_without_the_flowstack_header_is_told_what_to_send(proxy: Proxy, tmp_path: Path) -> None:
    text = snippet("curl.txt", proxy.base_url, proxy.key)
    lines = [line for line in text.splitlines() if "Flowstack-Auth" not in line]
    error = json.loads(shell("\n".join(lines), tmp_path))["error"]
    assert error["code"] == "missing_flowstack_key"
    assert "Flowstack-Auth: Bearer" in error["message"]


def test_openai_0_28_with_api_base_and_headers_gets_the_upstreams_answer(
    proxy: Proxy, stand_in: StandIn, sdks: Sdks
) -> None:
    def answer(base_url: str, key: str) -> str:
        return sdks.program("python-openai-0.28", snippet("python-0.28.txt", base_url, key) + "\nprint(response)\n")

    through = answer(proxy.base_url, proxy.key)
    assert json.loads(through)["choices"][0]["message"]["content"]
    assert through == answer(f"{stand_in.url}/v1", "none")


@pytest.mark.parametrize("sdk", ["node-openai", "node-openai-4"])
def test_openai_for_node_with_default_headers_gets_the_upstreams_answer(
    sdk: str, proxy: Proxy, stand_in: StandIn, sdks: Sdks
) -> None:
    def answer(base_url: str, key: str) -> str:
        text = snippet("node.txt", base_url, key) + "\nconsole.log(JSON.stringify(chatCompletion));\n"
        return sdks.program(sdk, text)

    through = answer(proxy.base_url, proxy.key)
    assert json.loads(through)["choices"][0]["message"]["content"]
    assert through == answer(f"{stand_in.url}/v1", "none")


def test_an_unmodified_python_program_is_led_through_by_environment_variables_alone(
    proxy: Proxy, stand_in: StandIn, sdks: Sdks
) -> None:
    text = (Path(__file__).parent / "snippets" / "python-unmodified.txt").read_text("utf-8")
    keyed = {"OPENAI_API_KEY": OPENAI_KEY}
    through = sdks.program(
        "python-openai",
        text,
        env=keyed | {"OPENAI_BASE_URL": proxy.base_url, "OPENAI_CUSTOM_HEADERS": f"Flowstack-Auth: Bearer {proxy.key}"},
    )
    assert json.loads(through)["choices"][0]["message"]["content"]
    assert through == sdks.program("python-openai", text, env=keyed | {"OPENAI_BASE_URL": f"{stand_in.url}/v1"})
