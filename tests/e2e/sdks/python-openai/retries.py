"""The newest ``openai`` for Python with its own retries left on: what it does about a refusal."""

import time

from harness import run
from openai import OpenAI


def attempt(job, pieces):
    openai = OpenAI(base_url=job["base_url"], api_key=job["api_key"], default_headers=job["headers"], max_retries=3)
    begun = time.monotonic()
    openai.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
    return time.monotonic() - begun


if __name__ == "__main__":
    run(attempt)
