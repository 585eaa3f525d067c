"""Machines that share a PostgreSQL, for who asks what all of them did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from flowstack.config import Settings, load
from flowstack.config.settings import Shared
from flowstack.ledger.folding import Folding
from flowstack.ledger.index import Index, index_path
from flowstack.ledger.migrate import migrate
from flowstack.ledger.postgres import Postgres
from flowstack.ledger.shipping import Shipping
from tests.cable import Cable
from tests.ledger.journals import write
from tests.ledger.servers import cable_to

FILE = "2026-11-23.w0.jsonl"


@frozen
class Machine:
    """One of them.

    :ivar folder: with its state directory, ``state``, and its configuration, ``flowstack.toml``.
    """

    folder: Path
    name: str
    shared: Shared

    @classmethod
    def of(cls, folder: Path, name: str, shared: Shared, more: str = "") -> Machine:
        """Set one up.

        :param more: lines of ``[shared]``, and further tables.
        """
        (folder / name / "state").mkdir(parents=True, mode=0o700)
        (folder / name / "flowstack.toml").write_text(
            f'[server]\nkeys = "keys"\nstate = "state"\nnode = "{name}"\n[shared]\npostgres = "{shared.postgres}"\n'
            f'postgres_password_file = "{shared.postgres_password_file}"\npostgres_tls = false\n{more}'
        )
        return cls(folder / name, name, shared)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def config(self) -> Path:
        return self.folder / "flowstack.toml"

    @property
    def settings(self) -> Settings:
        return load(self.config)

    @contextmanager
    def cabled(self) -> Iterator[Cable]:
        """A cable to its PostgreSQL, by which its configuration goes from then on."""
        with cable_to(self.shared) as (cable, there):
            self.config.write_text(self.config.read_text().replace(str(self.shared.postgres), str(there.postgres)))
            yield cable

    def record(self, some: Iterable[dict[str, Any]]) -> None:
        """Write rows into its journal."""
        write(self.state / "ledger" / FILE, ({**one, "node": self.name} for one in some))

    def index(self) -> None:
        """Bring its own index up to date."""
        with Index(index_path(self.state), self.state / "ledger") as index:
            index.catch_up()

    def ship(self, fold: bool = True) -> None:
        """Send what it has.

        :param fold: whether it is also added up.
        """
        with Postgres(self.shared, "test") as database:
            migrate(database)
            shipping = Shipping(database, self.state / "ledger", self.name)
            while shipping.ship().behind:
                pass
            while fold and Folding(database).fold().behind:
                pass
