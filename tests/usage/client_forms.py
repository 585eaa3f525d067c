"""Forms as the usual clients write them, byte for byte; all ask for the model whisper-1."""

from __future__ import annotations

AUDIO = b"ID3\x04\x00\r\n--x\r\n"


def _form(boundary: bytes, *parts: tuple[bytes, bytes], end: bytes = b"\r\n") -> bytes:
    lines = (b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, data) for head, data in parts)
    return b"".join(lines) + b"--%b--%b" % (boundary, end)


def _named(name: bytes, text: bytes) -> tuple[bytes, bytes]:
    return b'Content-Disposition: form-data; name="%b"' % name, text


def _file(filename: bytes, kind: bytes = b"application/octet-stream", name: bytes = b"file") -> tuple[bytes, bytes]:
    head = b'Content-Disposition: form-data; name="%b"; filename="%b"\r\nContent-Type: %b' % (name, filename, kind)
    return head, AUDIO


_MODEL = _named(b"model", b"whisper-1")
_WORDS = _named(b"timestamp_granularities[]", b"word")
_SEGMENTS = _named(b"timestamp_granularities[]", b"segment")
_LOGPROBS = _named(b"include[]", b"logprobs")
_STREAM = _named(b"stream", b"true")
_PROMPT = _named(b"prompt", "p\nq é".encode())
_E_ACUTE = "é %22b%22.mp3".encode()
_GUID = b"5e1f0a51-6b0f-4c53-9a2b-0f1f3d1b7c11"

