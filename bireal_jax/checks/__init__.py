"""Before and after a run: do place, data set and checkpoints hold what they promise?

Import nothing from here; `--mode=doctor`, `data` and `verify` are the doors.
"""
