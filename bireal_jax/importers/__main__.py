"""The command: `python -m bireal_jax.importers`."""

from bireal_jax.importers import main

main()
