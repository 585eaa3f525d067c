"""LlamaIndex's ``OpenAI`` with the retries that it makes by default: what it does about a refusal."""

from harness import run
from llama_index.llms.openai import OpenAI


def attempt(job, pieces):
    model = OpenAI(
        model="gpt-4o-mini",
        api_base=job["base_url"],
        api_key=job["api_key"],
        default_headers=job["headers"],
        timeout=20,
    )
    if not job.get("stream"):
        return model.complete("Hello").text
    for piece in model.stream_complete("Hello"):
        pieces.append(piece)
    return "the stream ended as if whole"


if __name__ == "__main__":
    run(attempt)
