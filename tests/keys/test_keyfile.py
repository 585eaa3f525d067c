"""The keystore file's text, by tables and by generated keys."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flowstack.keys import ATTRIBUTES, Budget, Key, format_key, line_id, parse_keys, scan
from flowstack.keys.attributes import unfit_character

A, B, C = "a1" * 32, "b2" * 32, "c3" * 32
HEAD = f"key1 sha256:{A}"


def parse_one(attributes: str) -> Key:
    keys, faults = parse_keys(f"{HEAD} {attributes}".encode(), "keys")
    assert faults == []
    assert len(keys) == 1
    return keys[0]


def faults_of(text: str | bytes) -> list[str]:
    raw = text if isinstance(text, bytes) else text.encode()
    _, faults = parse_keys(raw, "keys")
    return [str(fault) for fault in faults]


def test_the_contracts_example_is_read() -> None:
    text = f"""\
# id           hash                 attributes
k7Qm2xW9pLz4  sha256:{A}      owner=alice@example.com expires=2027-06-30 models=gpt-4o*,o3 rpm=600 tpm=200000
p3Rt8vN1cYs6  sha256:{B}      owner="Batch jobs" max_parallel=20 budget=50.00usd/month allow_ip=10.0.0.0/8 disabled
"""
    keys, faults = parse_keys(text.encode(), "keys")
    assert faults == []
    assert keys == [
        Key(
            "k7Qm2xW9pLz4",
            bytes.fromhex(A),
            owner="alice@example.com",
            expires_at=datetime(2027, 7, 1, tzinfo=UTC).timestamp(),
            models=("gpt-4o*", "o3"),
            rpm=600,
            tpm=200_000,
        ),
        Key(
            "p3Rt8vN1cYs6",
            bytes.fromhex(B),
            owner="Batch jobs",
            max_parallel=20,
            budget=Budget(Decimal(50), "month"),
            allow_ip=(ip_network("10.0.0.0/8"),),
            disabled=True,
        ),
    ]


READ: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("disabled", {"disabled": True}),
    ("owner=alice", {"owner": "alice"}),
    ('owner="alice"', {"owner": "alice"}),
    ('owner="a \\"b\\" \\\\ c"', {"owner": 'a "b" \\ c'}),
    ("owner=DOMAIN\\alice", {"owner": "DOMAIN\\alice"}),
    ("owner=a=b#c", {"owner": "a=b#c"}),
    ('owner="# no comment"', {"owner": "# no comment"}),
    ("owner=José", {"owner": "José"}),
    ("rpm=600 # tpm=5", {"rpm": 600}),
    ("#", {}),
    ("rpm=1\ttpm=2\t", {"rpm": 1, "tpm": 2}),
    ("rpm=999999999999999", {"rpm": 999_999_999_999_999}),
    ('models="a,b"', {"models": ("a", "b")}),
    ("models=ft:gpt-4o:acme::x,meta/Llama-3.1*", {"models": ("ft:gpt-4o:acme::x", "meta/Llama-3.1*")}),
    ("endpoints=/v1/models*,POST:/v1/chat/completions", {"endpoints": ("/v1/models*", "POST:/v1/chat/completions")}),
    ("upstreams=openai,other", {"upstreams": ("openai", "other")}),
    ("budget=0.000001usd/day", {"budget": Budget(Decimal("0.000001"), "day")}),
    ("budget=50usd/total", {"budget": Budget(Decimal(50), "total")}),
    ("allow_ip=192.0.2.7,2001:db8::/32", {"allow_ip": (ip_network("192.0.2.7/32"), ip_network("2001:db8::/32"))}),
    ("allow_ip=::1", {"allow_ip": (ip_network("::1/128"),)}),
    ("allow_ip=0.0.0.0/0", {"allow_ip": (ip_network("0.0.0.0/0"),)}),
    ("inject_usage=on", {"inject_usage": True}),
    ("inject_usage=off", {"inject_usage": False}),
    ("expires=1970-01-01", {"expires_at": 86_400.0}),
    ("expires=9999-12-31", {"expires_at": 253_402_300_800.0}),
    ("expires=2028-02-29", {"expires_at": 1_835_481_600.0}),
    ("expires=2027-06-30T12:00:00Z", {"expires_at": 1_814_356_800.0}),
    ("expires=2027-06-30t12:00:00z", {"expires_at": 1_814_356_800.0}),
    ("expires=2027-06-30T14:00:00+02:00", {"expires_at": 1_814_356_800.0}),
    ("expires=2027-06-30T06:30:00-05:30", {"expires_at": 1_814_356_800.0}),
    ("expires=2027-06-30T12:00:00.5Z", {"expires_at": 1_814_356_800.5}),
    ("expires=2027-06-30T12:00:00.1234567Z", {"expires_at": 1_814_356_800.123456}),
    ('note="for the nightly batch"', {"note": "for the nightly batch"}),
]


@pytest.mark.parametrize(("attributes", "fields"), READ)
def test_attributes_are_read(attributes: str, fields: dict[str, Any]) -> None:
    assert parse_one(attributes) == Key("key1", bytes.fromhex(A), **fields)


REFUSED: list[tuple[str, int, str]] = [
    # attributes, column within them, what the fault says
    ("rpm=5 rpm=6", 7, "found rpm a second time"),
    ("disabled disabled", 10, "found disabled a second time"),
    ("disabled=true", 1, "expected the bare word"),
    ("ownr=x", 1, "unknown attribute 'ownr', expected one of owner, expires, models"),
    ("ownr=x", 1, "did you mean owner?"),
    ("max-parallel=2", 1, "did you mean max_parallel?"),
    ("disable", 1, "did you mean disabled?"),
    ("owner=Batch jobs", 13, "a value with spaces needs double quotes"),
    ("xK9mQ2xW9pLz4secret", 1, "a word of 19 characters (not shown"),
    ("owner", 1, "owner: found no value"),
    ("owner=", 1, "owner: found nothing"),
    ('owner=""', 1, "owner: found nothing"),
    (f"owner={'x' * 257}", 1, "owner: found 257 characters, expected at most 256"),
    ('owner="Batch jobs', 7, "found a double quote out of place"),
    ('owner="a"b', 7, "found a double quote out of place"),
    ('owner=a"b"', 8, "found a double quote out of place"),
    ('owner="a\\nb"', 1, 'owner: found \\n in quotes, expected \\" or \\\\ only'),
    ('owner="a\\', 7, "found a double quote out of place"),
    ('owner="a\tb"', 1, "owner: found U+0009"),
    ("=5", 1, "found '=' with no name before it"),
    ("owner=a\u00a0b", 8, "found U+00A0 NO-BREAK SPACE, expected printable text; remove it, or put a plain space"),
    ("owner=a\u202eb", 8, "found U+202E RIGHT-TO-LEFT OVERRIDE"),
    ("owner=a\u2028b", 8, "found U+2028 LINE SEPARATOR"),
    ("owner=a\x00b", 8, "found U+0000 (a control character)"),
    ("owner=a\x1bb", 8, "found U+001B (a control character)"),
    ("owner=a\rowner=b", 8, "found U+000D (a control character), expected printable text; end lines with LF or CRLF"),
    ("rpm=0", 1, "0 would let nothing pass: use disabled"),
    ("rpm=-1", 1, "rpm: found '-1', expected a whole number of requests a minute"),
    ("rpm=600/min", 1, "rpm: found '600/min'"),
    ("tpm=200k", 1, "tpm: found '200k', expected a whole number of tokens a minute"),
    ("tpm=200_000", 1, "tpm: found '200_000'"),
    ("tpm=٣", 1, "tpm: found '٣'"),
    ("rpm=007", 1, "rpm: found '007'"),
    ("rpm=", 1, "rpm: found nothing"),
    ("rpm=1000000000000000", 1, "rpm: found '1000000000000000'"),
    ("max_parallel=1000001", 1, "expected at most 1000000 requests at once"),
    ("previous=sha256:12", 1, "previous: found 9 characters (not shown), expected sha256:<64 hex>"),
    (f"previous=sha256:{B}", 0, "previous: found without previous_until, expected both or neither"),
    ("previous_until=2027-06-30", 0, "previous_until: found without previous"),
    (f"previous=sha256:{A} previous_until=2027-06-30", 0, "previous: found the key's own hash"),
    (f"previous=sha256:{B} previous=sha256:{A}", 82, "found previous a second time, expected it once: one rotation"),
    ("max_parallel=2.5", 1, "max_parallel: found '2.5', expected a whole number of requests at once"),
    ("budget=50", 1, "budget: found '50', expected an amount above 0"),
    ("budget=50eur/month", 1, "budget: found '50eur/month'"),
    ("budget=50usd/week", 1, "such as 50.00usd/month"),
    ("budget=0usd/day", 1, "expected an amount above 0"),
    ("budget=$50/month", 1, "budget: found '$50/month'"),
    ("expires=30.06.2027", 1, "expires: found '30.06.2027', expected a day such as 2027-06-30"),
    ("expires=2027-02-29", 1, "expires: found '2027-02-29'"),
    ("expires=2027-06-30T12:00:00", 1, "expires: found '2027-06-30T12:00:00'"),
    ("expires=2027-06-30T24:00:00Z", 1, "expires: found"),
    ("expires=2027-06-30T12:00:60Z", 1, "expires: found"),
    ("expires=20270630", 1, "expires: found"),
    ("expires=1227-06-30", 1, "expected a time from 1970 to 9999"),
    ("expires=0001-01-01T00:00:00+14:00", 1, "expected a time from 1970 to 9999"),
    ("expires=9999-12-31T23:59:59-14:00", 1, "expected a time from 1970 to 9999"),
    ("expires=never", 1, "expires: found 'never'"),
    ("allow_ip=10.0.0.1/8", 1, "has bits set beyond its prefix, expected 10.0.0.0/8 for the network, or 10.0.0.1 for"),
    ("allow_ip=2001:db8::1/32", 1, "expected 2001:db8::/32 for the network, or 2001:db8::1 for the one address"),
    ("allow_ip=10.0.0.0/33", 1, "allow_ip: found '10.0.0.0/33', expected an address or a network"),
    ("allow_ip=10.0.0.0/255.0.0.0", 1, "allow_ip: found"),
    ("allow_ip=10.0.0.0/", 1, "allow_ip: found"),
    ("allow_ip=10.0.0.300", 1, "allow_ip: found '10.0.0.300'"),
    ("allow_ip=example.com", 1, "allow_ip: found 'example.com'"),
    ("allow_ip=fe80::1%eth0", 1, "allow_ip: found"),
    ("allow_ip=::ffff:10.0.0.1", 1, "expected it written as IPv4"),
    ("allow_ip=10.0.0.0/8,", 1, "allow_ip: found nothing"),
    ("models=", 1, "models: found nothing"),
    ("models=a,,b", 1, "models: found nothing"),
    ('models="a, b"', 1, "models: found ' b'"),
    ("models=gpt-[45]", 1, "models: found 'gpt-[45]'"),
    ("models=gpt-4?", 1, "models: found 'gpt-4?'"),
    ("endpoints=v1/models", 1, "endpoints: found 'v1/models', expected a path such as"),
    ("endpoints=post:/v1/models", 1, "endpoints: found 'post:/v1/models'"),
    ("endpoints=TRACE:/v1/models", 1, "endpoints: found 'TRACE:/v1/models'"),
    ("upstreams=open/ai", 1, "upstreams: found 'open/ai'"),
    ("inject_usage=yes", 1, "inject_usage: found 'yes', expected on or off"),
    ("owner=sk-proj-abc rpm=sk-proj-abc", 19, "rpm: found a value of 11 characters (not shown)"),
]


@pytest.mark.parametrize(("attributes", "column", "says"), REFUSED)
def test_a_wrong_attribute_is_named_with_its_place_and_what_to_do(attributes: str, column: int, says: str) -> None:
    faults = faults_of(f"# first\n{HEAD} {attributes}\n")
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"keys:2:{len(HEAD) + 1 + column}: ")
    assert says in faults[0]


SECRET = "s3cr3tS3CR3T0123456789"

BAD_LINES: list[tuple[str, int, str]] = [
    (f"{HEAD[:-1]}", 6, "hash: found 63 characters after 'sha256:', expected sha256:<64 hex>"),
    (f"{HEAD}0", 6, "hash: found 65 characters after 'sha256:'"),
    (f"{HEAD[:-1]}g", 6, "hash: found characters after 'sha256:' that are not hexadecimal"),
    (f"key1 {A}", 6, "hash: found 64 characters without 'sha256:' (not shown"),
    (f"key1 sha512:{A}", 6, "hash: found a hash of another kind"),
    (f"key1 {SECRET}:x", 6, "hash: found something else (not shown)"),
    (f"key1 {SECRET}", 6, "hash: found 22 characters without 'sha256:'"),
    ("key1", 5, "hash: found none"),
    ("key1 rpm=5", 5, "hash: found none"),
    ("key1 disabled", 5, "hash: found none"),
    ("key1 # sha256:", 5, "hash: found none"),
    ("rpm=5", 1, "found an attribute, expected an id first"),
    (f"sha256:{A}", 1, "found a hash, expected an id first"),
    (f"a/b sha256:{A}", 2, "id: found U+002F SOLIDUS, expected 1 to 64 of"),
    (f"ключ sha256:{A}", 1, "id: found U+043A CYRILLIC SMALL LETTER KA"),
    (f"{'x' * 65} sha256:{A}", 1, "id: found 65 characters"),
    (f"fsk-{SECRET}", 1, "found a whole key (fsk-..., not shown)"),
    (f"key1 fsk-{SECRET}", 6, "found a whole key"),
    (f"{HEAD} note=fsk-{SECRET}", len(HEAD) + 7, "found a whole key"),
    (f"# old: fsk-{SECRET}", 8, "found a whole key"),
    (f"{HEAD} # fsk-{SECRET}", len(HEAD) + 4, "found a whole key"),
    ("# a\x00b", 4, "found U+0000"),
]


@pytest.mark.parametrize(("line", "column", "says"), BAD_LINES)
def test_a_line_without_id_or_hash_or_with_a_secret_is_refused_and_the_secret_never_shown(
    line: str, column: int, says: str
) -> None:
    faults = faults_of(f"\n{line}\n")
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"keys:2:{column}: ")
    assert says in faults[0]
    assert SECRET not in faults[0]


def test_all_faults_are_found_in_the_order_of_the_file() -> None:
    text = f"key1 sha256:{A} rpm=x tpm=y\n\nkey/2 nohash owner=\n# fine\nkey3 sha256:{B} ownr=x\n"
    places = [(fault.line, fault.column) for fault in parse_keys(text.encode(), "keys")[1]]
    assert places == [(1, 78), (1, 84), (3, 4), (3, 7), (3, 14), (5, 78)]


def test_a_repeated_id_names_both_lines_also_where_they_have_other_faults() -> None:
    faults = faults_of(f"key1 sha256:{A} rpm=x\n  key1 sha256:{B}\n")
    assert len(faults) == 2
    assert faults[1].startswith("keys:2:3: found the id key1 as in line 1, expected each once")


def test_a_repeated_hash_names_both_lines_whatever_its_case_without_showing_it() -> None:
    faults = faults_of(f"key1 sha256:{A}\nkey2 sha256:{A.upper()}\n")
    assert len(faults) == 1
    assert faults[0].startswith("keys:2:13: found the same hash as in line 1")
    assert A not in faults[0].lower()


def test_a_replaced_secrets_hash_is_no_other_keys_hash_on_either_side() -> None:
    rotated = f"key1 sha256:{A} previous=sha256:{B.upper()} previous_until=2027-06-30\n"
    again = f"key3 sha256:{C} note=é previous=sha256:{A} previous_until=2027-06-30\n"
    faults = faults_of(f"{rotated}key2 sha256:{B}\n{again}")
    assert len(faults) == 2
    assert faults[0].startswith("keys:2:13: found the same hash as in line 1")
    assert faults[1].startswith(f"keys:3:{len(HEAD) + 25}: found the same hash as in line 1")


def test_an_id_is_not_repeated_by_one_that_begins_like_it_or_is_written_in_another_case() -> None:
    text = "".join(f"{key_id} sha256:{number:064x}\n" for number, key_id in enumerate(["k", "k1", "k10", "K1", "k1."]))
    keys, faults = parse_keys(text.encode(), "keys")
    assert faults == []
    assert len(keys) == 5


def test_a_key_that_has_expired_draws_a_warning_with_its_line_and_no_fault() -> None:
    text = f"# x\nkey1 sha256:{A} expires=2027-06-30\nkey2 sha256:{B} expires=2027-07-01\n".encode()
    judged = scan(text, "keys", datetime(2027, 7, 1, tzinfo=UTC).timestamp())
    assert judged.faults == []
    assert [str(warning) for warning in judged.warnings] == [
        "keys:2: expires: found a time that has passed: the key key1 was valid through 2027-06-30 (UTC); remove the "
        "line, or move the date"
    ]
    assert scan(text, "keys").warnings == []


def test_twenty_expired_keys_are_named_and_the_rest_is_counted() -> None:
    text = "".join(f"k{number} sha256:{number:064x} expires=2020-01-01\n" for number in range(23))
    warnings = scan(text.encode(), "keys", 1_800_000_000.0).warnings
    assert len(warnings) == 21
    assert str(warnings[-1]) == "keys: and 3 more keys that have expired; `flowstack keys list` shows them"


def test_after_ten_thousand_faults_the_rest_is_not_judged() -> None:
    faults = faults_of("x\n" * 10_005)
    assert len(faults) == 10_001
    assert "keys:10000: found 10000 faults up to here; the rest was not judged" in faults
    assert not any(fault.startswith("keys:10001:") for fault in faults)


def test_a_line_that_never_ends_is_a_fault_and_not_read() -> None:
    line = f"{HEAD} models={'a,' * 200_000}b"
    assert faults_of(f"# x\n{line}\n{HEAD}\n") == [
        f"keys:2: found a line of {len(line)} bytes, expected at most 65536; end lines with LF, and shorten its lists"
    ]


@pytest.mark.parametrize(
    ("mark", "name"), [(b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")]
)
def test_a_byte_order_mark_is_called_by_its_name(mark: bytes, name: str) -> None:
    assert faults_of(mark + HEAD.encode()) == [
        f"keys:1:1: found a {name} byte order mark, expected UTF-8 text without one; save the file as plain UTF-8"
    ]


def test_each_line_that_is_not_utf8_is_named_and_the_others_are_still_judged() -> None:
    faults = faults_of(f"key1 sha256:{A} rpm=x\n".encode() + b"k\xe9y\n\xff\n")
    assert [fault.split(" expected")[0] for fault in faults] == [
        "keys:1:78: rpm: found 'x',",
        "keys:2:2: found the byte 0xe9,",
        "keys:3:1: found the byte 0xff,",
    ]


@pytest.mark.parametrize("text", ["", "\n", "  \t\n# only this\n   # and this", "#\r\n"])
def test_a_file_without_keys_is_no_fault(text: str) -> None:
    assert parse_keys(text.encode(), "keys") == ([], [])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_with_lf_or_crlf_and_the_last_one_with_or_without(end: str, last: bool) -> None:
    text = end.join([HEAD, "# x", f"\tkey2\tsha256:{B} owner=b"]) + (end if last else "")
    keys, faults = parse_keys(text.encode(), "keys")
    assert faults == []
    assert [(key.id, key.owner) for key in keys] == [("key1", None), ("key2", "b")]


@pytest.mark.parametrize(
    ("line", "key_id"), [("", None), ("  # key1", None), ("#\r\n", None), (HEAD, "key1"), (f"\t{HEAD} # x\r\n", "key1")]
)
def test_a_line_is_known_by_its_id(line: str, key_id: str | None) -> None:
    assert line_id(line) == key_id


def _characters(alphabet: str) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(alphabet), min_size=1, max_size=12)


words = st.text(min_size=1, max_size=40).filter(lambda text: unfit_character(text) < 0 and "fsk-" not in text)
awkward = st.text(st.sampled_from(' "\\#=,aé'), min_size=1, max_size=12)
texts = st.none() | words | awkward
names = st.lists(_characters("abcXYZ019._*-"), max_size=3).map(tuple)
numbers = st.none() | st.integers(1, 10**15 - 1)
instants = st.integers(1, 253_402_300_800_000_000).map(lambda micros: micros / 1_000_000)
days = st.integers(1, 253_402_300_800 // 86_400).map(lambda day: day * 86_400.0)
amounts = st.decimals(Decimal("0.000001"), Decimal("999999999999"), places=6).map(lambda amount: amount.normalize())
networks = st.ip_addresses().map(str).filter(lambda text: not text.startswith("::ffff:")).map(ip_network)
wide = st.integers(0, 32).map(lambda length: ip_network(f"10.32.0.0/{length}", strict=False))
keys = st.builds(
    Key,
    id=_characters("abcXYZ019._-"),
    digest=st.binary(min_size=32, max_size=32),
    owner=texts,
    expires_at=st.none() | instants | days,
    disabled=st.booleans(),
    models=names,
    endpoints=names.map(lambda items: tuple(f"/{item}" for item in items)),
    upstreams=st.lists(_characters("abc01._-"), max_size=3).map(tuple),
    rpm=numbers,
    tpm=numbers,
    max_parallel=st.none() | st.integers(1, 1_000_000),
    budget=st.none() | st.builds(Budget, amounts, st.sampled_from(["day", "month", "total"])),
    allow_ip=st.lists(networks | wide, max_size=3).map(tuple),
    note=texts,
    inject_usage=st.none() | st.booleans(),
)


rotated = st.builds(
    lambda key, previous, until: evolve(key, previous=previous, previous_until=until),
    keys,
    st.binary(min_size=32, max_size=32),
    instants | days,
).filter(lambda key: key.previous != key.digest)


@given(keys | rotated)
def test_a_key_that_is_written_as_a_line_is_read_as_the_same_key(key: Key) -> None:
    assert parse_keys(format_key(key).encode(), "keys") == ([key], [])


key_sets = st.lists(keys, unique_by=(lambda key: key.id, lambda key: key.digest), max_size=5)


@given(key_sets, st.sampled_from(["\n", "\r\n"]))
def test_a_file_of_written_keys_is_read_as_the_same_keys(several: list[Key], end: str) -> None:
    text = f"# a comment{end}" + "".join(f"{format_key(key)}  # a remark{end}{end}" for key in several)
    assert parse_keys(text.encode(), "keys") == (several, [])


@given(st.binary(max_size=120) | st.text(max_size=120).map(str.encode))
def test_any_bytes_give_keys_or_faults_with_a_place(text: bytes) -> None:
    for line in (text, HEAD.encode() + b" " + text, b"key1 " + text):
        found, faults = parse_keys(line, "keys")
        assert all(fault.line and fault.column for fault in faults)
        assert all(isinstance(key, Key) for key in found)
        again, wrong = parse_keys("\n".join(map(format_key, found)).encode(), "keys")
        assert faults or (again, wrong) == (found, [])


signs = st.sampled_from(['"', "\\", "=", " ", "#", ",", "owner", "rpm", "5", "disabled", "fsk-", "\t"])


@given(st.lists(signs, max_size=12))
def test_any_jumble_of_the_files_own_signs_gives_a_key_or_faults_never_both(parts: list[str]) -> None:
    found, faults = parse_keys(f"{HEAD} {''.join(parts)}".encode(), "keys")
    assert bool(found) != bool(faults)


@pytest.mark.parametrize("attribute", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_the_example_in_each_attributes_help_is_valid(attribute: Any) -> None:
    assert attribute.write(attribute.read(attribute.example)) == attribute.example


def test_the_example_that_an_operator_copies_is_valid_and_names_every_attribute() -> None:
    text = (Path(__file__).parents[2] / "etc" / "keys.example").read_bytes()
    found, faults = parse_keys(text, "keys.example")
    assert faults == []
    assert [key.id for key in found] == ["k7Qm2xW9pLz4", "p3Rt8vN1cYs6"]
    shown = re.findall(r"^#   ([a-z_]+)(?:=(?:\"[^\"]*\"|\S+))?  ", text.decode(), re.MULTILINE)
    assert set(shown) == {*ATTRIBUTES, "disabled"}
    for example in re.findall(r"^#   ([a-z_]+=(?:\"[^\"]*\"|\S+))  ", text.decode(), re.MULTILINE):
        if not example.startswith(("previous", "group")):  # which need another, and a line of its own
            parse_one(example)


def test_the_example_says_which_attributes_are_enforced_and_which_are_only_written_down() -> None:
    text = (Path(__file__).parents[2] / "etc" / "keys.example").read_text("utf-8")
    sections = re.findall(r"^# (Enforced|Written down|Written by)\b.*\n((?:#   .*\n)+)", text, re.MULTILINE)
    assert {heading: set(re.findall(r"^#   ([a-z_]+)", rows, re.MULTILINE)) for heading, rows in sections} == {
        "Enforced": {*ATTRIBUTES, "disabled"} - {"owner", "note", "previous", "previous_until"},
        "Written down": {"owner", "note"},
        "Written by": {"previous", "previous_until"},
    }
