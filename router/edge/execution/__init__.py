"""How a request is carried out: from its first byte to its one end."""
