"""A vLLM without a GPU: its scheduler and KV cache in simulated time, and its HTTP surface on real sockets."""
