"""The inference API: what is read of requests and answers, and what is changed in them."""
