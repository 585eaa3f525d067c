"""What a request may use, at most, as far as it can be told before it is sent."""

from __future__ import annotations

from typing import Final

from flowstack.policy.usage.asked import MOST_COUNT, Asked

BYTES_A_TOKEN: Final = 4
"""Of a request's body, where it is text. English has a little more, JSON around it a little less; it need not be exact,
since the upstream's own figures take the estimate's place."""

MOST_PROMPT_TOKENS: Final = 128_000
"""What is taken of a long body; and of a request that adds what the upstream has stored, which may be a whole
context."""

PICTURE_TOKENS: Final = 1_500
"""Of a picture: with ``detail: high`` it has 85 tokens and 170 for each of at most 8 tiles, which are 1,445 (OpenAI,
"Images and vision")."""

_PICTURES: Final = (("gpt-4o-mini", 48_200), ("-nano", 3_800), ("-mini", 2_700))
"""Where a model's name has this in it, a picture is more tokens: 2,833 and 5,667 a tile; 1,536 patches times 2.46, or
times 1.72 (the same page)."""


def estimated_tokens(asked: Asked, size: int, default_output: int) -> tuple[int, int]:
    """Tokens of the input and of the output, by estimate.

    :param size: bytes of the body.
    :param default_output: of each choice, where the request declares no most.
    """
    inner = asked.inner
    prompt = -(-(size - inner.media) // BYTES_A_TOKEN) + inner.tokens
    if inner.pictures:
        prompt += inner.pictures * max(map(_picture_tokens, (asked.model or "", *inner.models)))
    if prompt > MOST_PROMPT_TOKENS or inner.context or asked.stored_prompt:
        prompt = MOST_PROMPT_TOKENS
    output = default_output if asked.output_tokens is None else asked.output_tokens
    return prompt, min(output * (asked.n or 1) * asked.prompts, MOST_COUNT)


def _picture_tokens(model: str) -> int:
    name = model.lower()
    for part, tokens in _PICTURES:
        if part in name:
            return tokens
    return PICTURE_TOKENS
