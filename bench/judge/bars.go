package main

import (
	"fmt"
	"math"
)

// bar is one thing that gatepost has to reach.
type bar struct {
	scenario string
	what     string // is compared
	least    bool   // the bound is the least that will do; else the most
	bound    float64
	unit     string
	exact    bool    // judged on every machine: how often something happened, not how fast
	runs     []where // that the figure comes from
	figure   func(r *results) (float64, bool)
}

func params(pairs ...any) map[string]float64 {
	m := map[string]float64{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(string)] = float64(pairs[i+1].(int))
	}
	return m
}

// plain is a figure as it was measured.
func plain(w where, name string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) { return r.figure(w, name) }
}

// ratio is a figure divided by the same one of other runs.
func ratio(w, other where, name string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		a, ok1 := r.figure(w, name)
		b, ok2 := r.figure(other, name)
		return a / b, ok1 && ok2 && b != 0
	}
}

// ceiling is how many RSA-2048 signatures a second this machine makes with all its processors: the best of several runs.
func ceiling(r *results) (float64, bool) {
	best := r.bestCeiling()
	if best == nil {
		return 0, false
	}
	return best.values["signatures/s"], true
}

// signature is the processor time of one of them, in milliseconds.
func signature(r *results) (float64, bool) { return r.ops("RSACeiling", "cpu-ms/signature") }

// bestCeiling returns nil where none was measured.
func (r *results) bestCeiling() (best *benchmark) {
	for _, b := range r.benchmarks {
		if b.name == "RSACeiling" && (best == nil || b.values["signatures/s"] > best.values["signatures/s"]) {
			best = b
		}
	}
	return best
}

// ofCeiling is a rate as a share of the ceiling, less what the generator of the load takes of the processors.
func ofCeiling(w where, rate string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		top, ok1 := ceiling(r)
		got, ok2 := r.figure(w, rate)
		generator, _ := r.figure(w, "gen_cpu_s_per_1000") // the backlog has none
		return got / (top * (1 - generator/1000*got/float64(r.cores))), ok1 && ok2
	}
}

// beyondRSA is the processor time of a mail, in milliseconds, less that of its signature.
func beyondRSA(w where) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		signature, ok1 := signature(r)
		got, ok2 := r.figure(w, "cpu_s_per_1000")
		return got - signature, ok1 && ok2
	}
}

// most is the highest of some figures.
func most(figures ...func(*results) (float64, bool)) func(*results) (float64, bool) {
	return func(r *results) (v float64, ok bool) {
		v = math.Inf(-1)
		for _, f := range figures {
			x, there := f(r)
			if !there {
				return 0, false
			}
			v = max(v, x)
		}
		return v, true
	}
}

// ofBenchmark is a figure of one of our own benchmarks.
func ofBenchmark(name, unit string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) { return r.ops(name, unit) }
}

