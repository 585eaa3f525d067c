"""What a request may use, at most, as far as it can be told before it is sent."""

from __future__ import annotations

from flowstack.policy.usage.asked import Asked

BYTES_A_TOKEN = 4
"""Of a request's body. English text has a little more, JSON around it a little less; it need not be exact, since the
upstream's own figures take the estimate's place."""

MOST_PROMPT_TOKENS = 128_000
"""What is taken of a long body, since images and audio make bodies long without making as many tokens; and of a request
that adds what the upstream has stored, which may be a whole context."""


def estimated_tokens(asked: Asked, size: int, default_output: int) -> tuple[int, int]:
    """Tokens of the input and of the output, by estimate.

    :param size: bytes of the body.
    :param default_output: of each choice, where the request declares no most.
    """
    prompt = -(-size // BYTES_A_TOKEN)
    if prompt > MOST_PROMPT_TOKENS or asked.stored_context or asked.stored_prompt:
        prompt = MOST_PROMPT_TOKENS
    output = asked.output_tokens
    return prompt, default_output * (asked.n or 1) if output is None else output
