"""Benchmarks: the queue beside its peers, and each engine through the whole API beside the engine alone."""
