"""A service on which faults are caused: real API, dispatcher, Celery workers and servers, and a training that takes seconds.

The training is `tests.rig.trainer`, started by the product's own supervisor over its own pipes; it stands for `worker.child`
here and nowhere else.
"""
