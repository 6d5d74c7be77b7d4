package compose_test

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"

	nethtml "golang.org/x/net/html"
	"golang.org/x/text/language"

	"gatepost/compose"
)

const readable = 4.5 // WCAG 2.2 §1.4.3

func TestContrastIsWhatWCAGSays(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want float64
	}{{"#000000", "#ffffff", 21}, {"#ffffff", "#ffffff", 1}, {"#777777", "#ffffff", 4.48}, {"#0000ff", "#ffffff", 8.59}} {
		if got := compose.Contrast(tt.a, tt.b); math.Abs(got-tt.want) > 0.005 || compose.Contrast(tt.b, tt.a) != got {
			t.Errorf("%s on %s has a contrast of %.2f, want %.2f", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestTextOnAnyColourOfABrandIsReadable(t *testing.T) {
	for n := 0; n < 1<<24; n += 4099 { // a prime: all channels vary
		color := fmt.Sprintf("#%06x", n)
		if c := compose.Contrast(compose.OnColor(color), color); c < readable {
			t.Fatalf("%s on %s has a contrast of %.2f", compose.OnColor(color), color, c)
		}
	}
}

func TestEveryTextOfABuiltInTemplateIsReadableInLightAndDarkMode(t *testing.T) {
	for _, color := range []string{"#2456d6", "#ffffff", "#000000", "#ffd400"} {
		s := branded()
		s.Color = color
		all, err := compose.Load(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"SignIn", "OrganizationInvitation"} {
			m := render(t, all, compose.Sample(kind, language.English))
			for mode, dark := range map[string]map[string]string{"light": nil, "dark": darkRules(t, m.HTML)} {
				if n := checkContrast(t, kind+" in "+mode, m.HTML, dark); n < 5 {
					t.Errorf("%s in %s: only %d texts were found", kind, mode, n)
				}
			}
		}
	}
}

// darkRules returns the declarations by class under prefers-color-scheme: dark.
func darkRules(t *testing.T, src string) map[string]string {
	t.Helper()
	_, rest, found := strings.Cut(src, "@media (prefers-color-scheme: dark) {")
	if !found {
		t.Fatal("there is no dark mode")
	}
	rest, _, _ = strings.Cut(rest, "\n}")
	rules := map[string]string{}
	for _, m := range regexp.MustCompile(`\.(\w+) \{([^}]*)\}`).FindAllStringSubmatch(rest, -1) {
		rules[m[1]] = m[2]
	}
	return rules
}

// checkContrast walks over the visible texts of src and returns how many there are.
func checkContrast(t *testing.T, name, src string, dark map[string]string) (texts int) {
	t.Helper()
	root, err := nethtml.Parse(strings.NewReader(src))
	if err != nil {
		t.Fatal(err)
	}
	for n := range root.Descendants() {
		if n.Type != nethtml.TextNode || strings.TrimSpace(n.Data) == "" || isHidden(n) {
			continue
		}
		texts++
		color, background := inherited(n, "color", dark), inherited(n, "background-color", dark)
		if color == "" || background == "" {
			t.Errorf("%s: %q has the colour %q on %q", name, n.Data, color, background)
		} else if c := compose.Contrast(color, background); c < readable {
			t.Errorf("%s: %q, %s on %s, has a contrast of %.2f", name, n.Data, color, background, c)
		}
	}
	return texts
}

func isHidden(n *nethtml.Node) bool {
	for ; n != nil; n = n.Parent {
		if n.Data == "head" || strings.Contains(attr(n, "style"), "display:none") {
			return true
		}
	}
	return false
}

// inherited returns what a property is for n: the nearest that a class in dark mode or a style gives it.
func inherited(n *nethtml.Node, property string, dark map[string]string) string {
	value := regexp.MustCompile(`(?:^|[; ])` + property + `: ?(#[0-9a-f]{6})`)
	for n = n.Parent; n != nil; n = n.Parent {
		for class := range strings.FieldsSeq(attr(n, "class")) {
			if m := value.FindStringSubmatch(dark[class]); m != nil {
				return m[1]
			}
		}
		if m := value.FindStringSubmatch(attr(n, "style")); m != nil {
			return m[1]
		}
	}
	return ""
}

func attr(n *nethtml.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}
