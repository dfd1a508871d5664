"""Workers: claim jobs, start and watch training processes, answer comparisons.

Only `worker.child` (training) and `worker.generation` (comparisons) load torch.
"""
