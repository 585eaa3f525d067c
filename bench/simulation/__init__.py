"""Many machines and their Redis in one process, in time that is made up: what do the limits let pass when things fail?

Everything that decides is the product's own: each worker's ``Link`` and ``RemoteLimiter``, each machine's counters for
its share, and ``functions.lua`` in a real Redis server. Made up are the clocks, the network between them, the clients
and the upstream. Of the functions' text two lines are others: the clock, and when a budget's key expires, which here
go by the time that is made up.
"""
