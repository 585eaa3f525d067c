"""Other gateways made for model providers: LiteLLM's proxy and Portkey's gateway."""

from __future__ import annotations

import json
from pathlib import Path

from bench import provision
from bench.subjects.base import ENVIRONMENTS, Command, Defaults, Setup


class Litellm(Defaults):
    """``litellm[proxy]`` with one worker a process; it checks its own master key, no Flowstack key.

    It reads and rewrites bodies, so only the answers' text is compared, and it is far slower: its streams get a chunk
    each 400 ms, so that it keeps up.
    """

    name = "litellm"
    transparent = False
    checks_key = False
    bulk = False
    chunk_interval = 400
    streams = 100

    def install(self) -> None:
        """An environment of its own."""
        self._program()

    def version(self) -> str:
        """The package's version."""
        python = self._program().with_name("python")
        words = "from importlib.metadata import version; print('litellm', version('litellm'))"
        return provision.first_line([python, "-c", words])

    def command(self, setup: Setup) -> Command:
        """The provider's key is LiteLLM's master key, since both come in ``Authorization``."""
        document = {
            "model_list": [
                {
                    "model_name": "gpt-4o-mini",
                    "litellm_params": {
                        "model": "openai/gpt-4o-mini",
                        "api_base": f"{setup.upstream}/v1",
                        "api_key": setup.provider_key,
                    },
                }
            ],
            "general_settings": {"master_key": setup.provider_key},
            "litellm_settings": {"num_retries": 0},
        }
        path = setup.write("litellm.yaml", json.dumps(document))
        environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_PROXY": "*"}
        if setup.authority is not None:
            environment["SSL_CERT_FILE"] = str(setup.authority)
        argv = ("--config", path, "--host", "127.0.0.1", "--port", str(setup.port))
        return Command(
            (self._program(), *argv, "--num_workers", str(setup.workers), "--telemetry", "False"), environment, 90.0
        )

    def _program(self) -> Path:
        return provision.python(ENVIRONMENTS / "litellm", "litellm[proxy]", "litellm")


class Portkey(Defaults):
    """``@portkey-ai/gateway`` on Node; it checks no key, and takes the provider from header fields."""

    name = "portkey"
    transparent = False
    checks_key = False
    bulk = False
    chunk_interval = 100
    streams = 100

    def install(self) -> None:
        """A directory of its own."""
        self._script()

    def version(self) -> str:
        """The package's version."""
        package = json.loads((self._script().parents[1] / "package.json").read_text())
        return f"portkey gateway {package['version']}, node {provision.first_line(['node', '--version'])}"

    def command(self, setup: Setup) -> Command:
        """One process: it has no workers."""
        environment = {"NODE_ENV": "production"}
        if setup.authority is not None:
            environment["NODE_EXTRA_CA_CERTS"] = str(setup.authority)
        return Command(
            (provision.debian("node", "nodejs"), self._script(), f"--port={setup.port}", "--headless"),
            environment,
            30.0,
        )

    def headers(self, setup: Setup) -> dict[str, str]:
        """Which provider, and where."""
        return {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{setup.upstream}/v1"}

    def _script(self) -> Path:
        return provision.npm(ENVIRONMENTS / "portkey", "@portkey-ai/gateway", "build/start-server.js")
