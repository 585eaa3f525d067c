"""Flowstack keys: what a key is, how its secret looks, how its line in the keystore file reads.

Pure: text and bytes in, values and faults out. :mod:`flowstack.keystore` reads and writes the file.
"""

from __future__ import annotations

from flowstack.policy.keys.attributes import ATTRIBUTES, Attribute
from flowstack.policy.keys.keyfile import Fault, format_key, parse_keys
from flowstack.policy.keys.model import Budget, Key, check_usable, expires_text
from flowstack.policy.keys.tokens import (
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
    "Attribute",
    "Budget",
    "Fault",
    "Key",
    "check_usable",
    "checksum_ok",
    "digest",
    "expires_text",
    "format_key",
    "hide_keys",
    "looks_like_flowstack_key",
    "make_token",
    "parse_flowstack_auth",
    "parse_keys",
    "unknown_key",
]
