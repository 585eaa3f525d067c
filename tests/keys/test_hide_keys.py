from __future__ import annotations

import pytest

from flowstack.keys import hide_keys, make_token

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
        (f"Bearer {TOKEN}~sk-abcdefgh", "Bearer fsk-..."),
        (f"Bearer {TOKEN}~0123/abc+def==, and", "Bearer fsk-..., and"),
        (f"/v1/{TOKEN}%7E0123abc 'x'", "/v1/fsk-... 'x'"),
        (f"{TOKEN.lower()}%7eAIzaSy'", "fsk-...'"),
        ("/v1/x%2Fsk-abcdefgh?a=%66sk-abcdefgh", "/v1/x%2Fsk-...?a=%66sk-..."),
        ("sk-abcdefgh~of-another", "sk-..."),
        ("Bearer my+own/key==~sk-abcdefgh, and", "Bearer ...~sk-..., and"),
        ('key="my~own~key%7Esk-abcdefgh"', 'key="...%7Esk-..."'),
        (f"my-key~{TOKEN}", "my-key~fsk-..."),
    ],
)
def test_whatever_looks_like_a_key_is_shortened(text: str, shown: str) -> None:
    assert hide_keys(text) == shown


@pytest.mark.parametrize(
    "text",
    ["", "nothing", "~/risk-and-reward", "a~b", "my-key~sk-short", "%2Frisk-assessment-of-2026",
     "Flowstack-Auth: Bearer fsk-...", "the provider's key (sk-...)", "/v1/files/task-0123456789ab",
     "risk-assessment-of-2026", "disk-full-on-machine", "fsk-short", "sk-1234567"],
)  # fmt: skip
def test_other_words_stay(text: str) -> None:
    assert hide_keys(text) == text
