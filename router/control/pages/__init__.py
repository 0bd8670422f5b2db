"""The pages that are not inference: for probes, for operators, for people."""
