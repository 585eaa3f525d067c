"""``/metrics`` of the admin listener, as Prometheus and OpenMetrics read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Cooperator, TaskStopped
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from flowstack.metrics.exposition import Counted, Processes
from flowstack.metrics.segment import Segment

log = Logger()

PIECE = 100
"""Samples that are written in one go, about a millisecond's work."""


def pieces(metrics: Iterable[Metric], encode: Callable[[Collector], bytes]) -> Iterator[bytes]:
    """The exposition, cut so that no piece takes long to make: at the bound of all labels the whole takes 0.3 s.

    :param encode: one of prometheus_client's encoders.
    """
    end = encode(_Some())
    for metric in metrics:
        samples = metric.samples
        for start in range(0, len(samples) or 1, PIECE):
            metric.samples = samples[start : start + PIECE]
            text = encode(_Some(metric)).removesuffix(end)
            if start:  # what names the metric was in its first piece
                while text.startswith(b"# "):
                    text = text[text.index(b"\n") + 1 :]
            yield text
    yield end


class _Some(Collector):
    """A registry, as far as an encoder looks at it."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class Metrics(Resource):
    """The resource.

    :param reactor: between two pieces of an answer it does what else is to be done: requests come first.
    :param segments: gives those of all processes, in any order.
    :param processes: gives the id of each process by its name.
    :param before: called first: what this process itself shows is then of now.
    """

    isLeaf = True

    def __init__(
        self,
        reactor: IReactorTime,
        segments: Callable[[], Iterable[Segment]],
        processes: Callable[[], Mapping[str, int]] = dict,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = before
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Counted(segments))
        self._registry.register(Processes(processes))
        self._cooperator = Cooperator(lambda: lambda: True, lambda call: reactor.callLater(0, call))

    def render_GET(self, request: Request) -> int:  # noqa: N802
        """The whole of it, in the format that the scraper asks for."""
        accept: bytes = request.getHeader(b"accept") or b""
        try:
            encode, content_type = choose_encoder(accept.decode("ascii"))
        except (TypeError, ValueError):  # it names a version that is none
            encode, content_type = choose_encoder("")
        request.setHeader(b"content-type", content_type.encode("ascii"))
        request.setHeader(b"cache-control", b"no-store")
        work = self._cooperator.cooperate(self._answer(request, encode))
        request.notifyFinish().addErrback(lambda _: work.stop())
        work.whenDone().addErrback(self._failed, request)
        return NOT_DONE_YET

    def _answer(self, request: Request, encode: Callable[[Collector], bytes]) -> Iterator[None]:
        self._before()
        text = []
        for piece in pieces(self._registry.collect(), encode):
            text.append(piece)
            yield None
        whole = b"".join(text)
        request.setHeader(b"content-length", b"%d" % len(whole))
        request.write(whole)
        request.finish()

    @staticmethod
    def _failed(failure: Failure, request: Request) -> None:
        if failure.check(TaskStopped):
            return  # who asked is gone
        request.processingFailed(failure)
