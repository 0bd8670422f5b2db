"""Which worker holds which prefix in its KV cache: expected from what was sent, exact by its own reports."""
