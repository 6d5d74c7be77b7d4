package cli

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pseudoterminal returns both ends of a terminal (pty(7)).
func pseudoterminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keyboard.Close() })
	fd := int(keyboard.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return keyboard, terminal
}

func TestATerminalIsAskedTwiceAndDoesNotShowThePassword(t *testing.T) {
	for name, tt := range map[string]struct {
		second string
		want   string
	}{
		"the same twice":          {"correct horse", ""},
		"another the second time": {"correct house", "not the same"},
	} {
		t.Run(name, func(t *testing.T) {
			keyboard, terminal := pseudoterminal(t)
			prompts := &output{}
			go func() {
				for n, line := range []string{"correct horse", tt.second} {
					for strings.Count(prompts.String(), ": ") <= n || echoes(terminal) {
						time.Sleep(time.Millisecond)
					}
					fmt.Fprintf(keyboard, "%s\n", line)
				}
			}()
			got, err := (&app{err: prompts}).readPassword(terminal)
			switch {
			case tt.want == "" && (err != nil || got != "correct horse"):
				t.Errorf("it read %q, %v", got, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("it read %q, %v; want that it is %s", got, err, tt.want)
			}
			fmt.Fprint(terminal, "end")
			shown := make([]byte, 1024)
			n, err := keyboard.Read(shown)
			if err != nil || strings.Contains(string(shown[:n]), "correct") {
				t.Errorf("the terminal shows %q, %v", shown[:n], err)
			}
		})
	}
}

// echoes reports whether a terminal shows what is typed.
func echoes(terminal *os.File) bool {
	state, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	return err != nil || state.Lflag&unix.ECHO != 0
}
