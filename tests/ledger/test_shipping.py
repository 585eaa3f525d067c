"""What is in the journals of all machines is in PostgreSQL once, and in its sums."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from attrs import evolve

from flowstack.config.settings import Shared
from flowstack.ledger import shipping
from flowstack.ledger.database import Unavailable
from flowstack.ledger.folding import Folded, Folding, keep_partitions, keep_places
from flowstack.ledger.index import Index
from flowstack.ledger.migrate import NEWEST, migrate
from flowstack.ledger.postgres import Misfit, Postgres
from flowstack.ledger.queries import Question, report, standing, total
from flowstack.ledger.schema import EVERYTHING_NEW
from flowstack.ledger.shared import open_shared
from flowstack.ledger.shipping import Shipped, Shipping
from tests.ledger.journals import agree, expected, figures, rows, write
from tests.ledger.samples import row
from tests.ledger.servers import PASSWORD, Server, server
from tests.transport.certificates import Authority

ROWS = rows(400, folded=True, settling=True, sockets=True)
ONE, TWO, THREE = "2026-11-22.w0.jsonl", "2026-11-23.w0.jsonl", "2026-11-23.w1.jsonl"


class Node:
    """A machine that ships."""

    def __init__(self, shared: Shared, folder: Path, name: str = "east") -> None:
        self.journal = folder / name / "ledger"
        self.journal.mkdir(parents=True)
        self.shared = shared
        self.name = name
        self.connect()

    def connect(self) -> None:
        self.database = Postgres(self.shared, f"test {self.name}")
        migrate(self.database)
        self.shipping = Shipping(self.database, self.journal, self.name)
        self.folding = Folding(self.database)

    def ship(self) -> int:
        """Send all there is, and say how many rows were new."""
        new = 0
        while True:
            shipped = self.shipping.ship()
            new += shipped.rows
            if not shipped.behind:
                return new

    def fold(self) -> None:
        while self.folding.fold().batches:
            pass


def has(shared: Shared, some: Any) -> bool:
    """Whether the ledger and its sums have these rows, each once, and no others."""
    with open_shared(shared, "test") as database:
        found = database.execute('SELECT request_id, "row"::text FROM ledger ORDER BY request_id').fetchall()
        whole = {one["request_id"]: orjson.dumps(one, option=orjson.OPT_UTC_Z).decode() for one in some}
        question = Question(("key", "model", "node"))
        lines = {line.group: line.figures() for line in report(database, question)}
        wanted = expected(some, question)
        return (
            dict(found) == whole
            and len(found) == len(whole)
            and lines.keys() == wanted.keys()
            and all(agree(lines[group], wanted[group]) for group in wanted)
            and agree(total(report(database, Question())).figures(), figures(some))
        )


@pytest.fixture
def node(shared: Shared, tmp_path: Path) -> Iterator[Node]:
    one = Node(shared, tmp_path)
    yield one
    one.database.close()


@pytest.fixture
def nodes(shared: Shared, tmp_path: Path) -> Iterator[Callable[[str], Node]]:
    made = []

    def make(name: str) -> Node:
        made.append(Node(shared, tmp_path, name))
        return made[-1]

    yield make
    for one in made:
        one.database.close()


def test_all_rows_of_all_files_are_sent_once(node: Node) -> None:
    write(node.journal / ONE, ROWS[:150])
    write(node.journal / THREE, ROWS[150:])
    assert node.ship() == 400
    assert node.shipping.ship() == Shipped()
    node.fold()
    assert has(node.shared, ROWS)
    assert node.shipping.done() == {name: (node.journal / name).stat().st_size for name in (ONE, THREE)}


def test_a_journal_that_grows_is_sent_piece_by_piece_also_over_another_connection(node: Node) -> None:
    for start in range(0, 400, 50):
        write(node.journal / (TWO if start % 100 else THREE), ROWS[start : start + 50])
        assert node.ship() == 50
        if start % 100:
            node.database.close()
            node.connect()
        node.fold()
    assert has(node.shared, ROWS)


def test_what_was_sent_and_is_in_no_sum_is_in_no_report_until_it_is(node: Node) -> None:
    write(node.journal / ONE, ROWS)
    node.ship()
    assert total(report(node.database, Question())).figures()["requests"] == 0
    node.fold()
    assert agree(total(report(node.database, Question())).figures(), figures(ROWS))


def test_a_torn_last_line_waits_until_it_is_whole(node: Node) -> None:
    write(node.journal / ONE, ROWS[:3])
    whole = (node.journal / ONE).read_bytes()
    (node.journal / ONE).write_bytes(whole[:-40])
    assert node.ship() == 2
    assert node.shipping.done() == {ONE: len(whole) - 40}
    (node.journal / ONE).write_bytes(whole)
    assert node.shipping.ship() == Shipped(rows=1)
    node.fold()
    assert has(node.shared, ROWS[:3])


def test_a_file_that_was_restored_or_is_sent_by_another_machine_adds_nothing(nodes: Callable[[str], Node]) -> None:
    east, west = nodes("east"), nodes("west")
    write(east.journal / ONE, ROWS)
    assert east.ship() == 400
    (east.journal / TWO).write_bytes((east.journal / ONE).read_bytes())
    (west.journal / ONE).write_bytes((east.journal / ONE).read_bytes())
    write(west.journal / ONE, rows(10, seed=7))
    assert east.ship() == 0
    assert west.ship() == 10
    east.fold()
    west.fold()
    assert has(east.shared, [*ROWS, *rows(10, seed=7)])


def test_rows_that_come_again_among_many_new_ones_add_nothing(
    node: Node, nodes: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "BATCH_ROWS", 40)
    others = nodes("west")
    node.connect()
    others.connect()
    write(others.journal / ONE, ROWS[:400:7])
    assert others.ship() == len(ROWS[:400:7])
    write(node.journal / ONE, ROWS[1::2])
    new = len({*map(str, ROWS[1::2])} - {*map(str, ROWS[:400:7])})
    assert node.ship() == new
    anew = [{**one, "started_at": one["started_at"] + timedelta(minutes=1)} for one in ROWS[1::2]]
    write(node.journal / TWO, [one for one in anew if one.get("requests") == 0])
    write(node.journal / THREE, ROWS)
    assert node.ship() == 400 - new - len(ROWS[:400:7])
    node.fold()
    assert has(node.shared, ROWS)


def test_a_month_that_begins_among_many_rows_has_its_partition_made(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "BATCH_ROWS", 40)
    node.connect()
    later = [row(number, started_at=datetime(2031, 5, 1, tzinfo=UTC)) for number in range(50)]
    write(node.journal / ONE, [*ROWS[:100], *later, *ROWS[100:]])
    assert node.ship() == 450
    ((found,),) = node.database.execute("SELECT count(*) FROM ledger_2031_05").fetchall()
    assert found == 50


def test_a_machine_that_has_the_name_of_another_loses_no_row(nodes: Callable[[str], Node], tmp_path: Path) -> None:
    first = nodes("east")
    write(first.journal / ONE, ROWS[:200])
    first.ship()
    second = Node(first.shared, tmp_path / "elsewhere", "east")
    text = b"".join((first.journal / ONE).read_bytes().splitlines(keepends=True)[:100])
    (second.journal / ONE).write_bytes(text)
    write(second.journal / ONE, rows(1, seed=7))
    size = (first.journal / ONE).stat().st_size
    line = orjson.dumps({**rows(2, seed=7)[1], "user_agent": ""}, option=orjson.OPT_UTC_Z)
    used = (second.journal / ONE).stat().st_size
    padded = {**rows(2, seed=7)[1], "user_agent": "x" * (size - used - len(line) - 1)}
    write(second.journal / ONE, [padded])
    assert (second.journal / ONE).stat().st_size == size  # so that by its size it is the first one's
    second.database.close()
    second.connect()
    assert second.ship() == 2
    second.fold()
    second.database.close()
    assert has(first.shared, [*ROWS[:200], rows(1, seed=7)[0], padded])


def test_machines_with_overlapping_journals_send_and_add_up_at_once(nodes: Callable[[str], Node]) -> None:
    some = rows(6000, folded=True, settling=True, sockets=True)
    made = [nodes(f"node-{number}") for number in range(4)]
    for number, one in enumerate(made):
        write(one.journal / ONE, some[number * 1000 : number * 1000 + 3000])

    def work(one: Node) -> int:
        new = 0
        one.shipping._most = 300
        while True:
            shipped = one.shipping.ship()
            one.folding.fold()
            new += shipped.rows
            if not shipped.behind:
                return new

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, made)) == 6000
    made[0].fold()
    assert has(made[0].shared, some)


BAD = {
    "no id": {"request_id": None},
    "an empty id": {"request_id": ""},
    "an id that is too long": {"request_id": "x" * 201},
    "no key": {"key_id": None},
    "no time": {"started_at": None},
    "no such time": {"started_at": "2026-13-01T00:00:00Z"},
    "a time before 1970": {"started_at": "1969-12-31T23:59:59Z"},
    "a time beyond all years": {"started_at": "9999-12-31T23:59:59-05:00"},
}


@pytest.mark.parametrize("what", BAD)
def test_a_line_that_is_no_row_is_left_out_and_those_around_it_are_sent(node: Node, what: str) -> None:
    write(node.journal / ONE, [*ROWS[:5], row(**BAD[what]), *ROWS[5:9]])
    (node.journal / TWO).write_bytes(b'\xff\n[]\n3\n{"a":\n\n')
    assert node.shipping.ship() == Shipped(rows=9, bad_lines=6)
    node.fold()
    assert has(node.shared, ROWS[:9])
    assert standing(node.database).bad_lines == 6


def test_rows_that_postgresql_does_not_take_are_put_aside_alone(node: Node) -> None:
    node.database.execute("ALTER TABLE ledger ADD CHECK (user_agent <> 'odd')")
    odd = (0, 60, 61, 89)
    some = [{**one, "user_agent": "odd"} if at in odd else one for at, one in enumerate(ROWS[:90])]
    write(node.journal / ONE, some)
    assert node.ship() == 86
    assert node.ship() == 0
    node.fold()
    assert has(node.shared, [one for at, one in enumerate(some) if at not in odd])
    aside = node.database.execute("SELECT node, file, why, line FROM unfit ORDER BY at").fetchall()
    assert [(name, file) for name, file, _, _ in aside] == [("east", ONE)] * 4
    assert all("violates check constraint" in why for _, _, why, _ in aside)
    lines = (node.journal / ONE).read_bytes().splitlines()
    assert [bytes(line) for _, _, _, line in aside] == [lines[at] for at in odd]
    assert standing(node.database).bad_lines == 4
    assert node.shipping.done() == {ONE: (node.journal / ONE).stat().st_size}


def test_a_row_that_is_beyond_a_limit_of_postgresql_is_put_aside(node: Node, postgres: Server) -> None:
    with postgres.superuser("postgres") as connection:
        (user,) = node.database.execute("SELECT current_user").fetchone()
        connection.execute(f"ALTER ROLE {user} SET max_stack_depth = '100kB'")
    node.database.close()
    node.connect()
    deep = b'{"x":' + b"[" * 900 + b"]" * 900 + b',"request_id":"deep",'
    write(node.journal / ONE, ROWS[:3])
    with open(node.journal / ONE, "ab") as file:
        file.write(deep + orjson.dumps({"key_id": "k", "started_at": "2026-11-22T00:00:00Z"})[1:] + b"\n")
    write(node.journal / ONE, ROWS[3:6])
    assert node.ship() == 6
    ((why,),) = node.database.execute("SELECT why FROM unfit").fetchall()
    assert "stack depth limit exceeded" in why


def test_a_pooler_that_drops_what_a_connection_is_told_is_refused(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstack.ledger.postgres._SESSION", ())  # what the server then hears
    with pytest.raises(Unavailable, match="a pooler that drops the parameter options"):
        Postgres(shared, "test")


def test_a_database_of_another_encoding_is_refused(postgres: Server, shared: Shared) -> None:
    name = f"{(shared.postgres or '').rpartition('/')[2]}_latin"
    with postgres.superuser("postgres") as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(Unavailable, match="found a database in LATIN1, expected UTF8"):
        Postgres(evolve(shared, postgres=f"{(shared.postgres or '').rpartition('/')[0]}/{name}"), "test")


def test_a_batch_that_cannot_be_added_up_holds_up_no_other_and_is_tried_again(node: Node) -> None:
    for start in range(0, 50, 10):
        some = [{**one, "model": "odd" if start == 20 and at == 3 else "m"} for at, one in enumerate(ROWS[start:][:10])]
        write(node.journal / ONE, some)
        assert node.shipping.ship().rows == 10
    every = [orjson.loads(line) for line in (node.journal / ONE).read_bytes().splitlines()]
    every = [{**one, "started_at": datetime.fromisoformat(one["started_at"])} for one in every]
    node.database.execute("ALTER TABLE words ADD CONSTRAINT no_odd CHECK (word <> 'odd')")
    while node.folding.fold().behind:
        pass
    others = [*every[:20], *every[30:]]
    lines = {line.group: line.figures() for line in report(node.database, Question(("model",)))}
    assert agree(lines[("m",)], expected(others, Question(("model",)))[("m",)])
    assert node.database.execute("SELECT count(*) FROM batches").fetchone() == (1,)
    assert node.folding.fold() == Folded()
    node.database.execute("ALTER TABLE words DROP CONSTRAINT no_odd")
    node.database.close()
    node.connect()
    node.fold()
    assert has(node.shared, every)


def test_who_adds_up_in_turn_remembers_nothing_wrong(nodes: Callable[[str], Node]) -> None:
    some = rows(600, folded=True, settling=True, sockets=True)
    east, west = nodes("east"), nodes("west")
    for start in range(0, 600, 50):
        write(east.journal / ONE, some[start : start + 50])
        east.ship()
        (east, west)[start // 50 % 2].fold()
    assert has(east.shared, some)
    for table in ("words", "dims", "attributes"):
        (count, last) = east.database.execute(f"SELECT count(*), max(id) FROM {table}").fetchone()
        assert count == last


def test_odd_text_is_kept_whole_and_can_be_read(node: Node) -> None:
    odd = "a\0b\u202e\U0001f600\ufeff\\'\"\n\t" + "語" * 3000
    some = [
        row(request_id=f"{number:032x}", owner=odd, model=odd, attributes={"te\0am": odd}, key_id="k\0")
        for number in range(3)
    ]
    write(node.journal / ONE, some)
    assert node.ship() == 3
    node.fold()
    found = node.database.execute('SELECT "row"::text, owner, attributes FROM ledger').fetchall()
    assert [orjson.loads(text)["owner"] for text, _, _ in found] == [odd] * 3
    assert found[0][1] == odd.replace("\0", "\ufffd")
    assert found[0][2] == {"te\ufffdam": odd.replace("\0", "\ufffd")}
    assert total(report(node.database, Question())).figures()["requests"] == 3


def test_a_value_of_another_kind_is_in_the_whole_row_alone(node: Node) -> None:
    some = row(request_id="f" * 32, user_agent=[1], bytes_in="many", stream=3, attempts=2**63, service_tier={"a": 1})
    with open(node.journal / ONE, "wb") as file:
        file.write(orjson.dumps(some, option=orjson.OPT_UTC_Z) + b"\n")
    assert node.ship() == 1
    columns = "user_agent, bytes_in, stream, attempts, service_tier"
    ((text, *values),) = node.database.execute(f'SELECT "row"::text, {columns} FROM ledger').fetchall()
    assert values == [None] * 5
    assert orjson.loads(text)["attempts"] == 2**63


@pytest.mark.parametrize("began", ["1970-01-01T00:00:00Z", "2003-05-06T07:08:09.123456Z", "9999-12-31T23:59:59Z"])
def test_a_clock_that_is_far_off_has_a_partition_made(node: Node, began: str) -> None:
    write(node.journal / ONE, [*ROWS[:5], row(request_id="a" * 32, started_at=began), *ROWS[5:9]])
    assert node.ship() == 10
    node.fold()
    ((found,),) = node.database.execute("SELECT count(*) FROM ledger WHERE started_at = ?", (began,)).fetchall()
    assert found == 1
    assert total(report(node.database, Question())).figures()["requests"] == sum(
        many["requests"] if "requests" in many else many["status"] != 101 for many in [*ROWS[:9], {"requests": 1}]
    )


def test_months_are_made_ahead_and_dropped_when_all_of_one_is_old_enough(node: Node) -> None:
    now = datetime(2026, 12, 3, tzinfo=UTC)

    def months() -> list[str]:
        query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'ledger'::regclass ORDER BY 1"
        return [name for (name,) in node.database.execute(query)]

    some = [
        row(request_id=f"{number:032x}", started_at=now - timedelta(days=20 * number), node="east")
        for number in range(6)
    ]
    write(node.journal / ONE, some)
    node.ship()
    assert keep_partitions(node.database, now, 30) == []  # what is in no sum stays
    node.fold()
    assert keep_partitions(node.database, now, None) == []
    all_of_them = [f"ledger_2026_{month:02}" for month in range(8, 13)] + ["ledger_2027_01", "ledger_2027_02"]
    assert months() == all_of_them
    assert sorted(keep_partitions(node.database, now, 32)) == all_of_them[:3]
    assert months() == all_of_them[3:]
    assert agree(total(report(node.database, Question())).figures(), figures(some))
    write(node.journal / TWO, some)  # as restored, and with a connection that believes the months to be there
    assert node.ship() == 4
    node.fold()
    assert agree(total(report(node.database, Question())).figures(), figures(some))


def test_places_in_files_that_no_machine_has_any_more_go_and_their_bad_lines_stay_counted(
    nodes: Callable[[str], Node],
) -> None:
    east, west = nodes("east"), nodes("west")
    for one in (east, west):
        write(one.journal / ONE, ROWS[:50])
        (one.journal / TWO).write_bytes(b"bad\n")
        one.ship()
    east.fold()
    east.database.execute("UPDATE files SET seen = CURRENT_DATE - 40")
    east.database.execute("INSERT INTO unfit VALUES ('west', 'x', now() - interval '3 days', 'y', 'z')")
    keep_places(east.database, "east", [ONE, TWO], None)
    known = "SELECT node, name, bad FROM files ORDER BY 1, 2"
    assert east.database.execute(known).fetchall() == [("", "(gone)", 1), ("east", ONE, 0), ("east", TWO, 1)]
    assert east.database.execute("SELECT count(*) FROM unfit").fetchone() == (1,)
    east.database.execute("UPDATE files SET seen = CURRENT_DATE - 40")
    keep_places(east.database, "east", [ONE], 2)
    assert east.database.execute(known).fetchall() == [("", "(gone)", 2), ("east", ONE, 0)]
    assert standing(east.database).bad_lines == 2
    assert east.database.execute("SELECT count(*) FROM unfit").fetchone() == (0,)
    west.database.close()
    west.connect()
    (west.journal / TWO).unlink()
    assert west.ship() == 0
    west.fold()
    assert has(east.shared, ROWS[:50])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("default_transaction_read_only = on", "read-only transaction"),
        ("default_transaction_isolation = 'serializable'", None),
        ("standard_conforming_strings = off", None),
        ("client_encoding = 'LATIN1'", None),
        ("datestyle = 'SQL, DMY'", None),
        ("bytea_output = 'escape'", None),
        ("intervalstyle = 'sql_standard'", None),
        ("extra_float_digits = -15", None),
        ("search_path = 'public'", None),
        ("session_replication_role = 'replica'", None),
    ],
)
def test_what_the_role_is_set_to_loses_nothing(node: Node, postgres: Server, setting: str, said: str | None) -> None:
    (user,) = node.database.execute("SELECT current_user").fetchone()
    with postgres.superuser("postgres") as connection:
        connection.execute(f"ALTER ROLE {user} SET {setting}")
    some = [{**one, "owner": "語 \\N \\. '; DROP TABLE ledger; -- $1 ? %s"} for one in ROWS[:100]]
    write(node.journal / ONE, some)
    node.database.close()
    if said is not None:
        with pytest.raises(Unavailable, match=said):
            node.connect()
        with postgres.superuser("postgres") as connection:
            connection.execute(f"ALTER ROLE {user} RESET ALL")
    node.connect()
    assert node.ship() == 100
    node.fold()
    assert has(node.shared, some)


def test_a_connection_that_is_ended_or_a_statement_that_is_cut_is_begun_anew(node: Node, postgres: Server) -> None:
    write(node.journal / ONE, ROWS)
    with postgres.superuser("postgres") as connection:
        (pid,) = node.database.execute("SELECT pg_backend_pid()").fetchone()
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    with pytest.raises(Unavailable):
        node.ship()
    node.connect()
    node.database.execute("SET statement_timeout = '1ms'")
    with pytest.raises(Unavailable, match="statement timeout"):
        node.ship()
    node.database.close()
    node.connect()
    node.ship()
    node.database.execute("SET statement_timeout = '1ms'")
    with pytest.raises(Unavailable, match="statement timeout"):
        node.fold()
    node.database.close()
    node.connect()
    node.fold()
    assert has(node.shared, ROWS)


def test_where_no_connection_is_left_it_is_said(node: Node, postgres: Server) -> None:
    (user,) = node.database.execute("SELECT current_user").fetchone()
    with postgres.superuser("postgres") as connection:
        connection.execute(f"ALTER ROLE {user} CONNECTION LIMIT 1")
    with pytest.raises(Unavailable, match="too many connections"):
        Postgres(node.shared, "test")


@pytest.mark.parametrize("right", ["INSERT ON flowstack.ledger", "UPDATE ON flowstack.files"])
def test_a_role_that_lacks_a_right_is_told_so_and_nothing_is_lost(node: Node, right: str) -> None:
    (user,) = node.database.execute("SELECT current_user").fetchone()
    write(node.journal / ONE, ROWS[:50])
    node.database.execute(f"REVOKE {right} FROM {user}")
    with pytest.raises(Unavailable, match="permission denied for table"):
        node.ship()
    node.connect()
    node.database.execute(f"GRANT {right} TO {user}")
    assert node.ship() == 50
    assert node.database.execute("SELECT count(*) FROM unfit").fetchone() == (0,)


def test_huge_rows_go_in_bounded_batches(node: Node) -> None:
    some = [
        {**one, "attributes": {"a": "x" * 900_000}, "request_id": f"{number:032x}"}
        for number, one in enumerate(ROWS[:40])
    ]
    write(node.journal / ONE, some)
    sizes = []
    while (shipped := node.shipping.ship()).rows:
        sizes.append(shipped.rows)
    assert sum(sizes) == 40
    assert max(sizes) <= 18
    node.fold()
    assert total(report(node.database, Question())).figures()["requests"] == figures(some)["requests"]


@pytest.mark.parametrize("what", ["cut", "emptied", "replaced"])
def test_a_journal_file_that_is_changed_under_it_loses_and_doubles_nothing(node: Node, what: str) -> None:
    path = node.journal / ONE
    write(path, ROWS[:100])
    node.ship()
    lines = path.read_bytes().splitlines(keepends=True)
    if what == "cut":
        path.write_bytes(b"".join(lines[:40]))
    elif what == "emptied":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"".join(reversed(lines)))
    write(path, ROWS[100:200])
    assert node.ship() == 100
    node.fold()
    assert has(node.shared, ROWS[:200])


def test_a_partition_that_was_detached_has_rows_wait_and_is_put_aside_for_no_row(node: Node) -> None:
    some = [row(request_id=f"{number:032x}", started_at=datetime(2026, 11, 5, tzinfo=UTC)) for number in range(6)]
    write(node.journal / ONE, some[:3])
    assert node.ship() == 3
    node.database.execute("ALTER TABLE ledger DETACH PARTITION ledger_2026_11")
    write(node.journal / ONE, some[3:])
    with pytest.raises(Unavailable, match="found the table ledger_2026_11, which is no partition of ledger"):
        node.ship()
    node.connect()
    node.database.execute("ALTER TABLE ledger_2026_11 RENAME TO old_2026_11")
    assert node.ship() == 3
    assert node.database.execute("SELECT count(*) FROM unfit").fetchone() == (0,)


def test_tables_are_made_once_whoever_comes_first(another: Callable[[], Shared]) -> None:
    shared = another()

    def make(number: int) -> list[str]:
        with Postgres(shared, f"test {number}") as database:
            return migrate(database)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(map(len, pool.map(make, range(4)))) == [0, 0, 0, NEWEST]


def test_tables_of_a_newer_version_are_left_alone(node: Node) -> None:
    node.database.execute("INSERT INTO migrations (number, name) VALUES (?, 'x')", (NEWEST + 1,))
    before = node.database.execute("SELECT * FROM migrations ORDER BY 1").fetchall()
    for attempt in (migrate, lambda _: open_shared(node.shared, "test")):
        with Postgres(node.shared, "test") as database, pytest.raises(Unavailable, match="a newer Flowstack made them"):
            attempt(database)  # type: ignore[operator]
    assert node.database.execute("SELECT * FROM migrations ORDER BY 1").fetchall() == before


def test_where_there_are_no_tables_a_report_says_who_makes_them(another: Callable[[], Shared]) -> None:
    with pytest.raises(Unavailable, match="start the service"):
        open_shared(another(), "test")


def test_what_reports_read_has_the_columns_of_the_index(node: Node) -> None:
    index = sqlite3.connect(":memory:")
    index.executescript(EVERYTHING_NEW)
    for (table,) in index.execute("SELECT name FROM sqlite_schema WHERE type = 'table'"):
        ours = [name for _, name, *_ in index.execute(f"PRAGMA table_info({table})")]
        query = (
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'flowstack' AND table_name = ? "
            "ORDER BY ordinal_position"
        )
        theirs = [name for (name,) in node.database.execute(query, (table,))]
        assert theirs == (["node", *ours, "seen"] if table == "files" else ours), table
    index.close()


def test_a_report_is_that_of_the_index(node: Node, tmp_path: Path) -> None:
    write(node.journal / ONE, ROWS)
    node.ship()
    node.fold()
    with Index(tmp_path / "ledger.sqlite", node.journal) as index:
        index.catch_up()
    local = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    question = Question(("node", "model", "day"))
    key = {line.group: line.figures() for line in report(local, question)}
    assert {line.group: line.figures() for line in report(node.database, question)} == key
    local.close()


def test_an_insert_that_fails_changes_nothing_and_the_connection_goes_on(node: Node) -> None:
    with pytest.raises(Misfit), node.database.transaction():
        node.database.execute("INSERT INTO settled VALUES (?)", (b"x",))
        node.database.execute("INSERT INTO settled VALUES (?)", (b"x",))
    assert node.database.execute("SELECT count(*) FROM settled").fetchone() == (0,)


# How it is reached


def test_what_is_there_already_is_left_out_of_many_that_are_inserted(node: Node) -> None:
    def insert(numbers: range) -> int:
        with node.database.transaction():
            insert = "INSERT INTO settled VALUES (?) ON CONFLICT DO NOTHING"
            return node.database.executemany(insert, [(b"%d" % number,) for number in numbers]).rowcount

    assert insert(range(2000)) == 2000
    assert insert(range(1000, 3000)) == 1000
    assert node.database.execute("SELECT count(*), count(DISTINCT request_id) FROM settled").fetchone() == (3000, 3000)


def test_many_rows_are_added_up_as_few_are_those_too_that_come_again(node: Node) -> None:
    many = rows(3000, folded=True, settling=True, sockets=True)
    write(node.journal / ONE, many)
    node.ship()
    node.fold()
    node.database.execute("DELETE FROM ledger WHERE started_at > (SELECT min(started_at) FROM ledger)")
    write(node.journal / THREE, many)  # as when a partition was dropped and its rows come again
    node.ship()
    node.fold()
    assert has(node.shared, many)


def test_a_wrong_password_is_said_and_not_shown(shared: Shared, tmp_path: Path) -> None:
    assert shared.postgres_password_file is not None
    shared.postgres_password_file.write_text("not-the-canary")
    with pytest.raises(Unavailable, match="password authentication failed") as caught:
        Postgres(shared, "test")
    assert "canary" not in str(caught.value)


def test_without_a_password_file_that_can_be_read_it_is_said_which(shared: Shared) -> None:
    assert shared.postgres_password_file is not None
    shared.postgres_password_file.unlink()
    with pytest.raises(Unavailable, match="postgres_password_file"):
        Postgres(shared, "test")


def test_the_password_is_seen_neither_in_the_server_nor_in_the_connection(node: Node, postgres: Server) -> None:
    with postgres.superuser("postgres") as connection:
        shown = str(connection.execute("SELECT * FROM pg_stat_activity").fetchall())
    assert "test east" in shown
    assert PASSWORD not in shown + repr(vars(node.database)) + node.database.place


def test_a_connection_is_encrypted_and_the_certificate_verified(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other").file
    with server(authority.issue("postgres", "127.0.0.1")) as encrypted:
        shared = encrypted.database(tmp_path, postgres_tls=True, postgres_ca_file=authority.file)
        with Postgres(shared, "test") as database:
            query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert database.execute(query).fetchone() == (True,)
        for authorities in (other, None):
            wrong = encrypted.database(tmp_path, postgres_tls=True, postgres_ca_file=authorities)
            with pytest.raises(Unavailable, match="certificate verify failed"):
                Postgres(wrong, "test")


def test_a_server_without_tls_is_refused_where_tls_is_asked_for(postgres: Server, tmp_path: Path) -> None:
    asked = postgres.database(tmp_path, postgres_tls=True)
    with pytest.raises(Unavailable, match="does not support SSL"):
        Postgres(asked, "test")
