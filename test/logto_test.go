package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatepost/event"
)

// blocks returns the fenced blocks of a page that are of a language.
func blocks(page, language string) (all []string) {
	for _, part := range strings.Split(page, "```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		all = append(all, block)
	}
	return all
}

func TestThePageAboutLogtoLeadsFromNothingToASignInMail(t *testing.T) {
	t.Parallel()
	needsNode(t)
	needs(t, "openssl", "openssl")
	b, err := os.ReadFile("../docs/logto.md")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: t.TempDir(), listen: freeAddress(t), program: raced}
	http := freeAddress(t)
	moved := strings.NewReplacer("127.0.0.1:2525", s.listen, `"port": 2525`, `"port": `+s.listen[strings.LastIndexByte(s.listen, ':')+1:], "127.0.0.1:8025", http)
	page := moved.Replace(string(b))
	commands, configs, connectors := blocks(page, "sh"), blocks(page, "toml"), blocks(page, "json")
	if len(commands) != 3 || len(configs) != 1 || len(connectors) != 2 {
		t.Fatalf("the page has %d blocks of commands, %d of config and %d for connectors", len(commands), len(configs), len(connectors))
	}
	path := filepath.Join(t.TempDir(), "bin")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(plain, filepath.Join(path, "gatepost")); err != nil {
		t.Fatal(err)
	}
	shell := func(text string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", "-euc", text)
		cmd.Dir, cmd.Env = s.dir, append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s\nended with %v:\n%s", text, err, out)
		}
		return string(out)
	}
	if out := shell(commands[0]); !strings.Contains(out, "gp1._domainkey.auth.example.com") {
		t.Errorf("no DNS record was printed: %s", out)
	}
	s.write("gatepost.toml", configs[0])
	check, serve, ok := strings.Cut(commands[1], "\n")
	if !ok || strings.TrimSpace(serve) != "gatepost serve" {
		t.Fatalf("the second block is %q", commands[1])
	}
	if out := shell(check); !strings.Contains(out, "no problems in the config") || regexp.MustCompile(`(?m)^(WARN|FAIL)`).MatchString(out) {
		t.Errorf("check says %s", out)
	}
	s.start()

	connector := func(text string) (config object) {
		t.Helper()
		if err := json.Unmarshal([]byte(strings.ReplaceAll(text, "TOKEN", strings.TrimSpace(s.read("logto.token")))), &config); err != nil {
			t.Fatal(err)
		}
		return config
	}
	message := object{"to": "ann@example.org", "type": "SignIn", "payload": object{"code": "123456", "locale": "ja"}}
	if _, err := peer(t, "", "node", "peers/logto.mjs", jsonArg(t, object{"config": connector(connectors[0]), "message": message})); err != nil {
		t.Errorf("by SMTP: %v", err)
	}
	if out, err := peer(t, "", "node", "peers/logto_http.mjs", jsonArg(t, object{"config": connector(connectors[1]), "messages": []object{message}})); err != nil || strings.TrimSpace(out) != "[true]" {
		t.Errorf("by HTTP: %s, %v", out, err)
	}
	eventually(t, 10*time.Second, "both mails are captured", func() bool {
		n := 0
		for _, e := range s.trace("ann@example.org").Events {
			if e.Kind == event.Captured {
				n++
			}
		}
		return n == 2
	})
	if out := shell(commands[2]); strings.Count(out, "captured") < 2 || !regexp.MustCompile(`(?m)^logto +SignIn +1 +0 +0$`).MatchString(out) {
		t.Errorf("trace and stats say %s", out)
	}
}
