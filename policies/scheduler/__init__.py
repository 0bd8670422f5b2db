"""One pool's state machine: requests and workers in, decisions out."""
