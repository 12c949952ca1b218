"""Architecture search: evolution over genes under a budget, and the spaces of the papers.

Import `evolve` for the algorithm, `spaces` for what is searched; `--mode=search` is the door.
"""
