"""What an organization used and what it costs, by the day (OpenAI reference: usage, costs), of what was served here.

An admin key asks for it. The prices are the stand-in's own, so that whoever works costs out can be held against them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attrs import frozen

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.speech import snapshot
from flowstack.testing.standin.values import Refused, Reply, Request, json_reply

DAY = 86_400
ADMIN = "sk-admin-"
"""How an admin key begins."""

DEFAULT_PROJECT = "proj_default"
"""Of requests without ``OpenAI-Project``."""

_MOST_SUMS = 10_000
_MOST_DAYS = 400
"""That one question may be about."""

_KINDS = {
    "chat/completions": "completions",
    "completions": "completions",
    "responses": "completions",
    "embeddings": "embeddings",
    "moderations": "moderations",
    "images/generations": "images",
    "audio/speech": "audio_speeches",
    "audio/transcriptions": "audio_transcriptions",
    "audio/translations": "audio_transcriptions",
}
"""By the endpoint's name, under which usage it is counted."""

_FIELDS = {
    "completions": ("input_tokens", "output_tokens", "input_cached_tokens", "input_audio_tokens", "output_audio_tokens",
                    "num_model_requests"),
    "embeddings": ("input_tokens", "num_model_requests"),
    "moderations": ("input_tokens", "num_model_requests"),
    "images": ("images", "num_model_requests"),
    "audio_speeches": ("characters", "num_model_requests"),
    "audio_transcriptions": ("seconds", "num_model_requests"),
    "vector_stores": ("usage_bytes",),
    "code_interpreter_sessions": ("num_sessions",),
}  # fmt: skip
"""What is counted of each kind of usage. Of the last two the stand-in has none."""

_PRICES = {
    "gpt-3.5-turbo": (500_000, 500_000, 1_500_000),
    "gpt-4": (30_000_000, 30_000_000, 60_000_000),
    "gpt-4.1": (2_000_000, 500_000, 8_000_000),
    "gpt-4.1-mini": (400_000, 100_000, 1_600_000),
    "gpt-4o": (2_500_000, 1_250_000, 10_000_000),
    "gpt-4o-mini": (150_000, 75_000, 600_000),
    "gpt-5": (1_250_000, 125_000, 10_000_000),
    "o3": (2_000_000, 500_000, 8_000_000),
    "text-embedding-3-large": (130_000, 130_000, 0),
    "text-embedding-3-small": (20_000, 20_000, 0),
}
"""Of a million tokens of input, cached input and output, in millionths of a US dollar: so, of a token, in 10⁻¹²."""

_DEARER = (1_000_000, 1_000_000, 1_000_000)
"""For any other model."""


@frozen
class _Place:
    day: int
    kind: str
    model: str
    project: str


