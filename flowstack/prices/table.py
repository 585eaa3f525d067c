"""The table of prices as it is shipped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING

from flowstack.prices.cost import Prices

if TYPE_CHECKING:
    from flowstack.config import Price

FILE = "prices.json"


def load_prices(overrides: Iterable[Price] = ()) -> Prices:
    """Read the table, and put the configuration's prices before it.

    :param overrides: :attr:`flowstack.config.Settings.prices`.
    """
    return Prices(json.loads(files("flowstack.prices").joinpath(FILE).read_bytes()), overrides)
