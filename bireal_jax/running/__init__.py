"""What keeps a run alive: devices, hosts, signals, checkpoints, workdir, progress.

Import the file that has it; each stands by itself.
"""
