#!/bin/bash
# bench/run.sh [short|full]: gatepost beside Postfix + OpenDKIM in one run, alternating.
#
#   short   (default; some 5 minutes) gatepost on SQLite and on PostgreSQL beside postfix, with short counts
#   full    (some 30 minutes on a quiet machine of 4 cores) every scenario that has a bar, beside postfix and
#           postfix-tuned, the ceiling that RSA sets, and hosts and services that the rig does not have (bench/sink)
#
# The results, and the tables that bench/judge makes of them, stay in bench/out. docs/performance.md tells more.
#
#   RIG             the folder of the relay bench; it is built in bench/out
#   GP_BIN          the program; default: bin/gatepost of this checkout (make build)
#   RELAYBENCH_TMP  where queues are written: on a real disk; default: bench/out
#   N               mails of one run of throughput: 4000 (short), 6000 (full); the other counts follow from it
#   OTP             sign-in mails of one run of latency: 100
#   ROUNDS          full: how often peers alternate in throughput: 2
#   MILLION         full: 1 adds the backlog of a million, some 6 minutes
set -eu
mode=${1:-short}
case $mode in short) N=${N:-4000} ;; full) N=${N:-6000} ;; *) sed -n 2,18p "$0" >&2; exit 2 ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
rig=${RIG:-$root/../shared/bench}
out=$root/bench/out
otp=${OTP:-100}
[ -f "$rig/main.go" ] || { echo "bench: no rig at $rig; set RIG to the folder of the relay bench" >&2; exit 1; }
export GP_BIN=${GP_BIN:-$root/bin/gatepost}
[ -x "$GP_BIN" ] || { echo "bench: no program at $GP_BIN; make build, or set GP_BIN" >&2; exit 1; }
mkdir -p "$out/rig"
cp -r "$rig/." "$out/rig/"
chmod -R u+w "$out/rig"
cd "$out/rig"
command -v opendkim >/dev/null && command -v postfix >/dev/null || ./setup.sh base
CGO_ENABLED=0 go build -o bin/relaybench .
export RELAYBENCH_TMP=${RELAYBENCH_TMP:-$out}
results=$out/$(date -u +%Y%m%dT%H%M%S)
gatepost=$root/bench/gatepost.sh

# machine tells where this was measured, in the form of Go's benchmarks.
machine() {
  echo "date: $(date -u +%Y-%m-%d)"
  echo "cores: $(nproc)"
  echo "processor: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)"
  echo "memory: $(awk '/^MemTotal/ {printf "%.0f GB", $2 / 1048576}' /proc/meminfo)"
  echo "system: $(uname -sr), $(go env GOVERSION), Postfix $(postconf -d -h mail_version)"
  echo "gatepost: $(git -C "$root" describe --always --dirty 2>/dev/null || "$GP_BIN" version)"
}

step() { echo "$(date -u +%T) $*" >&2; }

# run SCENARIO FLAGS...: one scenario of the rig.
run() {
  step "$@"
  timeout 1200 bin/relaybench "$@" -out "$results.jsonl" >/dev/null || echo "bench: failed: $*" >&2
}

# go_bench FOLDER PATTERN BENCHTIME: benchmarks of ours.
go_bench() {
  step "$1 $2 $3"
  (cd "$root" && go test -run '^$' -bench "$2" -benchtime "$3" -timeout 20m "./bench/$1") >> "$results.bench" ||
    echo "bench: failed: $1 $2; see $results.bench" >&2
}

ceiling() { go_bench judge RSACeiling 3s; }

# postfixes SCENARIO FLAGS...: for both settings of Postfix.
postfixes() {
  run "$1" -peer postfix "${@:2}"
  run "$1" -peer postfix-tuned "${@:2}"
}

# ours NAME SCENARIO FLAGS...: gatepost, under another name where NAME is not empty.
ours() { run "$2" -peer "$gatepost" -name "gatepost${1:+-$1}" "${@:3}"; }

short() {
  each() { # SCENARIO FLAGS...
    run "$1" -peer postfix "${@:2}"
    ours '' "$@"
    GP_STORE=postgres ours postgres "$@"
  }
  ceiling
  for conns in 20 100; do each throughput -n "$N" -conns "$conns"; done
  each idle -otp "$otp"
  each rtt -rtt 40ms -otp "$((otp / 2))" -otp-every 100ms
  each crash -n "$N" -conns 20
}

full() {
  for ((round = 0; round < ${ROUNDS:-2}; round++)); do
    ceiling
    for conns in 20 100; do
      postfixes throughput -n "$((N * 2 / 3))" -conns "$conns"
      ours '' throughput -n "$N" -conns "$conns"
    done
    postfixes throughput -n "$((N / 6))" -conns 1
    GP_VERDICT=queued ours queued throughput -n "$((N / 3))" -conns 1
    for size in 20480 204800; do
      postfixes throughput -n "$((N / 3))" -conns 20 -size "$size"
      ours '' throughput -n "$((N / 2))" -conns 20 -size "$size"
    done
    GP_SIGN=0 GP_CONNECTIONS=50 ours unsigned throughput -n "$((N * 10))" -conns 100
  done
  ceiling
  GP_STORE=postgres ours postgres throughput -n "$N" -conns 20

  postfixes idle -otp "$otp"
  GP_VERDICT=queued ours queued idle -otp "$otp"
  GP_VERDICT=upstream ours '' idle -otp "$otp"
  GP_VERDICT=upstream ours '' idle -otp "$otp" -sink-delay 100ms

  postfixes rtt -rtt 40ms -otp "$((otp / 2))" -otp-every 100ms
  GP_VERDICT=queued ours queued rtt -rtt 40ms -otp "$((otp / 2))" -otp-every 100ms
  GP_VERDICT=queued GP_CHUNKING=always ours chunking rtt -rtt 40ms -otp "$((otp / 2))" -otp-every 100ms -sink-chunking

  postfixes mixed -n "$((N * 4 / 3))" -conns 20 -sink-delay 100ms
  GP_CONNECTIONS=4+16 ours '' mixed -n "$((N * 4 / 3))" -conns 20 -sink-delay 100ms
  postfixes mixed -n "$((N * 10 / 3))" -conns 20
  GP_CONNECTIONS=4+16 ours '' mixed -n "$((N * 10 / 3))" -conns 20

  run backlog -peer postfix -n "$((N * 2))" -conns 100
  ours '' backlog -n "$((N * 50 / 3))" -conns 100
  GP_SIGN=0 GP_CONNECTIONS=50 ours unsigned backlog -n "$((N * 50 / 3))" -conns 100
  [ "${MILLION:-0}" != 1 ] || GP_SIGN=0 GP_CONNECTIONS=50 ours unsigned backlog -n 1000000 -conns 100 -limit 15m

  postfixes crash -n "$((N * 2 / 3))" -conns 20
  ours '' crash -n "$((N * 2 / 3))" -conns 20
  GP_STORE=postgres ours postgres crash -n "$((N * 2 / 3))" -conns 20

  go_bench sink 'ThroughputOverTLS|RefusedBacklog|CrowdedHost|ReadsRefused|ServiceThroughput' "$((N / 3))x"
  go_bench sink 'Flights|ServiceLatency' "$((otp / 4))x"
}

machine > "$results.bench"
$mode
(cd "$root" && go run ./bench/judge "$results.jsonl" "$results.bench") | tee "$results.md"
