package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// eachKey calls f for every key there is, by the kind of its section.
func eachKey(f func(kind, key string)) {
	for kind, list := range keys {
		for _, key := range list {
			f(kind, key)
		}
	}
}

func TestEveryKeyIsRead(t *testing.T) {
	eachKey(func(kind, key string) {
		const odd = " = 1979-05-27" // what no key takes
		var text, path string
		switch kind {
		case "":
			text, path = key+odd, key
		case "store", "history", "log", "limits", "templates":
			text, path = "["+kind+"]\n"+key+odd, kind+"."+key
		case "dkim":
			text, path = "[stream.x]\ndkim."+key+odd, "stream.x.dkim."+key
		case "route":
			text, path = "[stream.x]\nroute = [{ "+key+odd+" }]", "stream.x.route[0]."+key
		case "match":
			text, path = "[[stream.x.match]]\n"+key+odd, "stream.x.match[0]."+key
		default:
			text, path = "["+kind+".x]\n"+key+odd, kind+".x."+key
			if kind == "upstream" && key != "type" {
				text += "\ntype = " + strconv.Quote(someTypeWith(key))
			}
		}
		_, err := Parse("x.toml", []byte(text))
		told := 0
		for _, p := range Problems(err) {
			if p.Key == path && strings.HasPrefix(p.Text, "is a date or time, want ") && p.Line == min(2, strings.Count(text, "\n")+1) {
				told++
			}
		}
		if told != 1 {
			t.Errorf("%q: the type of %s is told %d times: %v", text, path, told, err)
		}
	})
}

// someTypeWith returns a type that has key.
func someTypeWith(key string) string {
	if slices.Contains(everyUpstream, key) {
		return "smtp"
	}
	return upstreamTypesWith(key)[0]
}

func TestEveryUpstreamKeyBelongsToSomeType(t *testing.T) {
	var all []string
	for _, ty := range upstreamTypes {
		all = append(all, ty.keys...)
	}
	all = append(all, everyUpstream...)
	slices.Sort(all)
	if want := slices.Sorted(slices.Values(keys["upstream"])); !slices.Equal(slices.Compact(all), want) {
		t.Errorf("the types have %q, upstreams have %q", all, want)
	}
}

func TestEveryKeyIsInTheExampleAndInTheReference(t *testing.T) {
	read := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	example, reference := read("../config.example.toml"), read("../docs/config.md")
	eachKey(func(kind, key string) {
		if kind == "" && keys[key] != nil {
			return // a section; its keys are looked for
		}
		if !regexp.MustCompile(`(?m)(^|^#|^# e\.g\. |[{,] |^#   )` + key + ` |\.` + key + `\]\]`).MatchString(sectionOf(example, kind)) {
			t.Errorf("config.example.toml does not show %s under [%s]", key, kind)
		}
		_, after, _ := strings.Cut(reference, headings[kind])
		part, _, _ := strings.Cut(after, "\n## ")
		if !strings.Contains(part, "\n| `"+key+"` |") {
			t.Errorf("docs/config.md has no row for %s under %q", key, headings[kind])
		}
	})
}

// headings are those of docs/config.md, by kind of section.
var headings = map[string]string{
	"": "## The top", "listen": "## [listen.NAME]", "client": "## [client.NAME]", "stream": "## [stream.NAME]", "route": "## route", "dkim": "## dkim", "match": "## match",
	"egress": "## [egress.NAME]", "upstream": "## [upstream.NAME]", "hook": "## [hook.NAME]", "store": "## [store]", "limits": "## [limits]",
	"history": "## [history]", "log": "## [log]", "templates": "## [templates]",
}

// sectionOf returns the parts of the example that are about sections of one kind.
func sectionOf(example, kind string) string {
	if kind == "" {
		top, _, _ := strings.Cut(example, "\n[")
		return top
	}
	if kind == "route" || kind == "dkim" || kind == "match" {
		kind = "stream"
	}
	var b strings.Builder
	for part := range strings.SplitSeq(example, "\n[") {
		part = strings.TrimPrefix(part, "[")
		if strings.HasPrefix(part, kind+"]") || strings.HasPrefix(part, kind+".") {
			b.WriteString(part + "\n")
		}
	}
	return b.String()
}

