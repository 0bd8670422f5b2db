"""Everything about vLLM. Nothing here knows that a policy exists."""
