#!/usr/bin/env bash
# On the GPU machine, after stage.sh: run.sh SECONDS trains for so long, then packs what there is into $OUT.
# The trainings go on until the machine is given back; `run.sh 0` packs again.
set -euo pipefail
export PYTHONPATH=/tmp/site:/tmp/bc KERAS_BACKEND=jax BLOODCOUNT_DATA=/tmp/data XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=/tmp/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=2 PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3
runs=/dev/shm/runs stars=/dev/shm/stars
mkdir -p $runs $stars
if [ ! -e $runs/begun ]; then
    touch $runs/begun
    cd /tmp/bc
    OMP_NUM_THREADS=1 setsid nohup python3 benchmarks/gpu/stars.py $stars --seconds "$(($1 - 35))" >$stars/stars.log 2>&1 &
    OMP_NUM_THREADS=1 setsid nohup python3 benchmarks/gpu/train.py $runs --until "$(($1 + 60))" >$runs/train.log 2>&1 &
fi
end=$((SECONDS + $1))
while [ $SECONDS -lt $end ]; do
    sleep 20
    if [ $((SECONDS / 20 % 3)) = 0 ]; then
        echo "--- $SECONDS s"; tail -n 1 $stars/stars.log; tail -n 2 $runs/train.log
        nvidia-smi --query-gpu=utilization.gpu,memory.used,power.draw --format=csv,noheader || true
    fi
    if grep -q "all done" $runs/train.log && grep -q "chips/s" $stars/stars.log; then break; fi
done
cat $runs/train.log; tail -n 3 $stars/stars.log
for log in $runs/*.log; do echo "$log: $(tr "\r" "\n" <"$log" | tail -n 1 | cut -c1-300)"; done
for history in $runs/*/trained/*/history.csv; do echo "$(basename $(dirname $history)): $(tail -n 1 $history | cut -c1-250)"; done
cd /tmp/bc && OMP_NUM_THREADS=4 python3 benchmarks/gpu/collect.py $runs $stars "$OUT"
