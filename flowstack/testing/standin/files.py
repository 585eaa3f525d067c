"""Models, files and batches: what is listed, kept and fetched (OpenAI reference, each by its name)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import orjson
from attrs import field, frozen

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.store import Store
from flowstack.testing.standin.values import CREATED, Refused, Reply, Request, Usage, bytes_reply, json_reply

_MODELS = {
    "gpt-3.5-turbo": "openai",
    "gpt-3.5-turbo-instruct": "openai",
    "gpt-4": "openai",
    "gpt-4.1": "system",
    "gpt-4.1-mini": "system",
    "gpt-4o": "system",
    "gpt-4o-mini": "system",
    "gpt-5": "system",
    "gpt-image-1": "system",
    "o3": "system",
    "omni-moderation-latest": "system",
    "text-embedding-3-large": "system",
    "text-embedding-3-small": "system",
    "tts-1": "openai-internal",
    "whisper-1": "openai-internal",
}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": _MODELS[name]}


def models(request: Request, directives: Directives) -> Reply:
    """``GET /v1/models``."""
    return json_reply({"object": "list", "data": [_model(name) for name in _MODELS]})


def model(request: Request, directives: Directives, name: str) -> Reply:
    """``GET /v1/models/{model}``."""
    if name not in _MODELS:
        raise Refused(404, f"The model '{name}' does not exist", param="model", code="model_not_found")
    return json_reply(_model(name))


@frozen
class _File:
    meta: dict[str, Any]
    data: bytes = field(repr=False)


def _page(items: Iterable[dict[str, Any]], request: Request) -> Reply:
    """One page of a list, by ``after`` and ``limit``."""
    found = list(items)
    after = next((n for n, item in enumerate(found) if item["id"] == request.query.get("after")), -1)
    asked = request.query.get("limit", "20")
    limit = int(asked) if asked.isascii() and asked.isdigit() else 20
    page = found[after + 1 : after + 1 + limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return json_reply({"object": "list", "data": page, **ends, "has_more": after + 1 + limit < len(found)})


class Files:
    """The endpoints under ``/v1/files`` and ``/v1/batches``; 256 MiB of files are kept at the most.

    :param answer: to a request of a batch, given its URL and its body.
    """

    def __init__(self, answer: Callable[[str, Any], Reply]) -> None:
        self._answer = answer
        self._files = Store[_File]("File", count=1000, measure=lambda file: len(file.data))
        self._batches = Store[dict[str, Any]]("Batch", count=1000)
        self._numbers = count(1)

    def _identity(self, prefix: str) -> str:
        return prefix + hashlib.sha256(f"{prefix}{next(self._numbers)}".encode()).hexdigest()[:24]

    def upload(self, request: Request, directives: Directives) -> Reply:
        """``POST /v1/files``."""
        form = request.form
        for name in ("file", "purpose"):
            if name not in form:
                raise Refused(400, f"'{name}' is a required property", param=name)
        part = form["file"]
        meta = _meta(self._identity("file-"), form["purpose"].text, part.filename or "upload", len(part.data))
        self._files.put(str(meta["id"]), _File(meta, part.data))
        return json_reply(meta)

    def list_files(self, request: Request, directives: Directives) -> Reply:
        """``GET /v1/files``."""
        wanted = request.query.get("purpose")
        found = (file.meta for file in self._files.newest_first())
        return _page((meta for meta in found if wanted in (None, meta["purpose"])), request)

    def file(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``GET /v1/files/{id}``."""
        return json_reply(self._files.get(identity).meta)

    def delete(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``DELETE /v1/files/{id}``."""
        self._files.remove(identity)
        return json_reply({"object": "file", "id": identity, "deleted": True})

    def content(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``GET /v1/files/{id}/content``: the bytes that were uploaded."""
        file = self._files.get(identity)
        name = file.meta["filename"].encode("ascii", "replace").replace(b'"', b"'")
        disposition = b'attachment; filename="' + name.replace(b"\r", b"").replace(b"\n", b"") + b'"'
        return bytes_reply(file.data, "application/octet-stream", headers=((b"Content-Disposition", disposition),))

    def create_batch(self, request: Request, directives: Directives) -> Reply:
        """``POST /v1/batches``: a batch gets on by one status at each look, and is worked off at the last."""
        source = self._files.get(request.need("input_file_id", str))
        batch = {
            "id": self._identity("batch_"),
            "object": "batch",
            "endpoint": request.need("endpoint", str),
            "errors": None,
            "input_file_id": source.meta["id"],
            "completion_window": request.need("completion_window", str),
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": CREATED,
            "in_progress_at": None,
            "expires_at": CREATED + 86400,
            "finalizing_at": None,
            "completed_at": None,
            "failed_at": None,
            "expired_at": None,
            "cancelling_at": None,
            "cancelled_at": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "usage": None,
            "metadata": request.json.get("metadata"),
        }
        self._batches.put(str(batch["id"]), batch)
        return json_reply(batch)

    def list_batches(self, request: Request, directives: Directives) -> Reply:
        """``GET /v1/batches``."""
        return _page(self._batches.newest_first(), request)

    def batch(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``GET /v1/batches/{id}``."""
        batch = self._batches.get(identity)
        status = batch["status"]
        if status == "validating":
            self._validate(batch)
        elif status == "in_progress":
            self._work_off(batch)
        elif status == "cancelling":
            batch.update(status="cancelled", cancelled_at=CREATED)
        return json_reply(batch)

    def _lines(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The requests of a batch's input.

        :raises ValueError: a line is none; the text is its number.
        """
        found = []
        for number, line in enumerate(self._files.get(batch["input_file_id"]).data.splitlines(), 1):
            try:
                value = orjson.loads(line)
                found.append({name: value[name] for name in ("custom_id", "method", "url", "body")})
            except (ValueError, TypeError, KeyError):
                raise ValueError(number) from None
        return found

    def _validate(self, batch: dict[str, Any]) -> None:
        try:
            total = len(self._lines(batch))
        except ValueError as fault:
            what = "This line is not parseable as valid JSON."
            error = {"code": "invalid_json_line", "message": what, "param": None, "line": fault.args[0]}
            errors = {"object": "list", "data": [error]}
            batch.update(status="failed", failed_at=CREATED, errors=errors)
            return
        counts = {"total": total, "completed": 0, "failed": 0}
        batch.update(status="in_progress", in_progress_at=CREATED, request_counts=counts)

    def _work_off(self, batch: dict[str, Any]) -> None:
        """Answer each request as if it had come by itself; what they used together is the batch's usage."""
        sums, out, failed = Usage(0), [], 0
        for number, line in enumerate(self._lines(batch)):
            reply = self._answer(line["url"], line["body"])
            failed += reply.status != 200
            if reply.usage is not None:
                sums = sums + reply.usage
                batch["model"] = orjson.loads(b"".join(reply.pieces)).get("model")
            response = {
                "status_code": reply.status,
                "request_id": f"req_{number:032x}",
                "body": orjson.loads(b"".join(reply.pieces)),
            }
            out.append({
                "id": f"batch_req_{number:024x}", "custom_id": line["custom_id"], "response": response, "error": None,
            })  # fmt: skip
        data = b"".join(orjson.dumps(line) + b"\n" for line in out)
        meta = _meta(self._identity("file-"), "batch_output", f"{batch['id']}_output.jsonl", len(data))
        self._files.put(str(meta["id"]), _File(meta, data))
        counts = {"total": len(out), "completed": len(out) - failed, "failed": failed}
        batch.update(
            status="completed", finalizing_at=CREATED, completed_at=CREATED, output_file_id=meta["id"],
            request_counts=counts, usage=sums.as_response(),
        )  # fmt: skip

    def cancel_batch(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``POST /v1/batches/{id}/cancel``."""
        batch = self._batches.get(identity)
        if batch["status"] not in ("validating", "in_progress"):
            raise Refused(409, f"Cannot cancel a batch with status '{batch['status']}'.")
        batch.update(status="cancelling", cancelling_at=CREATED)
        return json_reply(batch)


def _meta(identity: str, purpose: str, name: str, size: int) -> dict[str, Any]:
    return {
        "object": "file",
        "id": identity,
        "purpose": purpose,
        "filename": name,
        "bytes": size,
        "created_at": CREATED,
        "expires_at": None,
        "status": "processed",
        "status_details": None,
    }
