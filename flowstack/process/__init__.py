"""Everything that is a process: what it consists of, who starts it and starts it again, its signals, and systemd.

Nothing else builds collaborators. ``python -m flowstack.process.worker`` and ``python -m flowstack.process.indexer``
are processes of their own, so nothing is imported here: a worker chooses its reactor first.
"""
