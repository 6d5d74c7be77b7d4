// Judge reads what bench/run.sh measured and prints, as Markdown, whether gatepost reaches its bars, and the figures side
// by side:
//
//	go run ./bench/judge RESULTS.jsonl RESULTS.bench
//
// The first file is of the relay bench, the second of go test -bench. Of several runs of one kind the median counts. On
// fewer than 4 cores, or where other programs took more than a tenth of the processors, speed is told and not judged.
package main

import (
	"cmp"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"
)

const (
	minCores = 4
	maxBusy  = 0.1 // share of the processors that others may take
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("judge: ")
	if len(os.Args) != 3 {
		log.Fatal("usage: judge RESULTS.jsonl RESULTS.bench")
	}
	r := new(results)
	for i, read := range []func(io.Reader) error{r.readRuns, r.readBenchmarks} {
		if err := readFile(os.Args[i+1], read); err != nil {
			log.Fatalf("read %s: %v", os.Args[i+1], err)
		}
	}
	r.print(os.Stdout)
}

func readFile(name string, read func(io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return read(f)
}

// print writes everything.
func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "Measured on: %s\n\n", strings.Join(r.about, "; "))
	top, ok := ceiling(r)
	each, _ := signature(r)
	if ok {
		fmt.Fprintf(w, "RSA ceiling (crypto/rsa, 2048 bits, all cores): %s signatures/s, %s ms of processor time each.\n\n", number(top), number(each))
	}
	r.printBars(w)
	r.printTables(w)
}

// printBars judges all that was measured.
func (r *results) printBars(w io.Writer) {
	fmt.Fprint(w, "### Bars\n\n| scenario | figure | bar | measured | |\n|---|---|---:|---:|---|\n")
	for _, b := range bars() {
		if v, ok := b.figure(r); ok {
			fmt.Fprintf(w, "| %s | %s | %s %s%s | %s%s | %s |\n", b.scenario, b.what, b.sign(), number(b.bound), unit(b.unit), number(v), unit(b.unit), r.verdict(b, v))
		}
	}
	fmt.Fprintln(w)
}

func (b *bar) sign() string {
	if b.least {
		return "≥"
	}
	return "≤"
}

// verdict says whether v reaches b.
func (r *results) verdict(b bar, v float64) string {
	switch why := r.unsure(b); {
	case why != "":
		return "not judged: " + why
	case b.least && v >= b.bound || !b.least && v <= b.bound:
		return "holds"
	case b.bound == 0:
		return "**misses** by " + number(v)
	default:
		off := v/b.bound - 1
		if b.least {
			off = -off
		}
		return fmt.Sprintf("**misses** by %.0f %%", 100*off)
	}
}

// unsure says why a figure is not to be judged, or "".
func (r *results) unsure(b bar) string {
	if b.exact {
		return ""
	}
	if r.cores < minCores {
		return fmt.Sprintf("%d cores", r.cores)
	}
	var runs []*run
	for _, w := range b.runs {
		runs = append(runs, r.find(w)...)
	}
	if len(runs) == 0 { // of a scenario that does not measure it
		runs = r.runs
	}
	if busy, ok := medianOf(runs, "other_busy_share"); ok && busy > maxBusy {
		return fmt.Sprintf("others took %.0f %% of the processors", 100*busy)
	}
	if c := r.bestCeiling(); c != nil && c.values["cores"] < (1-maxBusy)*float64(r.cores) {
		return fmt.Sprintf("the ceiling had %.1f of %d cores", c.values["cores"], r.cores)
	}
	return ""
}

func unit(s string) string {
	if s == "" || s == "x" || strings.HasPrefix(s, "/") {
		return s
	}
	return " " + s
}

