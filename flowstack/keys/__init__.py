"""Flowstack keys: what a key is, how its secret looks, how its line in the keystore file reads.

Pure: text and bytes in, values and faults out. :mod:`flowstack.keys` reads and writes the file.
"""

from __future__ import annotations

from flowstack.addresses import Networks, client_address
from flowstack.keys.attributes import ATTRIBUTES, GROUP_ATTRIBUTES, Attribute, read_group_name
from flowstack.keys.key import Group, Key, check_usable, expires_text
from flowstack.keys.keyfile import Scan, parse_keys, scan
from flowstack.keys.keyset import KeySet
from flowstack.keys.line import format_group, format_key, line_id, rewrite_line
from flowstack.keys.permits import (
    check_address,
    check_endpoint,
    check_model,
    check_upstream,
    names_endpoint,
)
from flowstack.notation import Budget
from flowstack.tokens import (
    checksum_ok,
    digest,
    hide_keys,
    looks_like_flowstack_key,
    make_token,
    parse_flowstack_auth,
    unknown_key,
)

__all__ = [
    "ATTRIBUTES",
    "GROUP_ATTRIBUTES",
    "Attribute",
    "Budget",
    "Group",
    "Key",
    "KeySet",
    "Networks",
    "Scan",
    "check_address",
    "check_endpoint",
    "check_model",
    "check_upstream",
    "check_usable",
    "checksum_ok",
    "client_address",
    "digest",
    "expires_text",
    "format_group",
    "format_key",
    "hide_keys",
    "line_id",
    "looks_like_flowstack_key",
    "make_token",
    "names_endpoint",
    "parse_flowstack_auth",
    "parse_keys",
    "read_group_name",
    "rewrite_line",
    "scan",
    "unknown_key",
]
