// Package test runs gatepost as its users do: the built program as a process of its own, real clients in front of it,
// real SMTP hosts behind it, and whatever happens to programs in production (SIGKILL, full disks, outages) in between.
// What it asserts is what gatepost promises to the outside; how it keeps that is tested in the packages.
//
// GATEPOST_CHAOS=1 (make chaos) runs the same tests with far more rounds, longer outages and longer queues.
package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var (
	raced string // the program with the race detector, which is what serves
	plain string // the program as it ships
	chaos = os.Getenv("GATEPOST_CHAOS") != ""

	workDir string // for what is built once for all tests
)

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gatepost-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	workDir = dir
	raced, plain = filepath.Join(dir, "gatepost-race"), filepath.Join(dir, "gatepost")
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { errs[0] = build(raced, "CGO_ENABLED=1", "-race") })
	wg.Go(func() { errs[1] = build(plain, "CGO_ENABLED=0", "-trimpath") })
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

func build(file, env string, flags ...string) error {
	cmd := exec.Command("go", append(append([]string{"build"}, flags...), "-o", file, "gatepost")...)
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %v: %w\n%s", flags, err, out)
	}
	return nil
}

// rounds returns how often to do something: few times in make test, many in make chaos.
func rounds(few, many int) int {
	if chaos {
		return many
	}
	return few
}

// needs fails the test unless program is installed, and names the Debian package that has it.
func needs(t *testing.T, program, debian string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%s is not installed: apt-get install %s", program, debian)
	}
}

// needsNode fails the test unless Node.js and the packages of package.json are installed.
func needsNode(t *testing.T) {
	t.Helper()
	needs(t, "node", "nodejs")
	for _, name := range []string{"connector-smtp", "connector-http-email"} {
		if _, err := os.Stat("node_modules/@logto/" + name); err != nil {
			t.Fatalf("the npm packages are not installed: (cd test && npm ci --ignore-scripts)")
		}
	}
}

// needsPython fails the test unless Debian's own Python has the module.
func needsPython(t *testing.T, module, debian string) {
	t.Helper()
	if err := exec.Command(python, "-c", "import "+module).Run(); err != nil {
		t.Fatalf("%s has no module %s: apt-get install %s", python, module, debian)
	}
}

// needsRoot fails the test unless it runs as root, which mounting takes.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test mounts a file system of its own: run it as root")
	}
}

// python is Debian's interpreter, which sees the modules that Debian packages install.
const python = "/usr/bin/python3"

// output is what a process has written so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
