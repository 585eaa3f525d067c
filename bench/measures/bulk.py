"""Big bodies."""

from __future__ import annotations

from bench import traffic
from bench.lab import Lab, Running
from bench.measures.base import Case, Column, Plain
from bench.scale import Scale
from bench.subjects.base import Subject


class Bulk(Plain):
    """One upload and one download on one connection."""

    name = "bulk"
    title = "A big body, one connection"
    columns: tuple[Column, ...] = (
        Column("mib_s", "MiB/s", 0, ratio=True),
        Column("cpu_ms_gib", "CPU ms/GiB", 0, ratio=True),
        Column("growth_mib", "RSS growth MiB", 1),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """Both ways."""
        size = scale.bulk_bytes
        return [Case(f"{kind} of {size // 2**20} MiB", size, kind, once=True) for kind in ("upload", "download")]

    def suits(self, subject: Subject, case: Case) -> bool:
        """Those that relay files."""
        return subject.bulk

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """See :mod:`bench.client.bulk`."""
        headers = {name: value for name, value in subject.headers.items() if name != "Content-Type"}
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if case.kind == "upload":
            start = f"POST {traffic.UPLOAD_PATH} HTTP/1.1\r\n"
            length = f"Content-Type: application/octet-stream\r\nContent-Length: {case.size}\r\n"
        else:
            start, length = f"GET {traffic.DOWNLOAD_PATH}?bytes={case.size} HTTP/1.1\r\n", ""
        head = f"{start}Host: localhost\r\n{fields}{length}\r\n"
        return lab.client(case.kind, port=subject.port, head=head, bytes=case.size, pids=subject.pids())
