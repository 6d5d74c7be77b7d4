package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// run is one line of the relay bench.
type run struct {
	Peer     string
	Scenario string
	Params   map[string]float64
	V        map[string]float64
	Lat      map[string]map[string]float64 // milliseconds by "P50", "P99" …
}

// value returns a figure of the run by its name: "deliver_per_s", or "total.P50" of a latency.
func (r *run) value(name string) (float64, bool) {
	if lat, quantile, ok := strings.Cut(name, "."); ok {
		v, ok := r.Lat[lat][quantile]
		return v, ok
	}
	v, ok := r.V[name]
	return v, ok
}

// key tells runs of one kind, whose figures are put together.
func (r *run) key() string {
	return fmt.Sprint(r.Peer, r.Params["conns"], r.Params["n"], r.Params["size"], r.Params["sink_delay_ms"], r.Params["rtt_ms"])
}

// benchmark is one line of go test -bench: its name without "Benchmark" and the number of processors, and its figures by
// their units.
type benchmark struct {
	name   string
	n      int
	values map[string]float64
}

// results is all that was measured.
type results struct {
	runs       []*run
	benchmarks []*benchmark
	about      []string // "key: value" of the machine
	cores      int
}

// readRuns adds what the relay bench wrote.
func (r *results) readRuns(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		var x run
		if err := json.Unmarshal(lines.Bytes(), &x); err != nil {
			return fmt.Errorf("line %d is no result of the relay bench: %w", n, err)
		}
		r.runs = append(r.runs, &x)
	}
	return lines.Err()
}

// readBenchmarks adds what go test -bench wrote, and what bench/run.sh says of the machine before that.
func (r *results) readBenchmarks(in io.Reader) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if b := parseBenchmark(lines.Text()); b != nil {
			r.benchmarks = append(r.benchmarks, b)
			continue
		}
		key, value, ok := strings.Cut(lines.Text(), ": ")
		if !ok || slices.Contains([]string{"goos", "goarch", "pkg", "cpu"}, key) || strings.ContainsAny(key, " \t") || len(r.benchmarks) > 0 {
			continue
		}
		r.about = append(r.about, key+": "+value)
		if key == "cores" {
			r.cores, _ = strconv.Atoi(value) // 0 judges nothing
		}
	}
	return lines.Err()
}

// parseBenchmark returns nil for a line that is none.
func parseBenchmark(line string) *benchmark {
	f := strings.Fields(line)
	if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
		return nil
	}
	name := strings.TrimPrefix(f[0], "Benchmark")
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		if _, err := strconv.Atoi(name[i+1:]); err == nil {
			name = name[:i]
		}
	}
	n, err := strconv.Atoi(f[1])
	if err != nil {
		return nil
	}
	b := &benchmark{name: name, n: n, values: map[string]float64{}}
	for i := 2; i+1 < len(f); i += 2 {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return nil
		}
		b.values[f[i+1]] = v
	}
	return b
}

// where says which runs are meant; a parameter that it does not name may be anything.
type where struct {
	peer, scenario string
	params         map[string]float64
}

// find returns the runs that fit.
func (r *results) find(w where) (found []*run) {
	for _, x := range r.runs {
		fits := x.Peer == w.peer && x.Scenario == w.scenario
		for name, want := range w.params {
			fits = fits && x.Params[name] == want
		}
		if fits {
			found = append(found, x)
		}
	}
	return found
}

// figure returns the median of a figure over the runs that fit.
func (r *results) figure(w where, name string) (float64, bool) {
	return medianOf(r.find(w), name)
}

func medianOf(runs []*run, name string) (float64, bool) {
	var all []float64
	for _, x := range runs {
		if v, ok := x.value(name); ok {
			all = append(all, v)
		}
	}
	return median(all)
}

// ops returns the median of a figure over the benchmarks of that name.
func (r *results) ops(name, unit string) (float64, bool) {
	var all []float64
	for _, b := range r.benchmarks {
		if v, ok := b.values[unit]; ok && b.name == name {
			all = append(all, v)
		}
	}
	return median(all)
}

// median returns the middle of all, or the mean of the two in the middle; false where there is nothing.
func median(all []float64) (float64, bool) {
	if len(all) == 0 {
		return 0, false
	}
	all = slices.Sorted(slices.Values(all))
	mid := len(all) / 2
	if len(all)%2 == 1 {
		return all[mid], true
	}
	return (all[mid-1] + all[mid]) / 2, true
}
