"""What the router reports of itself: log lines and Prometheus series."""
