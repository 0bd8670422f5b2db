"""How fast is a real worker? Requests that measure it, and the fit that makes the lab's profile of it."""
