"""What keeps a run alive: devices, hosts, signals, checkpoints, the workdir, progress, numbers that are not finite.

Import the file that has it; each stands by itself.
"""
