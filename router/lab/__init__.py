"""The lab: a trace replayed in virtual time through the scheduler that serves."""
