"""The HTTP/1.1 client for inference requests: connections to one worker, and the response to each request."""
