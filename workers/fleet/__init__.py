"""Which vLLM servers there are, what each one serves, and whether it can be used: probed, scraped, judged."""
