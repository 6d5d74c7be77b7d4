// Package pgtest runs private PostgreSQL servers for tests: on a port of the loopback interface, in a directory of their
// own, as durable as a real one (fsync is on), though in memory where there is plenty, and gone when the tests are.
package pgtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Role is who owns the databases that tests get. It is no superuser.
const Role = "gatepost"

const (
	startWithin = 30 * time.Second
	stopWithin  = 20 * time.Second
)

// How a server is stopped: the signals that PostgreSQL documents for it.
const (
	Fast      = syscall.SIGINT  // connections are cut, the database is closed
	Immediate = syscall.SIGQUIT // as in a crash: recovery follows at the next start
)

// Server is a server of its own.
type Server struct {
	Port     int
	Password string // of Role and of the superuser postgres

	dir      string
	lock     *os.File // held while somebody needs dir
	settings []string

	mu      sync.Mutex
	process *os.Process
	ended   chan struct{} // closed once process has been waited for
}

var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Main runs tests and then stops the server that they shared. It is for TestMain.
func Main(m *testing.M) int {
	code := m.Run()
	if shared.server != nil {
		shared.server.remove()
	}
	return code
}

// Shared returns the server that all tests of a package use, which the first to ask starts. The package's TestMain must
// call Main.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() { shared.server, shared.err = start() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// New starts a server for one test, with settings ("name=value") of its own.
func New(t testing.TB, settings ...string) *Server {
	t.Helper()
	s, err := start(settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.remove)
	return s
}

// start makes a cluster and starts it.
func start(settings ...string) (*Server, error) {
	dir, lock, err := makeHome()
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	s := &Server{dir: dir, lock: lock, Password: rand.Text(), settings: settings}
	if err := s.setUp(); err != nil {
		s.remove()
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	return s, nil
}

// inMemory is where files need no disk, and plenty the octets that have to be free there. A sync costs nothing then, and
// the crashes of these tests are those of a process.
const (
	inMemory = "/dev/shm"
	plenty   = 4 << 30
)

// makeHome makes the directory of a server, and removes there what tests left behind that were killed.
func makeHome() (dir string, lock *os.File, err error) {
	parent := os.TempDir()
	var fs syscall.Statfs_t
	if syscall.Statfs(inMemory, &fs) == nil && fs.Bavail*uint64(fs.Bsize) >= plenty {
		parent = inMemory
	}
	removeLeft(parent)
	if dir, err = os.MkdirTemp(parent, "pgtest"); err != nil {
		return "", nil, err
	}
	name := filepath.Join(dir, "lock")
	if lock, err = os.Create(name + ".new"); err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", nil, err
	}
	return dir, lock, os.Rename(name+".new", name) // from here on it can be seen, and is locked
}

func removeLeft(parent string) {
	locks, _ := filepath.Glob(filepath.Join(parent, "pgtest*", "lock")) // the pattern is well formed
	for _, name := range locks {
		f, err := os.Open(name)
		if err != nil {
			continue // somebody else's, or gone
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			os.RemoveAll(filepath.Dir(name))
		}
		f.Close()
	}
}

func (s *Server) setUp() error {
	as, err := account()
	if err != nil {
		return err
	}
	secret := filepath.Join(s.dir, "password")
	if err := os.WriteFile(secret, []byte(s.Password+"\n"), 0o600); err != nil {
		return err
	}
	if as != nil {
		for _, p := range []string{s.dir, secret} {
			if err := os.Chown(p, int(as.Uid), int(as.Gid)); err != nil {
				return err
			}
		}
	}
	initdb := exec.Command(binary("initdb"), "-D", s.data(), "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8",
		"--auth=scram-sha-256", "--pwfile", secret)
	initdb.Dir = s.dir
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if s.Port, err = freePort(); err != nil {
		return err
	}
	if err := s.run(); err != nil {
		return err
	}
	return s.admin(fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", Role, s.Password))
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// account returns whom the server runs as: nil for ourselves, and the packaged account where we are root, which
// PostgreSQL refuses.
func account() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: install the package postgresql", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

// binary returns the path of a server program: of the newest version that Debian installed, else from PATH.
func binary(name string) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // the pattern is well formed
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return n
	}
	if len(found) == 0 {
		return name
	}
	return slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(version(a), version(b)) })
}

