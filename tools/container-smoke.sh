#!/usr/bin/env bash
# Builds the project image and runs the smallest pipeline in containers of it, through real S3, MLflow and Triton, beside
# the same pipeline in processes without any of them: both must make the same artifacts. Called by .ci/run.
#
# Where no container can be started that is said, and is no failure; CONTAINERS=required makes it one.
# Needs `make setup triton`. Leaves the image, and an engine that it started itself stopped.
set -uo pipefail
cd "$(dirname "$0")/.."
. tools/say.sh
. tools/engine.sh
python=${VENV:-.venv}/bin/python
folder=$(mktemp -d)
wovr() { "$python" -m pipelines "$@"; }
finish() {
    wovr stack down --folder "$folder/stack" >/dev/null 2>&1
    stop_engine
    kill $(jobs -p) 2>/dev/null
    wait
    rm -rf "$folder"
}
trap finish EXIT
cannot() {
    say "Containers are NOT tested here: $*"
    [ "${CONTAINERS:-}" != required ]
    exit
}

start_engine >"$folder/engine.log" 2>&1 || cannot "$(cat "$folder/engine.log")"
# without PACE: a round runs the same components once more, and tests/pipelines/test_smoke.py has one
sed 's/rounds: 1/rounds: 0/' pipelines/configs/tabletop-smoke.yaml >"$folder/smoke.yaml"
wovr run "$folder/smoke.yaml" --out "$folder/runs/processes" >"$folder/processes.log" 2>&1 &
processes=$!
tools/images.sh train
case $? in 0) ;; 3) cannot "no image can be built, see above" ;; *) fail "The project image could not be built." ;; esac
wovr stack up --folder "$folder/stack" || fail "The services did not start."
wait $processes || { tail -n 20 "$folder/processes.log" >&2; fail "The run in processes failed."; }

set -a; . "$folder/stack/env"; set +a
wovr run "$folder/smoke.yaml" --runner docker --stack --out "$folder/runs/containers" || fail "The run in containers failed."
"$python" -m tools.same_run "$folder/runs/processes" "$folder/runs/containers" --exact || fail "The two runs differ."
"$python" -m pytest -rs tests/pipelines/test_containers.py || fail "Containers do not behave."
say "The pipeline ran in containers."