// bars returns all of them, in the order in which they are told.
func bars() (all []bar) {
	at := func(peer, scenario string, pairs ...any) where { return where{peer, scenario, params(pairs...)} }
	add := func(scenario, what string, least bool, bound float64, unit string, f func(*results) (float64, bool), runs ...where) {
		all = append(all, bar{scenario, what, least, bound, unit, false, runs, f})
	}
	count := func(scenario, what string, most float64, f func(*results) (float64, bool)) {
		all = append(all, bar{scenario: scenario, what: what, bound: most, exact: true, figure: f})
	}
	for _, c := range []struct {
		conns int
		times float64
	}{{20, 2.8}, {100, 3.5}} {
		us, them := at("gatepost", "throughput", "conns", c.conns, "size", 2048), at("postfix", "throughput", "conns", c.conns, "size", 2048)
		name := fmt.Sprintf("2 KB signed, %d sessions", c.conns)
		add(name, "delivered, of the RSA ceiling less the generator's share", true, 0.75, "", ofCeiling(us, "deliver_per_s"), us)
		add(name, "delivered, times postfix", true, c.times, "x", ratio(us, them, "deliver_per_s"), us, them)
		add(name, "processor time, times postfix", false, 0.30, "x", ratio(us, them, "cpu_s_per_1000"), us, them)
		add(name, "processor time of a mail beyond its RSA operation", false, 0.45, "ms", beyondRSA(us), us)
	}
	unsigned := at("gatepost-unsigned", "throughput", "conns", 100)
	add("unsigned, 100 sessions, 50 connections", "delivered", true, 10000, "/s", plain(unsigned, "deliver_per_s"), unsigned)
	for _, s := range []struct {
		size  int
		times float64
	}{{20480, 2.5}, {204800, 1.5}} {
		us, them := at("gatepost", "throughput", "size", s.size), at("postfix", "throughput", "size", s.size)
		add(fmt.Sprintf("%d KB signed, 20 sessions", s.size>>10), "delivered, times postfix", true, s.times, "x", ratio(us, them, "deliver_per_s"), us, them)
	}
	us, them := at("gatepost-queued", "throughput", "conns", 1), at("postfix", "throughput", "conns", 1)
	add("one session, queued", "delivered, times postfix", true, 2, "x", ratio(us, them, "deliver_per_s"), us, them)

	them = at("postfix", "idle", "sink_delay_ms", 0)
	for _, v := range []struct{ peer, verdict string }{{"gatepost", "upstream"}, {"gatepost-queued", "queued"}} {
		us := at(v.peer, "idle", "sink_delay_ms", 0)
		add("idle, "+v.verdict, "connect to arrival, p50, times postfix", false, 0.6, "x", ratio(us, them, "total.P50"))
		add("idle, "+v.verdict, "until 250, p50, times postfix", false, 0.6, "x", ratio(us, them, "accept.P50"))
	}
	for _, h := range []struct {
		peer, name string
		bound      float64
	}{{"gatepost-queued", "PIPELINING", 66}, {"gatepost-chunking", "CHUNKING", 30}} {
		us := at(h.peer, "rtt")
		for _, lat := range []string{"cold", "warm"} {
			add("40 ms round trip, "+h.name+", "+lat, "250 to arrival and connect to arrival, p50", false, h.bound, "ms",
				most(plain(us, lat+"_after250.P50"), plain(us, lat+"_total.P50")))
		}
	}
	for _, h := range []struct {
		name  string
		bound float64
	}{{"starttls", 66}, {"starttls-chunking", 30}, {"implicit", 66}, {"implicit-chunking", 30}} {
		for _, lat := range []string{"cold", "warm"} {
			add("the same over TLS, "+h.name+", "+lat, "250 to arrival and connect to arrival, p50", false, h.bound, "ms",
				most(ofBenchmark("Flights/"+h.name, lat+"-after250-ms"), ofBenchmark("Flights/"+h.name, lat+"-total-ms")))
		}
	}
	slow, idle := at("gatepost", "mixed", "sink_delay_ms", 100), at("gatepost", "idle", "sink_delay_ms", 100)
	add("sign-in mail beside marketing, 100 ms hosts", "connect to arrival, p99, above p50 of idle with the same delay", false, 25, "ms",
		func(r *results) (float64, bool) {
			a, ok1 := r.figure(slow, "otp_total.P99")
			b, ok2 := r.figure(idle, "total.P50")
			return a - b, ok1 && ok2
		})
	count("sign-in mail beside marketing, 100 ms hosts", "connections at once", 20, plain(slow, "sink_peak_conns"))
	add("sign-in mail beside marketing, full speed", "connect to arrival, p99", false, 25, "ms", plain(at("gatepost", "mixed", "sink_delay_ms", 0), "otp_total.P99"))

	for _, b := range []struct {
		peer, name string
		n          int
		memory     float64
	}{{"gatepost", "signed, 100k", 100000, 64}, {"gatepost-unsigned", "unsigned, 100k", 100000, 64}, {"gatepost-unsigned", "unsigned, 1M", 1000000, 128}} {
		us := at(b.peer, "backlog", "n", b.n)
		name := "backlog " + b.name
		add(name, "accepted, 100 sessions", true, 5000, "/s", plain(us, "accept_per_s"))
		add(name, "memory (PSS), accepting and draining", false, b.memory, "MB", most(plain(us, "peak_pss_mb"), plain(us, "drain_peak_pss_mb")))
		add(name, "restart to 220", false, 0.5, "s", plain(us, "restart_to_220_s"))
		add(name, "first arrival after the host is back", false, 2, "s", plain(us, "first_arrival_after_up_s"))
		if b.peer == "gatepost" {
			add(name, "drained, of the RSA ceiling", true, 0.75, "", ofCeiling(us, "drain_per_s"))
		} else {
			add(name, "drained", true, 6000, "/s", plain(us, "drain_per_s"))
		}
	}
	million, less := at("gatepost-unsigned", "backlog", "n", 1000000), at("gatepost-unsigned", "backlog", "n", 100000)
	add("backlog unsigned, 1M", "accepted, times the rate at 100k", true, 0.9, "x", ratio(million, less, "accept_per_s"))

	for _, peer := range []string{"gatepost", "gatepost-postgres"} {
		us := at(peer, "crash")
		count("crash, "+peer, "lost", 0, plain(us, "lost"))
		count("crash, "+peer, "duplicates, of 20 slots", 20, plain(us, "dups"))
	}
	count("a host that reads refused chunks", "commands executed from bodies", 0, ofBenchmark("HostThatReadsRefusedChunks", "executed"))
	count("all of gatepost's runs without a crash", "lost or doubled", 0, lostOrDoubled)
	count("all of gatepost's runs that sign", "sampled mails without a valid signature", 0, unverified)
	return all
}

// ours tells the runs of gatepost.
func (r *results) ours() (found []*run) {
	for _, x := range r.runs {
		if len(x.Peer) >= 8 && x.Peer[:8] == "gatepost" {
			found = append(found, x)
		}
	}
	return found
}

func lostOrDoubled(r *results) (n float64, ok bool) {
	for _, x := range r.ours() {
		if x.Scenario == "crash" {
			continue
		}
		ok = true
		for _, name := range []string{"lost", "dups", "otp_lost", "otp_dups", "mkt_lost", "mkt_dups"} {
			n += x.V[name]
		}
	}
	for _, b := range r.benchmarks {
		n += b.values["lost"] + b.values["dups"]
	}
	return n, ok
}

func unverified(r *results) (n float64, ok bool) {
	for _, x := range r.ours() {
		if x.Peer == "gatepost-unsigned" {
			continue
		}
		ok = true
		n += x.V["sig_checked"] - x.V["sig_ok"]
	}
	for _, b := range r.benchmarks {
		n += b.values["unsigned"]
	}
	return n, ok
}
