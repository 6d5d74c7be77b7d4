package config

import (
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

func TestEveryKeyIsFoundOnItsLineHoweverOddlyItIsWritten(t *testing.T) {
	for name, tt := range map[string]struct {
		src  string
		want map[string]int
	}{
		"tables and dotted keys": {
			"# comment\n\na = 1\n[stream.auth] # [not.this]\nkind = \"auth\"\ndkim.selector = \"x\"\n  [ stream . \"b c\" ]\nkind=\"x\"\n",
			map[string]int{"a": 3, "stream": 4, "stream.auth": 4, "stream.auth.kind": 5, "stream.auth.dkim": 6, "stream.auth.dkim.selector": 6,
				`stream."b c"`: 7, `stream."b c".kind`: 8},
		},
		"a table that opens after its children": {
			"[a.b]\nx = 1\n[a]\ny = 2\n",
			map[string]int{"a": 3, "a.b": 1, "a.b.x": 2, "a.y": 4},
		},
		"lists over several lines": {
			"a = [ # ]\n  \"x\", # \"\n\n  'y]',\n]\nb = [[1,\n2], [3]]\nc = 3\n",
			map[string]int{"a": 1, "a[0]": 2, "a[1]": 4, "b": 6, "c": 8},
		},
		"inline tables": {
			"a = { b = 1, c = { d = \"}\" }, 'e f' = [ { g = 1 },\n { g = 2 } ] }\nh = 1\n",
			map[string]int{"a.b": 1, "a.c.d": 1, `a."e f"[0].g`: 1, `a."e f"[1].g`: 2, "h": 3},
		},
		"strings over several lines": {
			"a = \"\"\"\n[b]\nc = 1 \\\"\"\" d = 2\n\"\"\"\"\"\ne = '''\nf = 1\n'' '''\ng = \"\\\\\"\nh = 'C:\\'\ni = 1\n",
			map[string]int{"a": 1, "e": 5, "g": 8, "h": 9, "i": 10},
		},
		"lists of tables": {
			"[[a]]\nx = 1\n[[a]]\nx = 2\n[a.b]\ny = 3\n[[a.c]]\nz = 4\n[[a.c]]\nz = 5\n[[a]]\n[[a.c]]\nz = 6\n",
			map[string]int{"a": 1, "a[0].x": 2, "a[1]": 3, "a[1].x": 4, "a[1].b.y": 6, "a[1].c[0].z": 8, "a[1].c[1].z": 10, "a[2].c[0].z": 13},
		},
		"Windows line ends, a byte order mark and dates": {
			"\ufeffa = 1979-05-27 07:32:00 # when\r\n\r\nb = true\r\n[c]\r\nd = -1e5\r\n",
			map[string]int{"a": 1, "b": 3, "c": 4, "c.d": 5},
		},
		"escapes and quotes in keys": {
			"\"a\\\"b\" = 1\n'c.d'.e = 2\n\"\" = 3\n\"\\u0066\" = 4\n",
			map[string]int{`"a\"b"`: 1, `"c.d".e`: 2, `""`: 3, "f": 4},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var decoded map[string]any
			if _, err := toml.Decode(tt.src, &decoded); err != nil {
				t.Fatalf("the case is not TOML: %v", err)
			}
			found := index(tt.src)
			for path, want := range tt.want {
				if got := found[path]; got != want {
					t.Errorf("%s is on line %d, want %d (found %v)", path, got, want, found)
				}
			}
		})
	}
}

func TestAKeyThatIsNotWrittenIsToldAtTheTableAroundIt(t *testing.T) {
	found := index("\n[a]\nb = [\n{ c = 1 }]\n")
	for path, want := range map[string]int{"a.x": 2, "a.b[0].x": 4, "a.b[7]": 3, "x.y.z": 1, "": 1} {
		if got := found.line(path); got != want {
			t.Errorf("%q is told on line %d, want %d", path, got, want)
		}
	}
}

// FuzzEveryKeyThatTheLibraryKnowsIsFound holds the index against the TOML library, which parses with other code.
func FuzzEveryKeyThatTheLibraryKnowsIsFound(f *testing.F) {
	f.Add("a = 1\n[b.c]\nd = { e = [ 1, 2 ], \"f g\" = '''\n''' }\n[[h]]\n[[h]]\ni.j = 1979-05-27 07:32:00\n")
	f.Add("a = \"\"\"\\\n  x\"\"\"\"\"\n'b' = [ { c = 1 }, { d = { } } ] # e = 2\r\n")
	f.Add("\"\\e\" = 1\n")
	f.Fuzz(func(t *testing.T, src string) {
		found := index(src) // must not panic or hang on anything
		lines := strings.Count(src, "\n") + 1
		for path, line := range found {
			if line < 1 || line > lines {
				t.Fatalf("%q is on line %d of %d", path, line, lines)
			}
		}
		var decoded map[string]any
		if _, err := toml.Decode(src, &decoded); err != nil || strings.ContainsAny(src, "\\\x00") || strings.HasPrefix(src, "\xfe\xff") || strings.HasPrefix(src, "\xff\xfe") {
			return // escapes in keys only cost precision
		}
		wantKeys(t, found, "", decoded)
	})
}

func wantKeys(t *testing.T, found positions, path string, v any) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			if _, ok := found[join(path, name)]; !ok {
				t.Fatalf("%q is not found", join(path, name))
			}
			wantKeys(t, found, join(path, name), inner)
		}
	case []map[string]any:
		for i, inner := range v {
			wantKeys(t, found, element(path, i), inner)
		}
	case []any:
		for i, inner := range v {
			if _, nested := inner.([]any); nested {
				return // lists inside lists are not told apart
			}
			wantKeys(t, found, element(path, i), inner)
		}
	}
}
