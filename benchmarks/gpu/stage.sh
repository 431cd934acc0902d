#!/usr/bin/env bash
# On the GPU machine: stage.sh PART ... moves carried data to /tmp/data, installs carried wheels, copies the code.
set -euo pipefail
mkdir -p /tmp/data/images /tmp/bc
for part in "$@"; do
    if [ -d "$part/whl" ]; then
        python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site "$part"/whl/*.whl
    fi
    for each in images masks edges polygons; do
        if [ -d "$part/$each" ]; then mkdir -p "/tmp/data/$each" && cp -r "$part/$each/." "/tmp/data/$each/"; fi
    done
    cp "$part"/*.csv /tmp/data/ 2>/dev/null || true
done
tar --exclude=.gpu --exclude=.git --exclude=.venv --exclude=runs -cf - . | tar -xf - -C /tmp/bc
ls /tmp/data/images | wc -l
