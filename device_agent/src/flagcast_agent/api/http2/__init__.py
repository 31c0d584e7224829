"""HTTP/2 of a server without a socket: bytes and instants in, streams and bytes out (RFC 9113, RFC 7541)."""
