"""Reads bodies as servers in Python do.

A line of JSON in, ``{"type": the Content-Type, "body": base64}``; a line out, by parser what a handler finds,
``[[name, value], …]``, or null where the parser refuses.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from email.parser import BytesParser
from typing import Any

import django.conf
import msgspec
import multipart
import orjson
import tornado.httputil
import ujson
import werkzeug.formparser
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.http.multipartparser import MultiPartParser
from starlette.requests import Request

Found = list[tuple[str, Any]]

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
django.conf.settings.configure()
logging.disable()
warnings.simplefilter("ignore")


def text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def in_werkzeug(kind: str, body: bytes) -> Found:
    environ = {"CONTENT_TYPE": kind, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
    parser = werkzeug.formparser.FormDataParser(silent=False)
    _, fields, files = parser.parse_from_environ(environ | {"REQUEST_METHOD": "POST"})
    return [*fields.items(multi=True), *((name, text(file.read())) for name, file in files.items(multi=True))]


def in_django(kind: str, body: bytes) -> Found:
    meta = {"CONTENT_TYPE": kind, "CONTENT_LENGTH": str(len(body))}
    handlers = [MemoryFileUploadHandler()]
    fields, files = MultiPartParser(meta, io.BytesIO(body), handlers, "utf-8").parse()
    found = [(name, value) for name, values in fields.lists() for value in values]
    return found + [(name, text(file.read())) for name, values in files.lists() for file in values]


def in_starlette(kind: str, body: bytes) -> Found:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> Found:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode("latin-1"))]}
        form = await Request(scope, receive).form()
        return [
            (name, value if isinstance(value, str) else text(await value.read())) for name, value in form.multi_items()
        ]

    return loop.run_until_complete(read())


def in_aiohttp(kind: str, body: bytes) -> Found:
    async def read() -> Found:
        payload = StreamReader(BaseProtocol(loop), 2**20, loop=loop)
        payload.feed_data(body)
        payload.feed_eof()
        request = make_mocked_request("POST", "/", {"Content-Type": kind}, payload=payload)
        form = await request.post()
        return [
            (name, text(value if isinstance(value, (str, bytes, bytearray)) else value.file.read()))
            for name, value in form.items()
        ]

    return loop.run_until_complete(read())


def in_tornado(kind: str, body: bytes) -> Found:
    fields: dict[str, list[bytes]] = {}
    files: dict[str, list[tornado.httputil.HTTPFile]] = {}
    tornado.httputil.parse_body_arguments(kind, body, fields, files)
    found = [(name, text(value)) for name, values in fields.items() for value in values]
    return found + [(name, text(file.body)) for name, values in files.items() for file in values]


def in_multipart(kind: str, body: bytes) -> Found:
    environ = {"CONTENT_TYPE": kind, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
    fields, files = multipart.parse_form_data(environ | {"REQUEST_METHOD": "POST"}, ignore_errors=False)
    return [*fields.iterallitems(), *((name, text(file.raw)) for name, file in files.iterallitems())]


def in_email(kind: str, body: bytes) -> Found:
    head = b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n"
    found = []
    for part in BytesParser().parsebytes(head + body).walk():
        name = part.get_param("name", header="content-disposition")
        if name is not None:
            name = name[2] if isinstance(name, tuple) else name
            found.append((name, text(part.get_payload(decode=True) or b"")))
    return found


def members(loads: Callable[[bytes], Any]) -> Callable[[str, bytes], Found]:
    def read(_: str, body: bytes) -> Found:
        return [(name, json.dumps(value)) for name, value in loads(body).items()]

    return read


FORMS = {
    "Werkzeug": in_werkzeug,
    "Django": in_django,
    "Starlette": in_starlette,
    "aiohttp": in_aiohttp,
    "Tornado": in_tornado,
    "multipart": in_multipart,
    "email": in_email,
}
JSON = {
    "json": members(json.loads),
    "orjson": members(orjson.loads),
    "msgspec": members(msgspec.json.decode),
    "ujson": members(ujson.loads),
}


def read(parser: Callable[[str, bytes], Found], kind: str, body: bytes) -> Found | None:
    try:
        return parser(kind, body)
    except Exception:  # whatever a parser raises, its server answers with an error
        return None


for line in sys.stdin:
    asked = json.loads(line)
    kind, body = asked["type"], base64.b64decode(asked["body"])
    parsers = JSON if "json" in kind.lower() else FORMS
    print(json.dumps({name: read(parser, kind, body) for name, parser in parsers.items()}), flush=True)