class Organization:
    """The endpoints under ``/v1/organization`` and the sums that they tell.

    :param now: seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._sums: OrderedDict[_Place, Counter[str]] = OrderedDict()

    def served(self, request: Request, reply: Reply) -> None:
        """Count what an answer that went out whole is billed for."""
        kind = _KINDS.get(reply.endpoint)
        if kind is None or request.method != "POST" or not 200 <= reply.status < 300:
            return
        try:
            asked, counts = _counted(request, kind)
        except Refused:  # an answer of another kind was asked for, whatever the body
            return
        usage = reply.billed or reply.usage
        if usage is not None:
            counts.update(input_tokens=usage.prompt, output_tokens=usage.completion, input_cached_tokens=usage.cached)
        model = snapshot(str(asked.get("model") or "omni-moderation-latest"))
        project = request.header("openai-project") or DEFAULT_PROJECT
        place = _Place(int(self._now()) // DAY, kind, model, project)
        self._sums.setdefault(place, Counter()).update(counts)
        if len(self._sums) > _MOST_SUMS:
            self._sums.popitem(last=False)

    def usage(self, request: Request, directives: Directives, kind: str) -> Reply:
        """``GET /v1/organization/usage/{kind}``."""
        _check_admin(request)
        names = _FIELDS.get(kind)
        if names is None:
            raise Refused(404, f"Invalid URL (GET /v1/organization/usage/{kind})")
        question = _Question.of(request, most=31)
        by = tuple(name for name in ("project_id", "model") if name in question.group_by)

        def results(day: int) -> Iterator[dict[str, Any]]:
            groups: dict[tuple[str | None, ...], Counter[str]] = {}
            for place, counts in self._of(day, question):
                if place.kind == kind:
                    groups.setdefault(_group(place, by), Counter()).update(counts)
            nobody = dict.fromkeys(("project_id", "user_id", "api_key_id", "model"))
            for group, counts in groups.items():
                found = {name: counts[name] for name in names}
                told = nobody | dict(zip(by, group, strict=True))
                yield {"object": f"organization.usage.{kind}.result", **found, **told}

        return question.page(results)

    def costs(self, request: Request, directives: Directives) -> Reply:
        """``GET /v1/organization/costs``."""
        _check_admin(request)
        question = _Question.of(request, most=180)

        def results(day: int) -> Iterator[dict[str, Any]]:
            amounts: Counter[tuple[str | None, str | None]] = Counter()
            for place, counts in self._of(day, question):
                for item, amount in _costs(place.model, counts).items():
                    line_item = f"{place.model}, {item}" if "line_item" in question.group_by else None
                    amounts[place.project if "project_id" in question.group_by else None, line_item] += amount
            for (project, line_item), amount in amounts.items():
                value = {"value": amount / 10**12, "currency": "usd"}
                yield {"object": "organization.costs.result", "amount": value, "line_item": line_item,
                       "project_id": project}  # fmt: skip

        return question.page(results)

    def _of(self, day: int, question: _Question) -> Iterator[tuple[_Place, Counter[str]]]:
        for place, counts in self._sums.items():
            if place.day == day and (not question.projects or place.project in question.projects):
                yield place, counts


@frozen
class _Question:
    """What the query of both endpoints asks.

    :ivar days: since 1970, those of this page.
    :ivar next_page: the cursor of the one behind it, or None.
    """

    days: range
    next_page: str | None
    group_by: frozenset[str]
    projects: frozenset[str]

    @classmethod
    def of(cls, request: Request, most: int) -> _Question:
        """Read it.

        :param most: buckets on a page.
        :raises Refused: OpenAI's 400.
        """
        query = parse_qs(urlsplit(request.target).query)
        first = _whole(query, "start_time", None)
        last = _whole(query, "end_time", first + 7 * DAY)
        limit = _whole(query, "limit", 7)
        if query.get("bucket_width", ["1d"]) != ["1d"]:
            raise _invalid("bucket_width", "the stand-in has whole days only, 1d")
        if not 1 <= limit <= most:
            raise _invalid("limit", f"expected 1 to {most}")
        days = range(first // DAY, max(first // DAY, -(-last // DAY)))
        if len(days) > _MOST_DAYS:
            raise _invalid("end_time", f"expected at most {_MOST_DAYS} days")
        page = query.get("page", ["page_0"])[0].removeprefix("page_")
        if not page.isascii() or not page.isdigit():
            raise _invalid("page", "expected the next_page of an answer")
        at = int(page)
        further = f"page_{at + limit}" if at + limit < len(days) else None
        return cls(days[at : at + limit], further, _names(query, "group_by"), _names(query, "project_ids"))

    def page(self, results: Callable[[int], Iterator[dict[str, Any]]]) -> Reply:
        """The answer, a bucket for each day, also where there is nothing in it."""
        buckets = [
            {"object": "bucket", "start_time": day * DAY, "end_time": (day + 1) * DAY, "results": list(results(day))}
            for day in self.days
        ]
        more = self.next_page is not None
        return json_reply({"object": "page", "data": buckets, "has_more": more, "next_page": self.next_page})


def _counted(request: Request, kind: str) -> tuple[dict[str, Any], Counter[str]]:
    """What a request asked for, and what of it is no token.

    :raises Refused: its body cannot be read.
    """
    counts: Counter[str] = Counter(num_model_requests=1)
    if kind == "audio_transcriptions":
        audio = request.form["file"].data if "file" in request.form else b""
        counts["seconds"] = 1 + len(audio) // 32000
        return {"model": request.form["model"].text if "model" in request.form else None}, counts
    asked = request.json
    if kind == "images":
        counts["images"] = asked["n"] if isinstance(asked.get("n"), int) else 1
    elif kind == "audio_speeches":
        counts["characters"] = len(str(asked.get("input") or ""))
    return asked, counts


def _check_admin(request: Request) -> None:
    """:raises Refused: 401 for any other key than an admin's."""
    if not (request.header("authorization") or "").partition(" ")[2].strip().startswith(ADMIN):
        raise Refused(
            401,
            "You have insufficient permissions for this operation. Missing scopes: api.usage.read. Check that you use"
            " an admin key of the organization.",
        )


def _whole(query: Mapping[str, list[str]], name: str, default: int | None) -> int:
    text = query.get(name, [""])[0]
    if text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    if text or default is None:
        raise _invalid(name, "expected a whole number" if text else "missing required parameter")
    return default


def _invalid(name: str, words: str) -> Refused:
    return Refused(400, f"Invalid '{name}': {words}.", param=name, code="invalid_value")


def _names(query: Mapping[str, list[str]], name: str) -> frozenset[str]:
    """A list in a query, as either kind of client writes it: ``name=a&name=b`` or ``name[]=a&name[]=b``."""
    return frozenset(query.get(name, []) + query.get(f"{name}[]", []))


def _group(place: _Place, by: tuple[str, ...]) -> tuple[str | None, ...]:
    return tuple(place.project if name == "project_id" else place.model for name in by)


def _costs(model: str, counts: Counter[str]) -> dict[str, int]:
    """What tokens cost, by the line of the bill, in 10⁻¹² US dollars."""
    family = max((name for name in _PRICES if model.startswith(name)), key=len, default="")
    into, cached, out = _PRICES.get(family, _DEARER)
    amounts = {
        "input": into * (counts["input_tokens"] - counts["input_cached_tokens"]),
        "cached input": cached * counts["input_cached_tokens"],
        "output": out * counts["output_tokens"],
    }
    return {item: amount for item, amount in amounts.items() if amount}
