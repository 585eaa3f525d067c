"""HTTP/1.1 on sockets: the server channel, the client connection, the pool and the transports under them."""
