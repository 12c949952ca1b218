#!/bin/sh
# Two processes on this machine, to try it out: two_terminals.sh WORKDIR. What `process` does is the command that each of two
# terminals, or hosts, would run.
export JAX_PLATFORMS=cpu
process() {
  python -m bireal_jax.main --config=configs/digits.py --workdir="$1" \
    --coordinator=localhost:29500 --num_processes=2 --process_id="$2"
}
process "$1" 0 &
process "$1" 1
second=$?
wait $! || exit $?
exit $second
