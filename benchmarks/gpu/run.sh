#!/usr/bin/env bash
# On the GPU machine, after stage.sh: run.sh SECONDS trains for so long, then packs what there is into $OUT.
# The trainings go on until the machine is given back; `run.sh 0` packs again.
set -euo pipefail
export PYTHONPATH=/tmp/site:/tmp/bc KERAS_BACKEND=jax BLOODCOUNT_DATA=/tmp/data XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=/tmp/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=2 PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3
runs=${RUNS:-/dev/shm/runs} stars=${STARS:-/dev/shm/stars}

# Minutes of a GPU are too dear to find out late that something is missing
cd /tmp/bc || { echo "No code in /tmp/bc: run stage.sh first, on this very machine."; exit 2; }
images=$(ls /tmp/data/images | wc -l)
[ "$images" = 108 ] || { echo "$images of 108 images in /tmp/data: stage all parts on this very machine."; exit 2; }
python3 -c "import keras, stardist, bloodcount.training, bloodcount.star_chips, bloodcount.studies.protocol" || exit 2

mkdir -p "$runs" "$stars"
if [ ! -e "$runs/begun" ]; then
    touch "$runs/begun"
    OMP_NUM_THREADS=1 setsid nohup python3 benchmarks/gpu/stars.py "$stars" --seconds "$(($1 - 35))" >"$stars/stars.log" 2>&1 &
    OMP_NUM_THREADS=1 setsid nohup python3 benchmarks/gpu/train.py "$runs" --until "$(($1 + 60))" >"$runs/train.log" 2>&1 &
fi
end=$((SECONDS + $1)) told=$SECONDS
while [ $SECONDS -lt $end ]; do
    sleep 3
    if [ $((SECONDS - told)) -ge 45 ]; then
        told=$SECONDS
        echo "--- $SECONDS s"
        tail -qn 2 "$stars/stars.log" "$runs/train.log"
        nvidia-smi --query-gpu=utilization.gpu,memory.used,power.draw --format=csv,noheader || true
    fi
    pgrep -f benchmarks/gpu/ >/dev/null || { echo "Nothing runs any more."; break; }
    if grep -q "ended with [1-9-]" "$runs/train.log"; then
        failed=$(grep -m 1 "ended with [1-9-]" "$runs/train.log" | sed 's/.*s: \(.*\) ended.*/\1/')
        [ -e "$runs/failed" ] || { touch "$runs/failed"; echo "$failed FAILED:"; tail -n 5 "$runs/$failed.log"; }
    fi
done
cat "$runs/train.log"
tail -n 3 "$stars/stars.log"
for log in "$runs"/*.log; do echo "$log: $(tail -n 1 "$log" | cut -c1-200)"; done
for history in "$runs"/*/trained/*/history.csv; do
    [ -e "$history" ] && echo "$(basename "$(dirname "$history")"): $(tail -n 1 "$history" | cut -c1-250)"
done
OMP_NUM_THREADS=4 python3 benchmarks/gpu/collect.py "$runs" "$stars" "$OUT"
