package test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	unitFile = "../systemd/gatepost.service"
	unitUser = 64242 // nobody's
)

// sandbox is what the unit asks for and what of bubblewrap does the same.
var sandbox = map[string][]string{
	"NoNewPrivileges=yes":    nil, // always
	"CapabilityBoundingSet=": {"--cap-drop", "ALL"},
	"PrivateUsers=yes":       {"--unshare-user"},
	"PrivateIPC=yes":         {"--unshare-ipc"},
	"ProtectHostname=yes":    {"--unshare-uts"},
	"PrivateMounts=yes":      nil, // always
}

// sandboxed makes a command of bubblewrap's that runs gatepost as the unit does: an unprivileged user without
// capabilities, in namespaces of its own, under the unit's seccomp programs on descriptors 3 and 4, with nothing to
// write to but its state_dir.
func (s *site) sandboxed() []string {
	s.t.Helper()
	unit, err := os.ReadFile(unitFile)
	if err != nil {
		s.t.Fatal(err)
	}
	user := strconv.Itoa(unitUser)
	args := []string{"setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--",
		"bwrap", "--die-with-parent", "--add-seccomp-fd", "3", "--add-seccomp-fd", "4"}
	for setting, flags := range sandbox {
		if !strings.Contains(string(unit), "\n"+setting+"\n") {
			s.t.Errorf("the unit does not say %s", setting)
		}
		args = append(args, flags...)
	}
	return append(args,
		"--ro-bind", "/", "/", // ProtectSystem=strict
		"--dev", "/dev", // PrivateDevices=yes
		"--tmpfs", "/home", "--tmpfs", "/root", // ProtectHome=yes
		"--tmpfs", "/tmp", // PrivateTmp=yes
		"--ro-bind", s.dir, s.dir, "--bind", s.path("state"), s.path("state"), // ConfigurationDirectory, StateDirectory
		"--")
}

// giveAway makes all files of the site the user's, and puts the program where that user can reach it.
func (s *site) giveAway(user int) {
	s.t.Helper()
	program, err := os.ReadFile(plain)
	if err != nil {
		s.t.Fatal(err)
	}
	s.program = s.path("gatepost")
	if err := os.WriteFile(s.program, program, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Mkdir(s.path("state"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	err = filepath.WalkDir(s.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, user, user)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func TestTheUnitsSandboxLetsMailThrough(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	needs(t, "bwrap", "bubblewrap")
	needs(t, "systemd-analyze", "systemd")
	needsPython(t, "seccomp", "python3-seccomp")
	needsPython(t, "dkim", "python3-dkim")
	s := newSite(t)
	allow, deny := s.path("allow.bpf"), s.path("deny.bpf")
	if out, err := exec.CommandContext(t.Context(), python, "peers/unit_seccomp.py", unitFile, allow, deny).CombinedOutput(); err != nil {
		t.Fatalf("make the unit's seccomp programs: %v\n%s", err, out)
	}
	for _, name := range []string{allow, deny} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s.files = append(s.files, f)
	}
	s.giveAway(unitUser)
	if !s.passes([]string{"touch", s.path("state/x")}) {
		t.Fatal("nothing runs in the sandbox")
	}
	for what, command := range map[string][]string{
		"writes where it must not":       {"touch", s.path("x")},
		"writes to the system":           {"touch", "/var/tmp/gatepost-test"},
		"makes a namespace":              {"unshare", "--user", "true"},
		"sets a user id bit":             {"chmod", "u+s", s.path("state")},
		"makes memory to write and run":  {python, "-c", "import mmap; mmap.mmap(-1, 4096, prot=7)"},
		"opens a socket of another kind": {python, "-c", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)"},
		"raises its own limits":          {python, "-c", "import os; os.nice(-1)"},
	} {
		if s.passes(command) {
			t.Errorf("the sandbox does not hold: in it a program %s", what)
		}
	}
	d := s.start(s.sandboxed()...)

	pid := descendant(t, d.cmd.Process.Pid, "gatepost")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t64242\t64242", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t2"} {
		if !strings.Contains(string(status), "\n"+want) {
			t.Errorf("gatepost does not run under %q:\n%s", want, status)
		}
	}
	authStream.mustPost(t, s.listen, "a", "123456")
	bulkStream.mustPost(t, s.listen, "b", "123456")
	a, b := s.auth.wait(1, 10*time.Second)[0], s.bulk.wait(1, 10*time.Second)[0]
	wantSigned(t, s.records, authDomain, a)
	wantSigned(t, s.records, bulkDomain, b)
	if a.peer.source.String() != authEgress || b.peer.source.String() != bulkEgress {
		t.Errorf("the mail came from %s and %s", a.peer.source, b.peer.source)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := d.wait(15 * time.Second); code != 0 {
		t.Errorf("gatepost ended with %d", code)
	}
	for _, trouble := range []string{"level=ERROR", "operation not permitted", "read-only file system"} {
		if strings.Contains(d.log.String(), trouble) {
			t.Errorf("the log holds %q:\n%s", trouble, d.log.String())
		}
	}
}

// passes reports whether a command succeeds in the sandbox.
func (s *site) passes(command []string) bool {
	s.t.Helper()
	args := append(s.sandboxed(), command...)
	cmd := exec.CommandContext(s.t.Context(), args[0], args[1:]...)
	cmd.ExtraFiles = s.files
	err := cmd.Run()
	for _, f := range s.files {
		if _, err := f.Seek(0, io.SeekStart); err != nil { // for the next one to read
			s.t.Fatal(err)
		}
	}
	return err == nil
}

// descendant returns the process that runs program below pid.
func descendant(t *testing.T, pid int, program string) int {
	t.Helper()
	for {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && filepath.Base(exe) == program {
			return pid
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(children), " ")
		if pid, err = strconv.Atoi(first); err != nil {
			t.Fatalf("no process runs %s", program)
		}
	}
}
