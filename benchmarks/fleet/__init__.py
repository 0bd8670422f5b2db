"""Routers beside each other, in turn in front of the same real vLLM servers on the CPU. See README.md here."""
