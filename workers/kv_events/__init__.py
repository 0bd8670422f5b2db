"""A vLLM engine's KV cache events: found, subscribed to, put in order without gaps, and passed on."""