CLIENTS: dict[str, tuple[bytes, bytes]] = {
    "openai-python, httpx": (
        b"multipart/form-data; boundary=13090c884fad7509fd3560d8452d8a4e",
        _form(b"13090c884fad7509fd3560d8452d8a4e", _MODEL, _LOGPROBS, _STREAM, _WORDS, _SEGMENTS,
              _file(_E_ACUTE, b"audio/mpeg")),
    ),
    "openai-python, images": (
        b"multipart/form-data; boundary=b09d27580303d53a251ceb378fa3c3bb",
        _form(b"b09d27580303d53a251ceb378fa3c3bb", _PROMPT, _MODEL, _named(b"n", b"2"),
              _file(b"a.png", b"image/png", b"image[]"), _file(b"b.png", b"image/png", b"image[]")),
    ),
    "openai-python 0.28, requests": (
        b"multipart/form-data; boundary=ca6472f1f227994fcc2ebb014a3476be",
        _form(b"ca6472f1f227994fcc2ebb014a3476be", _MODEL, _file(_E_ACUTE)),
    ),
    "openai-node 7": (
        b"multipart/form-data; boundary=openai-hgk407ptqqk",
        _form(b"openai-hgk407ptqqk", _MODEL, _file(_E_ACUTE), _WORDS, _STREAM),
    ),
    "openai-node 4, formdata-node": (
        b"multipart/form-data; boundary=form-data-boundary-zyy0sh5lxkiwifus",
        _form(b"form-data-boundary-zyy0sh5lxkiwifus", _MODEL, _WORDS, _STREAM, _file(_E_ACUTE), end=b"\r\n\r\n"),
    ),
    "curl -F": (
        b"multipart/form-data; boundary=------------------------98dc53a3526baaf8",
        _form(b"------------------------98dc53a3526baaf8", _MODEL, _file(b"a.mp3"), _WORDS,
              (_PROMPT[0] + b"\r\nContent-Type: text/plain", b"a")),
    ),
    "undici": (
        b"multipart/form-data; boundary=----formdata-undici-011717806177",
        _form(b"----formdata-undici-011717806177", _MODEL, _file(_E_ACUTE, b"audio/webm;codecs=opus"), _LOGPROBS,
              _file(b"blob", name=b"mask")),
    ),
    "Chrome, Safari": (
        b"multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
        _form(b"----WebKitFormBoundary7MA4YWxkTrZu0gW", _MODEL, _file(b"", name=b"mask"), _file(_E_ACUTE,
        b"audio/wav")),
    ),
    "Firefox": (
        b"multipart/form-data; boundary=---------------------------735323031399963166993862150",
        _form(b"---------------------------735323031399963166993862150", _MODEL, _file("日本　語.wav".encode())),
    ),
    "Node's form-data": (
        b"multipart/form-data; boundary=--------------------------515890814546601021194782",
        _form(b"--------------------------515890814546601021194782", _MODEL, _file(b"a.mp3", b"audio/mpeg")),
    ),
    "aiohttp": (
        b"multipart/form-data; boundary=630881eb17af447baf9bd13bbffa482c",
        _form(
            b"630881eb17af447baf9bd13bbffa482c",
            (b"Content-Type: text/plain; charset=utf-8\r\n" + _MODEL[0], b"whisper-1"),
            (b'Content-Type: audio/mpeg\r\nContent-Disposition: form-data; name="file"; filename="%C3%A9%20%22b.mp3"',
             AUDIO),
        ),
    ),
    "urllib3 1.24": (
        b"multipart/form-data; boundary=0123456789abcdef0123456789abcdef",
        _form(b"0123456789abcdef0123456789abcdef", _MODEL,
              (b"Content-Disposition: form-data; name=\"file\"; filename*=utf-8''%C3%A9.mp3", AUDIO)),
    ),
    "Go": (
        b"multipart/form-data; boundary=67f857a4c326047f6c480a336f46e50535b8ebf9c275743fa958e7d6f4d3",
        _form(b"67f857a4c326047f6c480a336f46e50535b8ebf9c275743fa958e7d6f4d3", _MODEL, _file(b"a.mp3")),
    ),
    "OkHttp": (
        b"multipart/form-data; boundary=" + _GUID,
        _form(_GUID, (_MODEL[0] + b"\r\nContent-Length: 9", b"whisper-1"),
              (_file(b"a.mp3", b"audio/mpeg")[0] + b"\r\nContent-Length: %d" % len(AUDIO), AUDIO)),
    ),
    "Apache HttpClient": (
        b"multipart/form-data; boundary=-_7jKq2LmNpRsTuVwXyZ0123456789",
        _form(
            b"-_7jKq2LmNpRsTuVwXyZ0123456789",
            (_MODEL[0] + b"\r\nContent-Type: text/plain; charset=ISO-8859-1\r\nContent-Transfer-Encoding: 8bit",
             b"whisper-1"),
            (_file(b"a.mp3")[0] + b"\r\nContent-Transfer-Encoding: binary", AUDIO),
        ),
    ),
    "Spring": (
        b"multipart/form-data;charset=UTF-8;boundary=ZlSqIdjQXn0aoLqhWcKkCCiB2fFIhEDv2Tjd",
        _form(
            b"ZlSqIdjQXn0aoLqhWcKkCCiB2fFIhEDv2Tjd",
            (_MODEL[0] + b"\r\nContent-Type: text/plain;charset=UTF-8\r\nContent-Length: 9", b"whisper-1"),
            (_file(b"a.mp3", b"audio/mpeg")[0] + b"\r\nContent-Length: %d" % len(AUDIO), AUDIO),
        ),
    ),
    "Dart": (
        b"multipart/form-data; boundary=dart-http-boundary-+XyZ_0.9abcDEF+0123456789abcdefghijklmnopqrstuvwx",
        _form(
            b"dart-http-boundary-+XyZ_0.9abcDEF+0123456789abcdefghijklmnopqrstuvwx",
            (b'content-disposition: form-data; name="model"', b"whisper-1"),
            (b'content-type: audio/mpeg\r\ncontent-disposition: form-data; name="file"; filename="a.mp3"', AUDIO),
        ),
    ),
    "Ruby's multipart-post": (
        b"multipart/form-data; boundary=-----------RubyMultipartPost-0a1b2c3d4e5f",
        _form(
            b"-----------RubyMultipartPost-0a1b2c3d4e5f",
            _MODEL,
            (_file(b"a.mp3")[0].replace(b"\r\n", b"\r\nContent-Length: %d\r\n" % len(AUDIO))
             + b"\r\nContent-Transfer-Encoding: binary", AUDIO),
            end=b"\r\n\r\n",
        ),
    ),
    "Guzzle": (
        b"multipart/form-data; boundary=7f3b1c5d9e0a2b4c6d8e0f1a3b5c7d9e1f2a4b6c",
        _form(b"7f3b1c5d9e0a2b4c6d8e0f1a3b5c7d9e1f2a4b6c",
              (_MODEL[0] + b"\r\nContent-Length: 9", b"whisper-1"), _file(b"a.mp3", b"audio/mpeg")),
    ),
    "reqwest": (
        b"multipart/form-data; boundary=c1f2d3e4b5a69788-0011223344556677-8899aabbccddeeff-0123456789abcdef",
        _form(b"c1f2d3e4b5a69788-0011223344556677-8899aabbccddeeff-0123456789abcdef", _MODEL, _file(b"a.mp3")),
    ),
    ".NET": (
        b'multipart/form-data; boundary="' + _GUID + b'"',
        _form(
            _GUID,
            (b"Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model", b"whisper-1"),
            (b"Content-Disposition: form-data; name=file; filename=a.mp3; filename*=utf-8''a.mp3", AUDIO),
        ),
    ),
}  # fmt: skip
