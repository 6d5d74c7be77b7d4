package compose_test

import (
	"testing"

	"golang.org/x/text/language"

	"gatepost/compose"
)

func BenchmarkLoad(b *testing.B) {
	s := branded()
	for b.Loop() {
		if _, err := compose.Load(s, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRender(b *testing.B) {
	all, err := compose.Load(branded(), nil)
	if err != nil {
		b.Fatal(err)
	}
	r := compose.Sample("SignIn", language.Japanese)
	for b.Loop() {
		if _, err := all.Render(r); err != nil {
			b.Fatal(err)
		}
	}
}
