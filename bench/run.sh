#!/bin/bash
# bench/run.sh: gatepost, on SQLite and on PostgreSQL, beside Postfix + OpenDKIM in one run of the rig, alternating, with
# short counts. RIG is the rig's folder; it is built in, and leaves its results in, bench/out.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
rig=${RIG:-$root/../shared/bench}
out=$root/bench/out
[ -f "$rig/main.go" ] || { echo "bench: no rig at $rig; set RIG to the folder of the relay bench" >&2; exit 1; }
mkdir -p "$out/rig"
cp -r "$rig/." "$out/rig/"
chmod -R u+w "$out/rig"
cd "$out/rig"
command -v opendkim >/dev/null && command -v postfix >/dev/null || ./setup.sh base
CGO_ENABLED=0 go build -o bin/relaybench .
export RELAYBENCH_TMP=${RELAYBENCH_TMP:-$out}
results=$out/$(date -u +%Y%m%dT%H%M%S).jsonl
n=${N:-4000} otp=${OTP:-100}
run() { bin/relaybench "$@" -out "$results" >/dev/null || echo "failed: $*" >&2; }
each() { # SCENARIO FLAGS...: for every peer
  run "$1" -peer postfix "${@:2}"
  run "$1" -peer "$root/bench/gatepost.sh" "${@:2}"
  GP_STORE=postgres run "$1" -peer "$root/bench/gatepost.sh" -name gatepost-postgres "${@:2}"
}
for conns in 20 100; do each throughput -n "$n" -conns "$conns"; done
each idle -otp "$otp"
each rtt -rtt 40ms -otp "$((otp / 2))" -otp-every 100ms
each crash -n "$n" -conns 20
bin/relaybench table "$results" | tee "${results%.jsonl}.md"
