"""The load clients, each a process of its own: ``python -m bench.client <kind> <json>`` prints one JSON object."""
