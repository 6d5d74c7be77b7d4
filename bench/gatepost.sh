#!/bin/bash
# gatepost as a peer of the relay bench: gatepost.sh start | flush | cleanup. The rig sets the BENCH_ variables.
#
#   GP_BIN          the binary; default: bin/gatepost of this checkout (make build)
#   GP_VERDICT      when the client gets its answer: queued or upstream; default: each kind's own
#   GP_CONNECTIONS  connections per upstream; default 20; "4+16" splits them over two upstreams, auth first
#   GP_SIGN         1 signs (default), 0 leaves signing to the upstream
#   GP_UPSTREAMS    1: both streams share one upstream (default), 2: one each
#   GP_STORE        sqlite (default), or postgres: a server of its own, with PostgreSQL's own settings; what that uses of
#                   the processor and of memory counts as gatepost's
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
pg=$BENCH_DIR/pg
bins=(/usr/lib/postgresql/*/bin)
as_postgres() { (cd / && exec setpriv --reuid postgres --regid postgres --init-groups -- "$@"); }

# database starts the server, which runs on when gatepost has taken this shell's place.
database() {
  if [ ! -d "$pg" ]; then
    chmod o+x "$BENCH_DIR"
    install -d -o postgres -g postgres "$pg"
    as_postgres "${bins[-1]}/initdb" -D "$pg/data" -U gatepost -A trust -E UTF8 --locale=C >/dev/null
    printf "listen_addresses = ''\nunix_socket_directories = '%s'\n" "$pg" >> "$pg/data/postgresql.conf"
  fi
  as_postgres "${bins[-1]}/pg_ctl" -D "$pg/data" -l "$pg/log" -w start >/dev/null
  "${bins[-1]}/createdb" -h "$pg" -U gatepost gatepost 2>/dev/null || : # it is there already after a restart
}

case $1 in
start)
  d=$BENCH_DIR/gatepost
  mkdir -p "$d"
  install -m 600 "${BENCH_KEY%/*}/dkim.pkcs8.pem" "$d/dkim.pem"
  connections=${GP_CONNECTIONS:-20}
  upstreams=${GP_UPSTREAMS:-1}
  case $connections in *+*) upstreams=2 ;; esac
  news=sink
  [ "$upstreams" = 2 ] && news=sink-news
  verdict=
  [ -n "${GP_VERDICT:-}" ] && verdict="verdict = \"$GP_VERDICT\""
  dkim="dkim = { selector = \"$BENCH_SELECTOR\", key_file = \"dkim.pem\", shared = true }" mode=sign
  [ "${GP_SIGN:-1}" = 0 ] && dkim='' mode=none
  upstream() {
    printf '[upstream.%s]\ntype = "smtp"\naddress = "%s:%s"\ntls = "none"\nconnections = %s\ndkim = "%s"\nshared = true\n' \
      "$1" "$BENCH_SINK_HOST" "$BENCH_SINK_PORT" "$2" "$mode"
  }
  store=
  if [ "${GP_STORE:-sqlite}" = postgres ]; then
    database
    store=$(printf '[store]\nengine = "postgres"\ndsn_file = "store.dsn"\nkey_file = "store.key"')
    (umask 077 && echo "host=$pg user=gatepost dbname=gatepost" > "$d/store.dsn")
    [ -f "$d/store.key" ] || "${GP_BIN:-$root/bin/gatepost}" store init-key "$d/store.key" >/dev/null
  fi
  {
    cat <<X
hostname = "relay.example.com"
state_dir = "state"
$store
[log]
level = "warn"
[listen.smtp]
address = "$BENCH_LISTEN_HOST:$BENCH_LISTEN_PORT"
clients = ["bench"]
[client.bench]
networks = ["127.0.0.0/8"]
streams = ["auth", "marketing"]
[egress.local]
ipv4 = "127.0.0.1"
shared = true
[stream.auth]
kind = "auth"
domains = ["auth.example.com"]
route = ["sink"]
egress = "local"
when_down = "queue"
$dkim
$verdict
[stream.marketing]
kind = "marketing"
domains = ["marketing.example.com"]
route = ["$news"]
egress = "local"
$dkim
$verdict
X
    upstream sink "${connections%+*}"
    [ "$news" = sink ] || upstream "$news" "${connections#*+}"
  } > "$d/gatepost.toml"
  exec "${GP_BIN:-$root/bin/gatepost}" serve -c "$d/gatepost.toml"
  ;;
flush) : ;;
cleanup) [ ! -d "$pg" ] || as_postgres "${bins[-1]}/pg_ctl" -D "$pg/data" -m immediate stop >/dev/null || : ;;
esac
