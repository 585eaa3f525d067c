from __future__ import annotations

from flowstack.ledger.row import BLANK, MAX_TEXT, Row, text, usual_names, usual_texts


def test_a_blank_row_has_the_names_of_the_contract_in_their_order() -> None:
    assert list(BLANK) == list(Row.__annotations__)


def test_texts_from_outside_are_bounded_and_hold_no_key() -> None:
    key = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
    for make in (text, usual_texts.__getitem__):
        assert make(b"caf\xc3\xa9 \xff") == "café \N{REPLACEMENT CHARACTER}"
        assert make(b"m" * MAX_TEXT) == "m" * MAX_TEXT
        assert make(b"m" * 10_000) == "m" * (MAX_TEXT - 1) + "…"
        assert key not in make(f"agent {key}".encode())
    assert usual_names["m" * 10_000] == "m" * (MAX_TEXT - 1) + "…"
    assert key not in usual_names[f"model {key}"]
