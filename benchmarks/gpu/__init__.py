"""What a GPU does with this library: one module an arm of `benchmarks/gpu_check.py`, each in a process of its own."""