func TestSizesAndDurationsAreReadAndWrittenAlike(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "1024": 1024, "25MB": 25 << 20, "512kb": 512 << 10, "2 GB": 2 << 30, "1536KB": 1536 << 10} {
		n, err := parseSize(text)
		back, errBack := parseSize(formatSize(n))
		if err != nil || errBack != nil || n != want || back != want {
			t.Errorf("%q is %d octets (%v), written %q", text, n, err, formatSize(n))
		}
	}
	for _, text := range []string{"", "MB", "-1", "1.5MB", "1TB", "9999999999GB", "1e3", "1_000"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("%q is read as %d octets", text, n)
		}
	}
	for text, want := range map[string]time.Duration{"1h": time.Hour, "90s": 90 * time.Second, "3d": 72 * time.Hour, "1h30m": 90 * time.Minute,
		"1.5s": 1500 * time.Millisecond, "1d12h": 36 * time.Hour, "250ms": 250 * time.Millisecond, "1d0h1s": 24*time.Hour + time.Second} {
		d, err := parseDuration(text)
		back, errBack := parseDuration(formatDuration(d))
		if err != nil || errBack != nil || d != want || back != want {
			t.Errorf("%q is %v (%v), written %q", text, d, err, formatDuration(d))
		}
	}
	for _, text := range []string{"", "5", "d", "-1d", "-1h", "1d-1h", "1.5d", "1w", "99999999d", "1h ", "soon"} {
		if d, err := parseDuration(text); err == nil {
			t.Errorf("%q is read as %v", text, d)
		}
	}
	for d, want := range map[time.Duration]string{time.Hour: "1h", 100 * time.Minute: "1h40m", 36 * time.Hour: "1d12h", 2 * time.Minute: "2m", 10 * time.Second: "10s"} {
		if got := formatDuration(d); got != want {
			t.Errorf("%v is written %q, want %q", d, got, want)
		}
	}
}

func TestASpellingMistakeFindsTheWordThatWasMeant(t *testing.T) {
	for misspelt, want := range map[string]string{"adress": "address", "Address": "address", "pasword_file": "password_file", "password": "password_file",
		"tls_ca": "tls_ca_file", "xyz": "", "verdict_timeot": "verdict_timeout", "t": "", "": ""} {
		if got := nearest(misspelt, append(keys["upstream"], "verdict_timeout")); got != want {
			t.Errorf("%q is taken for %q, want %q", misspelt, got, want)
		}
	}
}

// FuzzParse holds that no file makes the loader panic, that every problem stands inside the file, and that what loads is
// the same after a round trip through its effective form.
func FuzzParse(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "k"), []byte("key"), 0o600); err != nil {
		f.Fatal(err)
	}
	example, err := os.ReadFile("../config.example.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(example))
	f.Add(regexp.MustCompile(`"[a-z0-9./-]+\.(pem|password|token|secret)"`).ReplaceAllString(string(example), `"k"`))
	f.Add("hostname = 1\n[stream]\nx = 2\n[[stream.y.dkim]]\n[listen.\"\"]\n[egress.any]\n")
	f.Add("[stream.a]\nroute = [\"x\", { upstream = \"y\", weight = 5 }, { upstream = \"z\", weight = 101 }, { weight = 0.5 }]\nhedge_after = \"2s\"\n")
	f.Add("[stream.a]\ndkim = [{}, 1]\nroute = [{}]\nretry = [\"\"]\ndomains = [\"*.\"]\n")
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(dir, "gatepost.toml")
		c, err := Parse(file, []byte(text))
		lines := strings.Count(text, "\n") + 1
		for _, p := range Problems(err) {
			if p.Line < 1 || p.Line > lines || p.Text == "" || p.File != file {
				t.Fatalf("a problem outside the file: %+v", p)
			}
		}
		if (c == nil) != (len(Problems(err)) > 0) {
			t.Fatalf("Parse returned %v and %v", c, err)
		}
		if c == nil {
			return
		}
		again, err := Parse(file, []byte(c.Effective()))
		if err != nil {
			t.Fatalf("the effective form does not load: %v\n%s", err, c.Effective())
		}
		c.Warnings, again.Warnings = nil, nil
		if !reflect.DeepEqual(c, again) {
			t.Fatalf("%s\nbecame\n%s", c.Effective(), again.Effective())
		}
	})
}
