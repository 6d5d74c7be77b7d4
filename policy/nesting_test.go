package policy

import (
	"fmt"
	"strings"
	"testing"

	"gatepost/reply"
)

// nested returns a body of n multiparts inside one another, and its Content-Type.
func nested(n int) (contentType, body string) {
	body = "deep\r\n"
	contentType = "text/plain"
	for i := range n {
		body = fmt.Sprintf("--b%d\r\nContent-Type: %s\r\n\r\n%s\r\n--b%d--\r\n", i, contentType, body, i)
		contentType = fmt.Sprintf("multipart/mixed;\r\n boundary=\"b%d\"", i)
	}
	return strings.ReplaceAll(contentType, "\r\n", ""), body
}

func TestPartsNestOnlySoDeep(t *testing.T) {
	flat := strings.Repeat("--x\r\nContent-Type: message/rfc822\r\n\r\nSubject: s\r\n\r\nbody\r\n", 500) + "--x--\r\n"
	within, tooDeep := maxNesting, maxNesting+1
	forwarded := strings.Repeat("Content-Type: message/rfc822\r\n\r\n", 3*maxNesting)
	for name, tt := range map[string]struct {
		contentType, body string
		refused           bool
	}{
		"as deep as allowed":             {first(nested(within)), second(nested(within)), false},
		"one deeper":                     {first(nested(tooDeep)), second(nested(tooDeep)), true},
		"many parts side by side":        {"multipart/digest; boundary=x", flat, false},
		"messages in messages":           {"message/rfc822", forwarded, true},
		"text that looks like parts":     {"text/plain", second(nested(3 * maxNesting)), false},
		"a delimiter of nobody":          {"multipart/mixed; boundary=x", second(nested(3 * maxNesting)), false},
		"a type without a boundary":      {"multipart/mixed", second(nested(3 * maxNesting)), false},
		"a folded type with a lone part": {"multipart/mixed; boundary=x", "--x\r\nContent-Type:\r\n multipart/alternative;\r\n\tboundary=y\r\n\r\n--y\r\n\r\nhi\r\n--y--\r\n--x--\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkNesting(tt.contentType, []byte(tt.body))
			if (err != nil) != tt.refused {
				t.Fatalf("got %v, want refused: %v", err, tt.refused)
			}
			if err != nil && reply.Of(err).Code != 554 {
				t.Errorf("refused with %v, want 554", err)
			}
		})
	}
}

func first(a, _ string) string  { return a }
func second(_, b string) string { return b }

func BenchmarkNesting(b *testing.B) {
	body := "--x\r\n\r\n" + strings.Repeat(strings.Repeat("a", 76)+"\r\n", 2600) + "--x--\r\n"
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if err := checkNesting("multipart/mixed; boundary=x", []byte(body)); err != nil {
			b.Fatal(err)
		}
	}
}
