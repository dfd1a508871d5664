"""Workers: claim jobs, start and watch training processes, answer comparisons.

Only `worker.child` (training), the fork server for it, and `worker.generation` (comparisons) load torch.
"""
