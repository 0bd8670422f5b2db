"""vLLM processes on this machine: planned, started, restarted when they die, and never orphaned."""
