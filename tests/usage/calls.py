"""Work counted without a clock."""

from __future__ import annotations

import sys
from typing import Any


class Calls:
    """Counts calls while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, frame: Any, event: str, argument: Any) -> None:
        if event != "return" and event != "c_return":
            self.count += 1

    def __enter__(self) -> Calls:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)
