"""Connections that a trusted proxy makes for a client, in memory."""

from __future__ import annotations
