#!/bin/sh
# The same command on every host, from a checkout at the same place: ssh.sh "HOST0 HOST1 ..." --config=... --workdir=...
hosts=$1 first=${1%% *} count=$(echo "$1" | wc -w) i=0
shift
for host in $hosts; do
  ssh "$host" "cd '$PWD' && python -m bireal_jax.main $* \
    --coordinator=$first:29500 --num_processes=$count --process_id=$i" &
  i=$((i + 1))
done
wait
