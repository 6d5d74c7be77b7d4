# make build   a static binary, bin/gatepost
# make build-openssl   bin/gatepost with RSA signatures by OpenSSL 3, dynamically linked; needs gcc and libssl-dev
# make test    everything that must hold before a change lands; installs what it needs, or says what to install
# make test-specs   the requests of API upstreams against the services' own descriptions, which are in the folder SPECS
# make fuzz    the fuzz targets, FUZZTIME each: a time, or a count such as 5000x (which make test uses)
# make bench   gatepost, on SQLite and on PostgreSQL, beside Postfix + OpenDKIM; see bench/run.sh
# make bench-full   every scenario of docs/performance.md, each bar judged; half an hour, with MILLION=1 a little more
# make man     the man pages of all commands, into bin/man
# make microbench   the benchmarks inside the packages, BENCHTIME each
# make screenshots  pictures of the built-in templates for the docs; fails where one cannot be read (chromium, node)
# make chaos   the tests of the whole program with many more kills, longer outages and longer queues

SHELL     := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
GO        ?= go
FUZZTIME  ?= 60s
BENCHTIME ?= 2s
SPECS     ?= ../shared/reference/esp-specs

# What the tests need and meet as real peers: a command, a module of Debian's own Python or Perl, or a jar, and the
# package that has it.
PEERS := gcc:build-essential swaks:swaks curl:curl postfix:postfix strace:strace bwrap:bubblewrap haproxy:haproxy \
         systemd-analyze:systemd systemd-socket-activate:systemd node:nodejs npm:npm openssl:openssl javac:default-jdk-headless \
         initdb:postgresql psql:postgresql-client
MODULES := dkim:python3-dkim nacl:python3-nacl seccomp:python3-seccomp
PERL := Net::SSLeay:libnet-ssleay-perl
JARS := jakarta-mail:libjakarta-mail-java
HEADERS := openssl/evp.h:libssl-dev

.PHONY: build build-openssl man test test-specs check go-test fuzz bench bench-full microbench screenshots chaos peers clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/gatepost .

# Names are looked up as in the usual build: by Go, not by the C library.
build-openssl:
	CGO_ENABLED=1 $(GO) build -tags openssl,netgo,osusergo -trimpath -o bin/gatepost .

man: build
	bin/gatepost man bin/man

test: peers check go-test
	$(MAKE) --no-print-directory fuzz FUZZTIME=5000x

check:
	@files="$$(find . -name '*.go' -not -path './bench/out/*' -not -path '*/node_modules/*' -exec gofmt -l {} +)"; \
	  if [ -n "$$files" ]; then echo "not formatted (run gofmt -w):"; echo "$$files"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools.mod staticcheck ./...
	CGO_ENABLED=1 $(GO) vet -tags openssl ./dkim ./cli
	CGO_ENABLED=1 $(GO) tool -modfile=tools.mod staticcheck -tags openssl ./dkim ./cli
	@diff="$$($(GO) fix -diff ./... 2>&1)" || { echo "$$diff"; echo "run: go fix ./..."; exit 1; }; \
	  if [ -n "$$diff" ]; then echo "$$diff"; echo "run: go fix ./..."; exit 1; fi
	$(GO) mod tidy -diff
	cd test/specs && $(GO) vet ./... && $(GO) tool -modfile=../../tools.mod staticcheck ./... && $(GO) mod tidy -diff

test-specs:
	cd test/specs && GATEPOST_SPECS="$(abspath $(SPECS))" $(GO) test -count=1 ./...

go-test:
	$(GO) test -race -count=1 -timeout 8m ./...
	CGO_ENABLED=1 $(GO) test -race -count=1 -tags openssl ./dkim

# One target after the other: each uses all processors by itself.
fuzz:
	@grep -rE --include='*_test.go' --exclude-dir=node_modules --exclude-dir=out '^func Fuzz' . | sort | \
	sed -E 's|^(.*)/[^/]*:func (Fuzz[A-Za-z0-9_]*).*|\1 \2|' | while read -r dir target; do \
	  echo "fuzz $$dir $$target"; \
	  $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$dir" </dev/null; \
	done

bench: build
	bench/run.sh

bench-full: build
	bench/run.sh full

# Those of bench measure the machine, or the whole program: bench/run.sh runs them.
microbench:
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) $$($(GO) list ./... | grep -v '/bench/')

# Needs the Debian packages chromium, nodejs and fonts-noto-cjk.
screenshots: build
	node scripts/screenshots.mjs bin/gatepost docs/templates

chaos: peers
	GATEPOST_CHAOS=1 $(GO) test -race -count=1 -timeout 120m -v -skip 'WhateverFloodsIn' ./test
	GATEPOST_CHAOS=1 $(GO) test -count=1 -timeout 30m -v -run 'WhateverFloodsIn' ./test

peers:
	@missing=""; path="$$PATH:/usr/sbin$$(printf ':%s' /usr/lib/postgresql/*/bin)"; \
	for p in $(PEERS); do PATH="$$path" command -v "$${p%%:*}" >/dev/null || missing="$$missing $${p##*:}"; done; \
	for m in $(MODULES); do /usr/bin/python3 -c "import $${m%%:*}" 2>/dev/null || missing="$$missing $${m##*:}"; done; \
	for m in $(PERL); do perl -M$${m%:*} -e 1 2>/dev/null || missing="$$missing $${m##*:}"; done; \
	for j in $(JARS); do test -e /usr/share/java/$${j%%:*}.jar || missing="$$missing $${j##*:}"; done; \
	for h in $(HEADERS); do test -e /usr/include/$${h%%:*} || missing="$$missing $${h##*:}"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" != 0 ]; then echo "the tests need:$$missing"; echo "run: sudo apt-get install$$missing"; exit 1; fi; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq; apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	@if [ -f test/package.json ] && ! cmp -s test/package-lock.json test/node_modules/.installed; then \
	  (cd test && npm ci --ignore-scripts --no-audit --no-fund && cp package-lock.json node_modules/.installed); \
	fi

clean:
	rm -rf bin test/node_modules
