"""Limits: which stand for a key, how they are counted, and what a client is told.

Pure: numbers and rows in, numbers, fields and errors out. :mod:`flowstack.limits` holds the counters.
"""
