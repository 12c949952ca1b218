#!/bin/sh
# Two processes of four virtual devices each on this machine: two_terminals.sh WORKDIR
export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4
for i in 0 1; do
  python -m bireal_jax.main --config=configs/digits.py --workdir="$1" \
    --coordinator=localhost:29500 --num_processes=2 --process_id=$i &
done
wait