// number prints three digits or more.
func number(v float64) string {
	switch {
	case v == float64(int64(v)) && v < 1e4 || v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// column is a figure in a table.
type column struct {
	title string
	names []string // of figures, shown with slashes between
}

// tables are the scenarios with what is told of each.
var tables = []struct {
	title, scenario string
	columns         []column
}{
	{"Throughput", "throughput", []column{{"accepted/s", []string{"accept_per_s"}}, {"delivered/s", []string{"deliver_per_s"}},
		{"CPU s per 1000", []string{"cpu_s_per_1000"}}, {"generator's CPU s per 1000", []string{"gen_cpu_s_per_1000"}}, {"PSS MB", []string{"peak_pss_mb"}},
		{"flushes a mail", []string{"flushes_per_msg"}}, {"written bytes a mail", []string{"disk_bytes_per_msg"}}, {"lost / doubled", []string{"lost", "dups"}},
		{"others' share of the CPU", []string{"other_busy_share"}}}},
	{"One sign-in mail at a time (ms, p50 / p99)", "idle", []column{{"until 250", []string{"accept.P50", "accept.P99"}},
		{"250 to arrival", []string{"after250.P50", "after250.P99"}}, {"connect to arrival", []string{"total.P50", "total.P99"}}, {"CPU s per 1000", []string{"cpu_s_per_1000"}}}},
	{"40 ms round trip (ms, p50 / p99)", "rtt", []column{{"cold, 250 to arrival", []string{"cold_after250.P50", "cold_after250.P99"}},
		{"cold, connect to arrival", []string{"cold_total.P50", "cold_total.P99"}}, {"warm, 250 to arrival", []string{"warm_after250.P50", "warm_after250.P99"}},
		{"warm, connect to arrival", []string{"warm_total.P50", "warm_total.P99"}}, {"connections", []string{"sink_conns"}}}},
	{"Sign-in mail beside marketing (ms, p50 / p99)", "mixed", []column{{"marketing/s", []string{"mkt_per_s"}},
		{"250 to arrival", []string{"otp_after250.P50", "otp_after250.P99"}}, {"connect to arrival", []string{"otp_total.P50", "otp_total.P99"}},
		{"connections at once", []string{"sink_peak_conns"}}, {"PSS MB", []string{"peak_pss_mb"}}}},
	{"Backlog", "backlog", []column{{"accepted/s", []string{"accept_per_s"}}, {"CPU s per 1000, accept / drain", []string{"accept_cpu_s_per_1000", "drain_cpu_s_per_1000"}},
		{"stored bytes a mail", []string{"stored_bytes_per_msg"}}, {"PSS MB, accept / drain", []string{"peak_pss_mb", "drain_peak_pss_mb"}},
		{"restart to 220, s", []string{"restart_to_220_s"}}, {"first arrival, s", []string{"first_arrival_after_up_s"}}, {"drained/s", []string{"drain_per_s"}},
		{"lost / doubled", []string{"lost", "dups"}}}},
	{"SIGKILL of everything under load", "crash", []column{{"accepted", []string{"accepted"}}, {"lost", []string{"lost"}}, {"duplicates", []string{"dups"}},
		{"arrived without 250", []string{"ghost"}}, {"restart to 220, s", []string{"restart_to_220_s"}}}},
}

// printTables prints what was measured, the relay bench's scenarios first.
func (r *results) printTables(w io.Writer) {
	for _, t := range tables {
		kinds := r.kinds(t.scenario)
		if len(kinds) == 0 {
			continue
		}
		fmt.Fprintf(w, "### %s\n\n| | |", t.title)
		for _, c := range t.columns {
			fmt.Fprintf(w, " %s |", c.title)
		}
		fmt.Fprintf(w, "\n|---|---|%s\n", strings.Repeat("---:|", len(t.columns)))
		for _, runs := range kinds {
			fmt.Fprintf(w, "| %s | %s |", runs[0].Peer, conditions(runs))
			for _, c := range t.columns {
				fmt.Fprintf(w, " %s |", c.cell(runs))
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w)
	}
	r.printBenchmarks(w)
}

// kinds returns the runs of a scenario, those of one kind together, in the order of the parameters and then as they came.
func (r *results) kinds(scenario string) (kinds [][]*run) {
	for _, x := range r.runs {
		if x.Scenario != scenario {
			continue
		}
		i := slices.IndexFunc(kinds, func(k []*run) bool { return k[0].key() == x.key() })
		if i < 0 {
			kinds = append(kinds, nil)
			i = len(kinds) - 1
		}
		kinds[i] = append(kinds[i], x)
	}
	slices.SortStableFunc(kinds, func(a, b []*run) int {
		for _, name := range []string{"size", "sink_delay_ms", "conns"} {
			if d := a[0].Params[name] - b[0].Params[name]; d != 0 {
				return int(d)
			}
		}
		return 0
	})
	return kinds
}

// conditions says how runs of one kind were made.
func conditions(runs []*run) string {
	p := runs[0].Params
	var parts []string
	if runs[0].Scenario == "idle" || runs[0].Scenario == "rtt" {
		parts = append(parts, number(p["otp"])+" mails")
	} else {
		parts = append(parts, number(p["n"])+" mails", number(p["conns"])+" sessions")
	}
	if p["size"] != 2048 {
		parts = append(parts, number(p["size"]/1024)+" KB")
	}
	if p["sink_delay_ms"] != 0 {
		parts = append(parts, number(p["sink_delay_ms"])+" ms host")
	}
	if len(runs) > 1 {
		parts = append(parts, fmt.Sprintf("%d runs", len(runs)))
	}
	return strings.Join(parts, ", ")
}

func (c *column) cell(runs []*run) string {
	var parts []string
	for _, name := range c.names {
		if v, ok := medianOf(runs, name); ok {
			parts = append(parts, number(v))
		} else {
			parts = append(parts, "–")
		}
	}
	return strings.Join(parts, " / ")
}

// titles says what our own benchmarks measure, in the order in which they are told.
var titles = []struct{ name, title string }{
	{"ThroughputOverTLS", "Signed mail over TLS, 20 sessions"},
	{"Flights", "40 ms round trip, also over TLS (ms, p50)"},
	{"RefusedBacklog", "Second try of mail that was refused once"},
	{"CrowdedHost", "A host that answers 421 above 20 connections, 50 configured"},
	{"HostThatReadsRefusedChunks", "A host that takes refused chunks for commands"},
	{"ServiceThroughput", "Services with an API, 20 sessions"},
	{"ServiceLatency", "Services with an API, 40 ms round trip (ms, p50)"},
}

// printBenchmarks prints our own benchmarks, a table for each.
func (r *results) printBenchmarks(w io.Writer) {
	for _, t := range titles {
		var units []string
		for _, b := range r.benchmarks {
			name, rest, _ := strings.Cut(b.name, "/")
			if name != t.name {
				continue
			}
			if units == nil {
				units = b.units()
				fmt.Fprintf(w, "### %s\n\n| | %s |\n|---|%s\n", t.title, strings.Join(units, " | "), strings.Repeat("---:|", len(units)))
			}
			fmt.Fprintf(w, "| %s, %d mails |", cmp.Or(strings.ReplaceAll(rest, "/", ", "), "plain"), b.n)
			for _, u := range units {
				fmt.Fprintf(w, " %s |", number(b.values[u]))
			}
			fmt.Fprintln(w)
		}
		if units != nil {
			fmt.Fprintln(w)
		}
	}
}

// units returns the names of the figures, in order.
func (b *benchmark) units() []string {
	var all []string
	for u := range b.values {
		all = append(all, u)
	}
	slices.Sort(all)
	return all
}
