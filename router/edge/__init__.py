"""The edge: bytes, sockets and streams. It knows values only; what is shared is behind the port."""
