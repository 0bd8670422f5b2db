"""Where the lab's workloads come from: traces, seeded generators, and compositions of two."""
