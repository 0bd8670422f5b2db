"""What a router costs per request, per chunk and per open stream, beside its peers."""
