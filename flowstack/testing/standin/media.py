"""What is not talk: embeddings, moderations, images, speech, transcriptions (OpenAI reference, each by its name)."""

from __future__ import annotations

import base64
import hashlib
import math
import random
import struct
import zlib
from array import array
from typing import Any

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.pattern import pattern
from flowstack.testing.standin.speech import identifier, tokens
from flowstack.testing.standin.values import (
    CREATED,
    Refused,
    Reply,
    Request,
    Usage,
    bytes_reply,
    json_reply,
    stream_reply,
)

_AUDIO = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def _inputs(value: Any) -> list[Any]:
    """One input or a list of them; a list of token numbers is one input."""
    if isinstance(value, str) or (value and all(isinstance(item, int) for item in value)):
        return [value]
    return list(value)


def _vector(seed: str, dimensions: int) -> array[float]:
    """A unit vector of 32-bit floats that follows from the seed."""
    source = random.Random(seed)
    raw = [source.uniform(-1, 1) for _ in range(dimensions)]
    norm = math.sqrt(sum(x * x for x in raw))
    return array("f", [x / norm for x in raw])


def embeddings(request: Request, directives: Directives) -> Reply:
    """``POST /v1/embeddings``: floats or base64 of little-endian 32-bit floats, both of the same numbers."""
    body = request.json
    model = request.need("model", str)
    inputs = _inputs(request.need("input", (str, list)))
    if not 1 <= len(inputs) <= 2048:
        raise Refused(400, "Invalid 'input': expected 1 to 2048 items.", param="input", code="invalid_value")
    size = body.get("dimensions") or (3072 if "large" in model else 1536)
    if not isinstance(size, int) or not 1 <= size <= 3072:
        raise Refused(400, "Invalid 'dimensions': expected 1 to 3072.", param="dimensions", code="invalid_value")
    encoded = body.get("encoding_format") == "base64"
    data = []
    for index, item in enumerate(inputs):
        vector = _vector(f"{model} {item}", size)
        value = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode("ascii") if encoded else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = Usage(prompt=sum(len(tokens(item)) if isinstance(item, str) else len(item) for item in inputs))
    counts = {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
    return json_reply({"object": "list", "data": data, "model": model, "usage": counts}, usage=usage)


_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def moderations(request: Request, directives: Directives) -> Reply:
    """``POST /v1/moderations``: an input is flagged where it holds the word ``violence``."""
    results = []
    for item in _inputs(request.need("input", (str, list))):
        bad = "violence" in str(item)
        hit = {name: bad and name == "violence" for name in _CATEGORIES}
        results.append(
            {
                "flagged": bad,
                "categories": hit,
                "category_scores": {name: 0.98 if hit[name] else 0.0001 for name in _CATEGORIES},
                "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
            }
        )
    model = request.json.get("model") or "omni-moderation-latest"
    return json_reply({"id": identifier("modr-", request), "model": model, "results": results})


def _png(seed: bytes) -> bytes:
    """A valid PNG of one pixel whose colour follows from the seed (PNG specification, §5)."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixel = zlib.compress(b"\x00" + hashlib.sha256(seed).digest()[:3])
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", pixel) + block(b"IEND", b"")


def images(request: Request, directives: Directives) -> Reply:
    """``POST /v1/images/generations``: pictures of one pixel, as ``b64_json``."""
    prompt = request.need("prompt", str)
    n = request.json.get("n") or 1
    if not isinstance(n, int) or not 1 <= n <= 10:
        raise Refused(400, "Invalid 'n': expected 1 to 10.", param="n", code="invalid_value")
    pictures = [base64.b64encode(_png(f"{prompt} {index}".encode())).decode("ascii") for index in range(n)]
    usage = Usage(prompt=len(tokens(prompt)), completion=272 * n)
    counts = {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"text_tokens": usage.prompt, "image_tokens": 0},
        "output_tokens": usage.completion,
        "total_tokens": usage.total,
    }
    return json_reply({"created": CREATED, "data": [{"b64_json": p} for p in pictures], "usage": counts}, usage=usage)


def speech(request: Request, directives: Directives) -> Reply:
    """``POST /v1/audio/speech``: 1000 bytes for each character, streamed; no audio, but every byte value."""
    request.need("model", str)
    request.need("voice", (str, dict))
    text = request.need("input", str)
    kind = request.json.get("response_format") or "mp3"
    if kind not in _AUDIO:
        raise Refused(400, f"Invalid 'response_format': {kind!r}.", param="response_format", code="invalid_value")
    return stream_reply(pattern(1000 * len(text), 4096), content_type=_AUDIO[kind])


def transcriptions(request: Request, directives: Directives) -> Reply:
    """``POST /v1/audio/transcriptions`` and ``translations``: the "text" names the file, its size and its SHA-256."""
    form = request.form
    for name in ("file", "model"):
        if name not in form:
            raise Refused(400, f"you must provide a {name} parameter", param=name)
    audio, model = form["file"], form["model"].text
    text = f"{audio.filename} has {len(audio.data)} bytes of SHA-256 {hashlib.sha256(audio.data).hexdigest()}"
    kind = form["response_format"].text if "response_format" in form else "json"
    seconds = 1 + len(audio.data) // 32000
    if kind == "json" and model == "whisper-1":
        return json_reply({"text": text, "usage": {"type": "duration", "seconds": seconds}})
    if kind == "json":
        usage = Usage(prompt=10 * seconds, completion=len(tokens(text)))
        counts = {
            "type": "tokens",
            "total_tokens": usage.total,
            "input_tokens": usage.prompt,
            "input_token_details": {"text_tokens": 0, "audio_tokens": usage.prompt},
            "output_tokens": usage.completion,
        }
        return json_reply({"text": text, "usage": counts}, usage=usage)
    if kind == "verbose_json":
        spoken = {"task": "transcribe", "language": "english", "duration": float(seconds), "text": text, "segments": []}
        return json_reply(spoken | {"usage": {"type": "duration", "seconds": seconds}})
    line = f"00:00:00,000 --> 00:00:{min(seconds, 59):02},000\n{text}\n\n"
    plain = {"text": f"{text}\n", "srt": f"1\n{line}", "vtt": "WEBVTT\n\n" + line.replace(",", ".", 2)}
    if kind not in plain:
        raise Refused(400, f"Invalid 'response_format': {kind!r}.", param="response_format", code="invalid_value")
    return bytes_reply(plain[kind].encode(), "text/plain; charset=utf-8")
