"""LangChain's ``ChatOpenAI`` with the retries that it makes by default: what it does about a refusal."""

from harness import run
from langchain_openai import ChatOpenAI


def attempt(job, pieces):
    model = ChatOpenAI(
        model="gpt-4o-mini",
        base_url=job["base_url"],
        api_key=job["api_key"],
        default_headers=job["headers"],
        timeout=20,
    )
    if not job.get("stream"):
        return model.invoke("Hello").text
    for chunk in model.stream("Hello"):
        pieces.append(chunk)
    return "the stream ended as if whole"


if __name__ == "__main__":
    run(attempt)
