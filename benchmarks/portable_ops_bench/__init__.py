"""Cases, oracles, measuring and reports: how portable_ops is proven equal and timed on every backend."""
