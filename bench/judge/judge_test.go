package main

import (
	"fmt"
	"strings"
	"testing"
)

const about = "cores: 4\nprocessor: Some CPU\ngoos: linux\n"

// judged returns what is printed of a run of throughput beside Postfix.
func judged(t *testing.T, about string, delivered, cpu, busy, lost float64) string {
	t.Helper()
	line := func(peer string, delivered, cpu float64) string {
		return fmt.Sprintf(`{"Peer":%q,"Scenario":"throughput","Params":{"conns":20,"n":4000,"size":2048},"V":{"deliver_per_s":%g,"cpu_s_per_1000":%g,"gen_cpu_s_per_1000":0.2,"other_busy_share":%g,"lost":%g}}`+"\n",
			peer, delivered, cpu, busy, lost)
	}
	r := new(results)
	if err := r.readRuns(strings.NewReader(line("postfix", 500, 6) + line("gatepost", delivered, cpu))); err != nil {
		t.Fatal(err)
	}
	bench := about + "BenchmarkRSACeiling-4 \t 9000\t 900 signatures/s\t 1.5 cpu-ms/signature\t 2.0 cores\n" +
		"BenchmarkRSACeiling-4 \t 9000\t 2000 signatures/s\t 1.5 cpu-ms/signature\t 3.9 cores\nPASS\n"
	if err := r.readBenchmarks(strings.NewReader(bench)); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	r.print(&out)
	return out.String()
}

// row returns the line of the table that has both.
func row(t *testing.T, out, scenario, figure string) string {
	t.Helper()
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "| "+scenario+" | "+figure) {
			return line
		}
	}
	t.Fatalf("no row %q, %q in\n%s", scenario, figure, out)
	return ""
}

func TestEveryBarSaysWhetherItHoldsOrByHowMuchItMisses(t *testing.T) {
	const scenario = "2 KB signed, 20 sessions"
	for name, tt := range map[string]struct {
		about           string
		delivered, cpu  float64
		busy, lost      float64
		figure, verdict string
	}{
		"reached":                           {about, 1450, 1.7, 0, 0, "delivered, times postfix", "≥ 2.80x | 2.90x | holds |"},
		"missed":                            {about, 1260, 1.7, 0, 0, "delivered, times postfix", "2.52x | **misses** by 10 %"},
		"too much":                          {about, 1450, 2.16, 0, 0, "processor time, times postfix", "0.36x | **misses** by 20 %"},
		"of the ceiling less the generator": {about, 1450, 1.7, 0, 0, "delivered, of the RSA ceiling", "| 0.78 | holds"}, // 1450/(2000*(1-.0002*1450/4))
		"beyond RSA":                        {about, 1450, 1.9, 0, 0, "processor time of a mail beyond", "| 0.40 ms | holds"},
		"a busy machine":                    {about, 1260, 1.7, 0.3, 0, "delivered, times postfix", "not judged: others took 30 % of the processors"},
		"a small machine":                   {"cores: 2\n", 1260, 1.7, 0, 0, "delivered, times postfix", "not judged: 2 cores"},
	} {
		t.Run(name, func(t *testing.T) {
			out := judged(t, tt.about, tt.delivered, tt.cpu, tt.busy, tt.lost)
			if got := row(t, out, scenario, tt.figure); !strings.Contains(got, tt.verdict) {
				t.Errorf("got %q, want %q", got, tt.verdict)
			}
		})
	}
}

func TestLostMailIsJudgedOnEveryMachine(t *testing.T) {
	out := judged(t, "cores: 2\n", 1450, 1.7, 0.5, 1)
	if got := row(t, out, "all of gatepost's runs without a crash", "lost or doubled"); !strings.Contains(got, "**misses** by 1") {
		t.Errorf("one mail was lost: %q", got)
	}
}

func TestWhatWasNotMeasuredIsNotJudged(t *testing.T) {
	out := judged(t, about, 1450, 1.7, 0, 0)
	for _, absent := range []string{"backlog", "crash,", "100 sessions", "NaN", "Inf"} {
		if strings.Contains(out, absent) {
			t.Errorf("%q stands in\n%s", absent, out)
		}
	}
	if !strings.Contains(out, "Measured on: cores: 4; processor: Some CPU\n") {
		t.Errorf("the machine is not told:\n%s", out)
	}
}

func TestOfSeveralRunsTheMedianCounts(t *testing.T) {
	r := new(results)
	for _, v := range []float64{900, 100, 300} {
		r.runs = append(r.runs, &run{Peer: "gatepost", Scenario: "backlog", V: map[string]float64{"drain_per_s": v}})
	}
	if got, ok := r.figure(where{"gatepost", "backlog", nil}, "drain_per_s"); !ok || got != 300 {
		t.Errorf("got %v, %v, want 300", got, ok)
	}
}

func TestAResultThatCannotBeReadIsToldWithItsLine(t *testing.T) {
	err := new(results).readRuns(strings.NewReader("{}\npanic: x\n"))
	if err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v, want the line", err)
	}
}
