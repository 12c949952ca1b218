"""Before and after a run: does the place, the data set, a checkpoint hold what it promises?

Import nothing from here; `--mode=doctor`, `data` and `verify` are the doors.
"""
