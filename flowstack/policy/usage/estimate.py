"""What a request may use, at most, as far as it can be told before it is sent."""

from __future__ import annotations

from flowstack.policy.usage.asked import Asked

BYTES_A_TOKEN = 4
"""Of a request's body. English text has a little more, JSON around it a little less; it need not be exact, since the
upstream's own figures take the estimate's place."""

MOST_PROMPT_TOKENS = 128_000
"""Images and audio make bodies long without making as many tokens."""


def estimated_tokens(asked: Asked, default_output: int) -> tuple[int, int]:
    """Tokens of the input and of the output, by estimate.

    What the upstream adds of its own, such as an earlier response, is not in the estimate.

    :param default_output: of each choice, where the request declares no most.
    """
    prompt = min(-(-asked.size // BYTES_A_TOKEN), MOST_PROMPT_TOKENS)
    return prompt, default_output * (asked.n or 1) if asked.output_tokens is None else asked.output_tokens
