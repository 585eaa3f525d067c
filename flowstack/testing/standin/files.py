"""Models, files and batches: what is listed, kept and fetched (OpenAI reference, each by its name)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import count
from typing import Any

from attrs import field, frozen

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.store import Store
from flowstack.testing.standin.values import CREATED, Refused, Reply, Request, bytes_reply, json_reply

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
    """The endpoints under ``/v1/files`` and ``/v1/batches``; 256 MiB of files are kept at the most."""

    def __init__(self) -> None:
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
        meta = {
            "object": "file",
            "id": self._identity("file-"),
            "purpose": form["purpose"].text,
            "filename": part.filename or "upload",
            "bytes": len(part.data),
            "created_at": CREATED,
            "expires_at": None,
            "status": "processed",
            "status_details": None,
        }
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
        """``POST /v1/batches``: nothing is computed; a batch gets on by one status at each look."""
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
            "request_counts": {"total": source.data.count(b"\n"), "completed": 0, "failed": 0},
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
        total = batch["request_counts"]["total"]
        step: dict[str, dict[str, Any]] = {
            "validating": {"status": "in_progress", "in_progress_at": CREATED},
            "in_progress": {
                "status": "completed",
                "completed_at": CREATED,
                "request_counts": {"total": total, "completed": total, "failed": 0},
            },
            "cancelling": {"status": "cancelled", "cancelled_at": CREATED},
        }
        batch.update(step.get(batch["status"], {}))
        return json_reply(batch)

    def cancel_batch(self, request: Request, directives: Directives, identity: str) -> Reply:
        """``POST /v1/batches/{id}/cancel``."""
        batch = self._batches.get(identity)
        if batch["status"] not in ("validating", "in_progress"):
            raise Refused(409, f"Cannot cancel a batch with status '{batch['status']}'.")
        batch.update(status="cancelling", cancelling_at=CREATED)
        return json_reply(batch)
