"""What a vLLM engine says of its KV cache as it changes: found, subscribed to, kept without gaps, handed on."""
