#!/bin/sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@60
#SBATCH --requeue
# sbatch slurm.sh --config=configs/r18.py --workdir=DIR: SIGTERM comes a minute before the time is up, and all is saved.
srun python -m bireal_jax.main "$@"
