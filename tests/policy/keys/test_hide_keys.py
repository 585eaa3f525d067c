from __future__ import annotations

import pytest

from flowstack.policy.keys import hide_keys, make_token

TOKEN = make_token(lambda size: bytes(range(size)))[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (TOKEN, "fsk-..."),
        (f"Bearer {TOKEN}, twice {TOKEN}", "Bearer fsk-..., twice fsk-..."),
        (f"/v1/{TOKEN}/x", "/v1/fsk-.../x"),
        (f"--{TOKEN}=1", "--fsk-...=1"),
        (TOKEN.lower(), "fsk-..."),
        ("sk-proj-Abc_def-0123456789", "sk-..."),
        ("'sk-abcdefgh'", "'sk-...'"),
        ("openai-insecure-api-key.sk-abcdefgh", "openai-insecure-api-key.sk-..."),
    ],
)
def test_whatever_looks_like_a_key_is_shortened(text: str, shown: str) -> None:
    assert hide_keys(text) == shown


@pytest.mark.parametrize(
    "text",
    ["", "nothing", "Flowstack-Auth: Bearer fsk-...", "the provider's key (sk-...)", "/v1/files/task-0123456789ab",
     "risk-assessment-of-2026", "disk-full-on-machine", "fsk-short", "sk-1234567"],
)  # fmt: skip
def test_other_words_stay(text: str) -> None:
    assert hide_keys(text) == text
