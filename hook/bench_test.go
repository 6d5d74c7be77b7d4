package hook

import (
	"testing"
	"time"
)

// requests are one of each caller, as they order a sign-in code.
var requests = []struct{ adapter, body string }{
	{"logto", `{"to":"person@example.net","type":"SignIn","payload":{"code":"607596","locale":"en","uiLocales":"fr-CA pt","application":{"id":"app1","name":"App"}},"ip":"203.0.113.7"}`},
	{"zitadel", `{"contextInfo":{"eventType":"user.human.mfa.otp.email.code.added","recipientEmailAddress":"a@example.net"},"templateData":{"subject":"Code","greeting":"Hello","text":"Use 607596","buttonText":"Sign in","url":"https://x.example/","primaryColor":"#fff"},"args":{"code":"607596"}}`},
	{"supabase", supabaseBody("magiclink", `,"token":"607596","token_hash":"a1b2"`)},
	{"kratos", `{"recipient":"a@example.net","template_type":"login_code_valid","template_data":{"login_code":"607596","identity":{"traits":{"locale":"de"}}}}`},
	{"novu", `{"to":["a@example.net"],"from":"no-reply@auth.example.com","senderName":"App","subject":"Code","html":"<p>607596","text":"607596"}`},
	{"native", `{"to":"a@example.net","type":"SignIn","locale":"pt-BR","variables":{"code":"607596"},"application":"app","ttl":"2m"}`},
}

func BenchmarkParse(b *testing.B) {
	for _, r := range requests {
		b.Run(r.adapter, func(b *testing.B) {
			a := adapter(r.adapter)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Parse([]byte(r.body)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	now := time.Now()
	for name, s := range signers {
		b.Run(name, func(b *testing.B) {
			const body = `{"to":"a@example.net"}`
			h := s.sign(s.key, body, now)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.adapter.Verify(h, []byte(body), []string{s.key}, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
