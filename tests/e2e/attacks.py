"""Requests by which a limited key may try to get more than it has. Each asks for :data:`FORBIDDEN` in some way.

They go to an upstream that takes anything (:mod:`tests.e2e.lax`), so what Flowstack lets pass is served.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator

import brotli
import orjson
from attrs import frozen

ALLOWED, FORBIDDEN = b"gpt-4o-mini", b"o1-pro"
JSON = b"Content-Type: application/json"
CHAT, RESPONSES, SPEECH = b"/v1/chat/completions", b"/v1/responses", b"/v1/audio/transcriptions"


@frozen
class Attack:
    """One such request.

    :ivar fields: whole lines, beside Host and credentials.
    :ivar pieces: the body as it is written, each piece by a write of its own, in its transfer coding.
    :ivar plain: whether it is a good HTTP request, so that it is served to a key without limits.
    """

    name: str
    target: bytes
    fields: tuple[bytes, ...]
    pieces: tuple[bytes, ...]
    method: bytes = b"POST"
    plain: bool = True

    @property
    def line(self) -> bytes:
        """The request line."""
        return b"%b %b HTTP/1.1" % (self.method, self.target)


def chat(model: bytes = FORBIDDEN, *, last: bytes = b"") -> bytes:
    """A chat completion.

    :param last: further members, each with a comma before it.
    """
    return b'{"model":"%b","messages":[{"role":"user","content":"Hi"}]%b}' % (model, last)


def sized(
    name: str,
    body: bytes,
    *fields: bytes,
    length: int | None = None,
    target: bytes = CHAT,
    kind: bytes | None = JSON,
    method: bytes = b"POST",
    plain: bool = True,
) -> Attack:
    """With a Content-Length.

    :param length: what is announced, where that is more than what is sent.
    """
    said = b"Content-Length: %d" % (len(body) if length is None else length)
    return Attack(name, target, (*([kind] if kind else []), said, *fields), (body,), method, plain)


def chunked(name: str, *chunks: bytes, end: bytes = b"0\r\n\r\n", target: bytes = CHAT, kind: bytes = JSON) -> Attack:
    """In chunks.

    :param end: what follows the last of them; nothing leaves the body open.
    """
    pieces = tuple(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return Attack(name, target, (kind, b"Transfer-Encoding: chunked"), (*pieces, *([end] if end else [])))


def attacks() -> Iterator[Attack]:
    """All of them."""
    yield from _plain()
    yield from _open_ended()
    yield from _coded()
    yield from _doubtful_json()
    yield from _second_names()
    yield from _other_ways()
    yield from _numbers()
    yield from _forms()


def _plain() -> Iterator[Attack]:
    yield sized("as it should be", chat())
    yield chunked("in small chunks", *(chat()[at : at + 7] for at in range(0, len(chat()), 7)))
    long = b'{"messages":[{"role":"user","content":"%b"}],"model":"%b"}' % (b"a" * 200_000, FORBIDDEN)
    yield sized("model behind 200 kB", long)
    yield chunked("model behind 200 kB, chunked", *(long[at : at + 9_000] for at in range(0, len(long), 9_000)))
    yield sized("stream", chat(last=b',"stream":true'))
    yield sized("expects 100-continue", chat(), b"Expect: 100-continue")
    yield sized("another method", chat(), method=b"PUT")
    yield sized("a responses request", b'{"model":"%b","input":"Hi"}' % FORBIDDEN, target=RESPONSES)


def _open_ended() -> Iterator[Attack]:
    """The object is whole, the body never is."""
    for name, behind in {
        "nothing": b"",
        "letters": b"xx",
        "spaces": b" " * 70_000,
        "line ends": b"\r\n" * 40_000,
        "another object": chat(ALLOWED),
        "a NUL": b"\0",
        "a comma": b",",
    }.items():
        yield sized(f"never ends, {name} behind it", chat() + behind, length=1_000_000)
        yield chunked(f"never ends, {name} behind it, chunked", chat(), *([behind] if behind else []), end=b"")
    yield sized("never ends, another object before it", chat(ALLOWED) + chat(), length=1_000_000)
    yield sized("never ends, and no object closes", chat()[:-1], length=1_000_000, plain=False)
    yield chunked("a trailer field with a key", chat(), end=b"0\r\nFlowstack-Auth: Bearer x\r\n\r\n")


def _coded() -> Iterator[Attack]:
    plain = chat()
    for coding, body in {
        b"gzip": gzip.compress(plain),
        b"x-gzip": gzip.compress(plain),
        b"deflate": zlib.compress(plain),
        b"br": brotli.compress(plain),
        b"identity, gzip": gzip.compress(plain),
        b"GZIP": gzip.compress(plain),
        b"aws-chunked": plain,
        b"unheard-of": plain,
    }.items():
        field = b"Content-Encoding: " + coding
        yield sized(f"in {coding.decode()}", body, field)
        yield sized(f"in {coding.decode()}, never ends", body, field, length=1_000_000)
    yield sized("two codings", gzip.compress(plain), b"Content-Encoding: identity", b"Content-Encoding: gzip")
    for kind in (
        b"text/plain",
        b"application/x-ndjson",
        b"application/jsonp",
        b"application/json, text/plain",
        b"application/json; charset=utf-16",
        b"application/json; charset=utf-7",
        b"application/json; boundary=x",
        b"application/octet-stream",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data",
    ):
        yield sized(f"as {kind.decode()}", plain, kind=b"Content-Type: " + kind)
        yield sized(f"as {kind.decode()}, never ends", plain, kind=b"Content-Type: " + kind, length=1_000_000)
    yield sized("of two types", plain, b"Content-Type: text/plain")
    yield sized("in UTF-16", plain.decode().encode("utf-16"))
    wide = b"Content-Type: application/json; charset=utf-16"
    yield sized("in UTF-16, of that type", plain.decode().encode("utf-16"), kind=wide)


def _doubtful_json() -> Iterator[Attack]:
    a, f = ALLOWED, FORBIDDEN
    for name, body in {
        "model twice": b'{"model":"%b","model":"%b","messages":[]}' % (a, f),
        "model twice, the other way": b'{"model":"%b","model":"%b","messages":[]}' % (f, a),
        "model in other case": b'{"model":"%b","Model":"%b","messages":[]}' % (a, f),
        "model with a long s": b'{"model":"%b","MODEL":"%b"}' % (a, f),
        "model by an escape": b'{"model":"%b","mod\\u0065l":"%b"}' % (a, f),
        "model by another escape": b'{"model":"%b","\\u006Dodel":"%b"}' % (a, f),
        "model only by an escape": b'{"\\u006dodel":"%b"}' % f,
        "a name by escapes": b'{"model":"o1\\u002dpro"}',
        "a byte order mark": b"\xef\xbb\xbf" + chat(),
        "a form feed before it": b"\x0c" + chat(),
        "a line separator before it": b"\xe2\x80\xa8" + chat(),
        "a comment": b'{/* "model":"%b", */"model":"%b"}' % (a, f),
        "a comment to the line's end": b'{//"model":"%b",\n"model":"%b"}' % (a, f),
        "single quotes": b"{'model':'%b'}" % f,
        "no quotes": b'{model:"%b"}' % f,
        "a comma too many": b'{"model":"%b",}' % f,
        "a comma too many in a list": b'{"model":"%b","messages":[1,]}' % f,
        "NaN": b'{"model":"%b","temperature":NaN}' % f,
        "a number with a zero before it": b'{"model":"%b","seed":01}' % f,
        "a word that is none": b'{"model":"%b","x":truefalse}' % f,
        "a value that is none": b'{"model":"%b","x":[{"a" 1}]}' % f,
        "bad UTF-8": b'{"model":"%b","user":"\xff\xfe"}' % f,
        "an overlong form": b'{"model":"%b","user":"\xc0\xaf"}' % f,
        "a control character": b'{"model":"%b","user":"\x01"}' % f,
        "a line end in a string": b'{"model":"%b","user":"a\nb"}' % f,
        "a bad escape": b'{"model":"%b","user":"\\x41"}' % f,
        "half an escape": b'{"model":"%b","user":"\\u12"}' % f,
        "a list around it": b"[" + chat() + b"]",
        "lines of objects": chat(ALLOWED) + b"\n" + chat(),
        "a text around it": orjson.dumps(chat().decode()),
        "nested 2,000 deep": b'{"x":%b%b,"model":"%b"}' % (b"[" * 2_000, b"]" * 2_000, f),
        "a name of 70 kB": b'{"%b":1,"model":"%b"}' % (b"a" * 70_000, f),
        "a model of 70 kB": b'{"model":"%b"}' % (f + b" " * 70_000),
        "100 kB of spaces": b'{%b"model":"%b"}' % (b" " * 100_000, f),
        "model in a list": b'{"model":["%b"]}' % f,
        "model in an object": b'{"model":{"id":"%b"}}' % f,
        "model that is null": b'{"model":null,"x":"%b"}' % f,
        "no model": b'{"messages":[]}',
        "an empty object": b"{}",
    }.items():
        yield sized(name, body)
    yield sized("no body", b"")


def _second_names() -> Iterator[Attack]:
    a, f = ALLOWED, FORBIDDEN
    for name, more in {
        "a tool's model": b',"tools":[{"type":"image_generation","model":"%b"}]' % f,
        "a tool's model by an escape": b',"tools":[{"type":"image_generation","mod\\u0065l":"%b"}]' % f,
        "a tool's model in other case": b',"tools":[{"type":"image_generation","Model":"%b"}]' % f,
        "a router's models": b',"models":["%b"]' % f,
        "a router's fallbacks": b',"fallbacks":["%b"]' % f,
        "fallbacks as objects": b',"fallbacks":[{"model":"%b"}]' % f,
        "fallbacks by model": b',"fallbacks":[{"gpt-4o-mini":["%b"]}]' % f,
        "an extra body": b',"extra_body":{"model":"%b"}' % f,
        "a plugin's model": b',"plugins":[{"id":"x","model":"%b"}]' % f,
        "a session's model": b',"session":{"model":"%b"}' % f,
        "a transcription's model": b',"input_audio_transcription":{"model":"%b"}' % f,
    }.items():
        yield sized(name, chat(a, last=more))
        yield sized(f"{name}, behind 200 kB", chat(a, last=b',"user":"%b"%b' % (b"u" * 200_000, more)))
    yield sized("a model in the path", chat(a), target=b"/v1/engines/%b/chat/completions" % f)
    yield sized("a deployment in the path", chat(a), target=b"/v1/openai/deployments/%b/chat/completions" % f)
    yield sized("a model in the query", chat(a), target=CHAT + b"?model=" + f)
    yield sized("a model in the query, encoded", chat(a), target=CHAT + b"?%6dodel=" + f)
    yield sized("a deployment in a field", chat(a), b"azureml-model-deployment: " + f)


def _other_ways() -> Iterator[Attack]:
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        yield sized(f"GET, and {name}", chat(), f"{name}: POST".encode(), method=b"GET")
    for name in ("X-Original-URL", "X-Rewrite-URL", "X-Original-URI"):
        yield sized(f"the models, and {name}", chat(), f"{name}: /v1/chat/completions".encode(), target=b"/v1/models")
    for target in (
        b"/v1/chat/completions/",
        b"/v1/chat/completions/x",
        b"/v1/chat//completions",
        b"/v1//chat/completions",
        b"/v1/%63hat/completions",
        b"/v1/chat%2fcompletions",
        b"/v1/chat/completions;a=b",
        b"/v1/chat/completions%00",
        b"/v1/chat/completions%20",
        b"/v1/chat/completions%3fa",
        b"/v1/CHAT/completions",
        b"/v1/chat\\completions",
        b"/v1/models%2f..%2fchat%2fcompletions",
        b"/v1/models/..%00/chat/completions",
        b"/v1/models/%2e%2e/chat/completions",
        b"/v1/models/..;/chat/completions",
        b"/v1/models/%252e%252e/chat/completions",
        b"/v1/engines/x/../../chat/completions",
    ):
        yield sized(f"by {target.decode()}", chat(), target=target, plain=False)


def _numbers() -> Iterator[Attack]:
    for more in (
        b'"max_tokens":1e308,"n":1e308',
        b'"max_tokens":-1',
        b'"max_tokens":-1e308',
        b'"max_tokens":%b' % (b"9" * 5_000),
        b'"max_tokens":"%b"' % (b"9" * 5_000),
        b'"max_tokens":1e-400',
        b'"n":0',
        b'"n":1e19',
        b'"n":"12"',
        b'"best_of":1e308',
        b'"max_completion_tokens":1e999',
        b'"max_tokens":true',
        b'"max_tokens":{"a":1}',
        b'"max_output_tokens":18446744073709551616',
    ):
        yield sized(f"with {more[:40].decode()}", chat(last=b"," + more))


def part(head: bytes, body: bytes, end: bytes = b"\r\n") -> bytes:
    """A part of a form whose boundary is ``BB``."""
    return b"--BB%b%b%b%b%b%b" % (end, head, end, end, body, end)


def _forms() -> Iterator[Attack]:
    kind = b"Content-Type: multipart/form-data; boundary=BB"
    name = b'Content-Disposition: form-data; name="%b"'
    a, f = ALLOWED, FORBIDDEN
    sound = part(name % b'file"; filename="a.wav' + b"\r\nContent-Type: audio/wav", b"RIFF" * 20)
    allowed, forbidden = part(name % b"model", a), part(name % b"model", f)
    last = b"--BB--\r\n"
    for what, body in {
        "as it should be": sound + forbidden + last,
        "model twice": allowed + forbidden + sound + last,
        "model twice, the other way": forbidden + allowed + sound + last,
        "model[]": allowed + part(name % b"model[]", f) + sound + last,
        "model[0]": allowed + part(name % b"model[0]", f) + sound + last,
        "Model": allowed + part(name % b"Model", f) + sound + last,
        "a space before model": allowed + part(name % b" model", f) + sound + last,
        "a space behind model": allowed + part(name % b"model ", f) + sound + last,
        "model with a NUL": allowed + part(name % b"model\0", f) + sound + last,
        "model as an encoded word": allowed + part(name % b"=?utf-8?q?model?=", f) + sound + last,
        "name*": allowed + part(b"Content-Disposition: form-data; name*=utf-8''model", f) + sound + last,
        "name twice": part(b'Content-Disposition: form-data; name="x"; name="model"', f) + sound + last,
        "no quotes": part(b"Content-Disposition: form-data; name=model", f) + sound + last,
        "model as a file": allowed + part(name % b'model"; filename="m', f) + sound + last,
        "model in base64": part(name % b"model" + b"\r\nContent-Transfer-Encoding: base64", b"bzEtcHJv") + sound + last,
        "model in UTF-16": part(name % b"model" + b"\r\nContent-Type: text/plain; charset=utf-16", f) + sound + last,
        "a preamble": b"before it\r\n" + sound + forbidden + last,
        "an epilogue": sound + allowed + last + sound + forbidden + last,
        "bare line feeds": (sound + forbidden + last).replace(b"\r\n", b"\n"),
        "no last delimiter": sound + forbidden,
        "no model": sound + last,
        "a character set of its own": part(name % b"_charset_", b"utf-7") + sound + forbidden + last,
        "2,000 parts before it": part(name % b"x", b"y") * 2_000 + sound + forbidden + last,
    }.items():
        yield sized(f"form, {what}", body, target=SPEECH, kind=kind)
        whole = last[:-2] in body or last[:-2] in body.replace(b"\n", b"\r\n")
        yield sized(f"form, {what}, never ends", body, target=SPEECH, kind=kind, length=1_000_000, plain=whole)
    other = (b"--CC\r\n" + name % b"model" + b"\r\n\r\n" + f + b"\r\n--CC--\r\n") + sound + allowed + last
    for what, said in {
        "a boundary in quotes of another": b'multipart/form-data; x="; boundary=CC"; boundary=BB',
        "two boundaries": b"multipart/form-data; boundary=CC; boundary=BB",
        "two boundaries, one quoted": b'multipart/form-data; boundary="CC"; boundary=BB',
        "a boundary with a star": b"multipart/form-data; boundary*=utf-8''CC; boundary=BB",
        "a boundary in other case": b"multipart/form-data; Boundary=CC; boundary=BB",
        "two types": b"multipart/form-data; boundary=CC, multipart/form-data; boundary=BB",
        "another multipart": b"multipart/mixed; boundary=BB",
        "an escaped quote": b'multipart/form-data; boundary="C\\"C"; boundary=BB',
    }.items():
        yield sized(f"form, {what}", sound + forbidden + other + last, target=SPEECH, kind=b"Content-Type: " + said)
    packed = gzip.compress(sound + forbidden + last)
    yield sized("form, in gzip", packed, b"Content-Encoding: gzip", target=SPEECH, kind=kind)
    yield sized("form, as JSON", chat(), target=SPEECH)
    urlencoded = b"Content-Type: application/x-www-form-urlencoded"
    yield sized("form, urlencoded", b"model=" + f, target=SPEECH, kind=urlencoded)


def prying() -> Iterator[Attack]:
    """Requests for what others stored under the operator's provider key, each with nothing else wrong about it."""
    unread = {
        "a byte order mark", "a comment", "no quotes", "a comma too many", "NaN", "bad UTF-8", "a control character",
        "a bad escape", "lines of objects", "a list around it",
    }  # fmt: skip
    yield from (attack for attack in _doubtful_json() if attack.name in unread)
    yield from _coded()
    yield from (attack for attack in _open_ended() if "letters" in attack.name or "another object" in attack.name)
    ask = b'{"model":"gpt-4o-mini","input":%b%b}'
    text = b'"Hi"'
    for name, body in {
        "an earlier response": ask % (text, b',"previous_response_id":"resp_STORED"'),
        "an earlier response by an escape": ask % (text, b',"previous_response\\u005fid":"resp_STORED"'),
        "an earlier response in other case": ask % (text, b',"Previous_Response_Id":"resp_STORED"'),
        "an earlier response, said twice": ask
        % (text, b',"previous_response_id":null,"previous_response_id":"resp_STORED"'),
        "a conversation": ask % (text, b',"conversation":"conv_STORED"'),
        "a conversation as an object": ask % (text, b',"conversation":{"id":"conv_STORED"}'),
        "a prompt": ask % (text, b',"prompt":{"id":"pmpt_STORED"}'),
        "an item": ask % (b'[{"type":"item_reference","id":"msg_STORED"}]', b""),
        "an item by an escape": ask % (b'[{"type":"item\\u005freference","id":"msg_STORED"}]', b""),
        "an item without a type": ask % (b'[{"id":"msg_STORED"}]', b""),
        "a file": ask % (b'[{"role":"user","content":[{"type":"input_file","file_id":"file-STORED"}]}]', b""),
        "an image": ask % (b'[{"role":"user","content":[{"type":"input_image","file_id":"file-STORED"}]}]', b""),
        "vector stores": ask % (text, b',"tools":[{"type":"file_search","vector_store_ids":["vs_STORED"]}]'),
        "a container": ask % (text, b',"tools":[{"type":"code_interpreter","container":"cntr_STORED"}]'),
        "a container's files": ask
        % (text, b',"tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["file-STORED"]}}]'),
    }.items():
        yield sized(f"refers to {name}", body, target=RESPONSES)
        filled = body[:-1] + b',"user":"%b"}' % (b"u" * 200_000)
        yield sized(f"refers to {name}, before 200 kB", filled, target=RESPONSES)
        filled = b'{"user":"%b",' % (b"u" * 200_000) + body[1:]
        yield sized(f"refers to {name}, behind 200 kB", filled, target=RESPONSES)
    hello = b'"messages":[{"role":"user","content":%b}]'
    yield sized("refers to a file in a chat", b'{"model":"gpt-4o-mini",%b}' % (
        hello % b'[{"type":"file","file":{"file_id":"file-STORED"}}]'))  # fmt: skip
    yield sized("refers to an earlier answer's audio", b'{"model":"gpt-4o-audio","messages":[{"role":"assistant",'
                b'"audio":{"id":"audio_STORED"}}]}')  # fmt: skip
    for method, target in (
        (b"GET", b"/v1/files"),
        (b"GET", b"/v1/files/file-STORED/content"),
        (b"GET", b"/v1/responses/resp_STORED"),
        (b"GET", b"/v1/responses/resp_STORED/input_items"),
        (b"GET", b"/v1/chat/completions"),
        (b"GET", b"/v1/chat/completions/chatcmpl-STORED"),
        (b"DELETE", b"/v1/models/ft:STORED"),
        (b"GET", b"/v1/models/..%00/files"),
        (b"GET", b"/v1/models/%2e%2e/files"),
        (b"GET", b"/v1/models/..%2ffiles"),
        (b"GET", b"/v1/models/..;/files"),
        (b"GET", b"/v1/models/%252e%252e/files"),
        (b"GET", b"/v1/models/..%5cfiles"),
        (b"GET", b"/v1/models/%c0%ae%c0%ae/files"),
        (b"GET", b"/v1/models//../files"),
        (b"GET", b"/v1/batches"),
        (b"GET", b"/v1/organization/costs"),
        (b"POST", b"/v1/vector_stores/vs_STORED/search"),
    ):
        yield sized(f"{method.decode()} {target.decode()}", b"", target=target, kind=None, method=method, plain=False)
    for name, field, target in (
        ("another path", b"X-Original-URL: /v1/files", b"/v1/models"),
        ("another method", b"X-HTTP-Method-Override: DELETE", b"/v1/models/ft:STORED"),
    ):
        yield sized(f"the models, with {name} in a field", b"", field, target=target, kind=None, method=b"GET")
