package letter_test

import (
	"testing"

	"gatepost/letter"
)

func TestTextSaysWhatTheHTMLSays(t *testing.T) {
	for src, want := range map[string]string{
		"<p>One\n  two</p><p>three</p>":                                               "One two\n\nthree\n",
		"<h1>Title</h1><div>a</div><div>b</div>":                                      "Title\n\na\nb\n",
		"a<br>b<br><br><br>c":                                                         "a\nb\n\nc\n",
		"<ul><li>one</li><li>two</li></ul>after":                                      "- one\n- two\n\nafter\n",
		`<a href="https://example.com/x">Open</a> now`:                                "Open: https://example.com/x now\n",
		`<a href="https://example.com/x">https://example.com/x</a>`:                   "https://example.com/x\n",
		`<a href="mailto:help@example.com">help@example.com</a>`:                      "help@example.com\n",
		`<a href="https://example.com/x">x</a><a href="https://example.com/y">y</a>.`: "x: https://example.com/x y: https://example.com/y .\n",
		`<a href="#top">top</a>`:                                                      "top\n",
		`<a href="https://example.com/"><img src="x" alt="Home"></a>`:                 "Home: https://example.com/\n",
		`<p>Code: <b>60</b>7596.</p>`:                                                 "Code: 607596.\n",
		"<style>p{}</style><script>x</script><title>t</title><p>shown":                "shown\n",
		`<div style="Display: none">hidden</div>shown<!-- not -->`:                    "shown\n",
		`<span style="color:#fff;max-height:0px!important;overflow:hidden">pre-header</span><p hidden>x</p><p style="max-height:0.5em;opacity:0.9">shown`: "shown\n",
		`<td style="font-size:0"><a style="font-size:16px;mso-hide:all">shown</a></td>`:                                                                   "shown\n", // as MJML lays out what it shows
		"<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>":                                                                                 "a b\nc\n",
		"<pre>  x\n    y</pre>z":       "  x\n    y\n\nz\n",
		"&lt;b&gt; &amp; &nbsp;x":      "<b> & \u00a0x\n",
		"<p> spaced </p> <p> out </p>": "spaced\n\nout\n",
		"":                             "\n",
		"<p>日本語</p><p>中文</p>":          "日本語\n\n中文\n",
	} {
		if got, err := letter.TextOf(src); err != nil || got != want {
			t.Errorf("%s\nbecomes %q (%v), want %q", src, got, err, want)
		}
	}
}