func freePort() (int, error) {
	for range 100 { // below the ports that the kernel gives to outgoing connections, which could take it during a restart
		port := 32000 + mathrand.N(700)
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if errors.Is(err, syscall.ECONNREFUSED) {
			return port, nil
		}
		if err == nil {
			c.Close()
		}
	}
	return 0, errors.New("no free port")
}

// run starts the server process and waits until it answers. The process ends with ours, however that ends: the kernel
// sees to it, as long as the thread lives that started it.
func (s *Server) run() error {
	as, err := account()
	if err != nil {
		return err
	}
	args := []string{"-D", s.data(), "-p", strconv.Itoa(s.Port), "-k", s.dir}
	for _, setting := range append([]string{"listen_addresses=127.0.0.1", "max_connections=300", "shared_buffers=64MB", "max_wal_size=256MB",
		"autovacuum_naptime=1s"}, s.settings...) {
		args = append(args, "-c", setting)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(binary("postgres"), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Pdeathsig: Immediate}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.mu.Lock()
	s.process, s.ended = cmd.Process, ended
	s.mu.Unlock()
	return s.answers(ended)
}

// answers waits until the server takes connections.
func (s *Server) answers(ended chan struct{}) error {
	for end := time.Now().Add(startWithin); ; time.Sleep(20 * time.Millisecond) {
		err := s.admin("SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("the server ended:\n%s", s.Log())
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w\n%s", err, s.Log())
		}
	}
}

// Log returns what the server has logged.
func (s *Server) Log() string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(text)
}

// Stop stops the server with one of the signals above and waits for its end.
func (s *Server) Stop(t testing.TB, how syscall.Signal) {
	t.Helper()
	if err := s.stop(how); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) stop(how syscall.Signal) error {
	s.mu.Lock()
	p, ended := s.process, s.ended
	s.process = nil
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.Signal(how); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-time.After(stopWithin):
		p.Kill()
		<-ended
		return fmt.Errorf("PostgreSQL did not stop within %v", stopWithin)
	}
}

// Start starts a server that was stopped, on the same port.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
}

// Restart stops the server and starts it again.
func (s *Server) Restart(t testing.TB, how syscall.Signal) {
	t.Helper()
	s.Stop(t, how)
	s.Start(t)
}

// Pause keeps every process of the server from running, as a host does that hangs, until the returned function is called.
func (s *Server) Pause(t testing.TB) (resume func()) {
	t.Helper()
	pids := s.processes(t)
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGSTOP) // one that has ended since is fine
	}
	var once sync.Once
	resume = func() {
		once.Do(func() {
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGCONT)
			}
		})
	}
	t.Cleanup(resume)
	return resume
}

// processes returns the postmaster and its children.
func (s *Server) processes(t testing.TB) []int {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := []int{s.process.Pid}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[0], pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// remove stops the server and deletes what it had.
func (s *Server) remove() {
	if err := s.stop(Immediate); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.RemoveAll(s.dir)
	s.lock.Close()
}

// Database makes a database that belongs to Role and returns how to connect to it. It is dropped with the test.
func (s *Server) Database(t testing.TB) (dsn string) {
	t.Helper()
	name := "t" + strings.ToLower(rand.Text()[:12])
	if err := s.admin("CREATE DATABASE " + name + " OWNER " + Role); err != nil {
		t.Fatalf("create database: %v", err)
	}
	t.Cleanup(func() {
		if err := s.admin("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Logf("drop database: %v", err)
		}
	})
	return s.DSN(Role, name)
}

// DSN returns how user connects to a database.
func (s *Server) DSN(user, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, s.Password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)),
		Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Admin runs a statement as superuser, in the database postgres.
func (s *Server) Admin(t testing.TB, sql string) {
	t.Helper()
	if err := s.admin(sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (s *Server) admin(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.DSN("postgres", "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}
