"""Programs that run inside the environments of other tools; ``benchmarks.decisions.peers`` starts them."""
