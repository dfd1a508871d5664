"""Workers: claim jobs, start and watch training processes, answer comparisons.

Only `worker.child` (training), its fork server, and `worker.generation` (comparisons) load torch.
"""
