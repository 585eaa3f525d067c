"""Estimate what a request may use, before it is sent."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from flowstack.usage.operations import Operation
from flowstack.usage.request_facts import MAX_NUMBER, NOTHING, RequestFacts

BYTES_A_TOKEN: Final = 4
"""Of a request's body, where it is text, as usual. English has a little more, JSON around it a little less; it need not
be exact, since the upstream's own figures take the estimate's place. What a budget reserves is 1: no tokeniser that
goes by bytes makes more tokens of a text than it has bytes."""

BYTES_A_NUMBER: Final = 2
"""Of a body that may have its input as a list of tokens (completions, embeddings): each has a digit and a comma."""

STORED_CONTEXT: Final = 128_000
"""What is taken where the upstream adds what it has stored or finds, which may be a whole context."""

MAX_PROMPT_TOKENS: Final = 1_050_000
"""What is taken of the longest body: the largest context there is (OpenAI, "Models": gpt-4.1, gpt-5.4)."""

OUTPUT_TOKENS: Final = 4_096
"""Output taken where neither the request, the operator nor the table of prices states a maximum."""

IMAGE_TOKENS: Final = 6_600
"""Of a picture that is made: 6,240 at ``quality: high`` and 1024 x 1536, the most, and three partial ones with 100
each (OpenAI, "Image generation")."""

PICTURE_TOKENS: Final = 1_500
"""Of a picture: with ``detail: high`` it has 85 tokens and 170 for each of at most 8 tiles, which are 1,445 (OpenAI,
"Images and vision")."""

_PICTURES: Final = (("gpt-image", 6_300), ("gpt-4o-mini", 48_200), ("-nano", 3_800), ("-mini", 2_700))
"""Where a model's name has this in it, a picture is more tokens: 6,240 with ``input_fidelity: high``; 2,833 and 5,667 a
tile; 1,536 patches times 2.46, or times 1.72 (the same pages)."""

_FILE_TOKENS: Final = 8_000
"""Of one part of a form with pictures: a picture, or the 32,000 characters that a prompt may have."""

_SOUND_TOKENS: Final = 25
"""For 1,000 bytes of a recording, of which none has less than 750 a second: 1,000 tokens a minute are billed (OpenAI,
"Pricing": transcription)."""

_SPOKEN: Final = 2
"""Tokens of speech for a byte of the text: 20 a second, in which hardly fewer than 10 characters are spoken."""

DEFAULT_IMAGE_MODEL: Final = "gpt-image-1"
"""Who draws where a tool names no model (OpenAI reference, responses, ``tools``)."""


@dataclass(frozen=True)
class Measure:
    """By what the bodies of an operation are measured.

    :ivar declared: the members that declare the most output. What others say is no promise.
    :ivar bytes_a_token: of a body.
    :ivar output: of each choice, where it is the same for all; None where it is not.
    :ivar most: of each choice, where no most is declared, whatever the model; None where the model decides.
    :ivar spoken: whether the answer is the body's text as speech.
    :ivar heard: whether a form is a recording.
    :ivar batch: whether a body has many requests.
    """

    declared: Set[str] = frozenset()
    bytes_a_token: int = BYTES_A_TOKEN
    output: int | None = None
    most: int | None = None
    spoken: bool = False
    heard: bool = False
    batch: bool = False


_ALL: Final = frozenset(("max_tokens", "max_completion_tokens", "max_output_tokens"))
_MEASURES: Final = {
    "chat": Measure(_ALL - {"max_output_tokens"}),
    "completions": Measure(frozenset(("max_tokens",)), BYTES_A_NUMBER),
    "responses": Measure(frozenset(("max_output_tokens",))),
    "messages": Measure(frozenset(("max_tokens",))),
    "realtime": Measure(frozenset(("max_output_tokens", "max_response_output_tokens"))),
    "embeddings": Measure(bytes_a_token=BYTES_A_NUMBER, output=0),
    "moderations": Measure(output=0),
    "images": Measure(most=IMAGE_TOKENS),
    "audio": Measure(heard=True),
    "batch": Measure(batch=True),
}
_SPEECH: Final = Measure(output=0, spoken=True)
_OTHER: Final = Measure(_ALL)


def measure_of(operation: Operation) -> Measure:
    """By what the bodies of an operation are measured."""
    return _SPEECH if operation.name == "speech" else _MEASURES.get(operation.family, _OTHER)


Estimate = tuple[int, int, int | None, int, int, int]
"""What a request may use, in tokens: of the input; the same at most, with a token for each byte of text, and what is
named by its address as large as may be; of the answer, or None where no most is declared. Where that is so, how many
choices there may be, the least that each of them may have, and what comes in addition to all."""


def output_of(estimate: Estimate, undeclared: int) -> int:
    """Tokens of the answer.

    :param undeclared: taken for each choice that declares no maximum.
    """
    _, _, output, choices, least, more = estimate
    if output is not None:
        return output
    return min((undeclared if undeclared > least else least) * choices + more, MAX_NUMBER)


def estimated(asked: RequestFacts, size: int, measure: Measure) -> Estimate:
    """What a request may use, by estimate. More input, prompts, choices, references never make it less.

    :param size: bytes of the body.
    """
    if measure.batch:
        return _of_batch(asked, size, measure)
    inner = asked.inner
    if inner is NOTHING and not asked.parts:
        prompt, most_prompt = -(-size // measure.bytes_a_token), size
    else:
        prompt, most_prompt = _prompt(asked, size, measure)
    if most_prompt > MAX_PROMPT_TOKENS:
        most_prompt = MAX_PROMPT_TOKENS
        if prompt > most_prompt:
            prompt = most_prompt
    if most_prompt < STORED_CONTEXT or prompt < STORED_CONTEXT:
        if inner.context or asked.stored_prompt:
            prompt = max(prompt, STORED_CONTEXT)
            most_prompt = max(most_prompt, STORED_CONTEXT)
        elif inner.remote:
            most_prompt = max(most_prompt, STORED_CONTEXT)
    choices = (asked.n or 1) * asked.prompts
    more = prompt if asked.predicted else 0
    if measure.spoken:
        more += _SPOKEN * size
    each, least = measure.output, asked.thinking
    if asked.limits:
        for name, count in asked.limits.items():
            if name not in measure.declared:
                least = max(least, count)
            elif each is None or each < count:
                each = count
    if each is None:
        return prompt, most_prompt, None, choices, least, more
    if measure.output is None and least > each:
        each = least
    return prompt, most_prompt, min(each * choices + more, MAX_NUMBER), 1, 0, 0


def _of_batch(asked: RequestFacts, size: int, measure: Measure) -> Estimate:
    """The sum over a batch's requests. Which of them have what is not held: what one has, each may have."""
    inner, count = asked.inner, max(1, asked.inner.requests)
    prompt, most_prompt = _prompt(asked, size, measure)
    prompt += STORED_CONTEXT * count if inner.context else 0
    most_prompt += STORED_CONTEXT * count if inner.context or inner.remote else 0
    most_prompt = min(most_prompt, MAX_PROMPT_TOKENS * count)
    prompt = min(prompt, most_prompt)
    declared = min(inner.declared, MAX_NUMBER)
    return prompt, most_prompt, None if inner.undeclared else declared, inner.undeclared, 0, declared


def _prompt(asked: RequestFacts, size: int, measure: Measure) -> tuple[int, int]:
    inner = asked.inner
    if asked.parts:
        if measure.heard:
            tokens = min(-(-size * _SOUND_TOKENS // 1_000), STORED_CONTEXT)
        else:
            text = min(-(-size // measure.bytes_a_token), asked.parts * _FILE_TOKENS)
            tokens = max(text, asked.files * _picture_tokens(asked.model or ""))  # a large picture may be few bytes
        return tokens, tokens
    text, other = size - inner.media, inner.tokens
    if inner.pictures:
        other += inner.pictures * max(map(_picture_tokens, (asked.model or "", *inner.models)))
    return -(-text // measure.bytes_a_token) + other, text + other


def _picture_tokens(model: str) -> int:
    name = model.lower()
    for part, tokens in _PICTURES:
        if part in name:
            return tokens
    return PICTURE_TOKENS
