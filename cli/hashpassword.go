package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gatepost/config"
	"gatepost/policy"
)

func (a *app) hashPasswordCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "hash-password",
		Short: "Hash a client's password for its password_file",
		Long: `Hash a password with argon2id, for a line of a client's password_file. The
password is the first line of standard input; a terminal is asked for it twice,
and does not show it. It is never an argument: others could see those.`,
		Example: "  gatepost hash-password >news.password && chmod 600 news.password",
		Args:    takesNothing,
		RunE: run(func(context.Context, []string) error {
			password, err := a.readPassword(os.Stdin)
			if err != nil {
				return err
			}
			hash, err := policy.HashPassword(password)
			if err != nil {
				return fmt.Errorf("hash the password: %w", err)
			}
			if a.json {
				return a.printJSON(map[string]string{"hash": hash})
			}
			_, err = fmt.Fprintln(a.out, hash)
			return err
		}),
	}
}

// readPassword asks a terminal, or reads the first line of anything else.
func (a *app) readPassword(from *os.File) (string, error) {
	if term.IsTerminal(int(from.Fd())) {
		return a.askPassword(int(from.Fd()))
	}
	line, err := bufio.NewReader(io.LimitReader(from, config.MaxPassword+2)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return checkPassword(strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"))
}

func (a *app) askPassword(terminal int) (string, error) {
	var typed [2]string
	for i, prompt := range []string{"Password: ", "Once more: "} {
		fmt.Fprint(a.err, prompt)
		b, err := term.ReadPassword(terminal)
		fmt.Fprintln(a.err)
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		typed[i] = string(b)
	}
	if typed[0] != typed[1] {
		return "", errors.New("the two are not the same")
	}
	return checkPassword(typed[0])
}

func checkPassword(p string) (string, error) {
	switch {
	case p == "":
		return "", usage("there is no password: type one, or give it as the first line of standard input")
	case len(p) > config.MaxPassword:
		return "", usage("the password is longer than %d octets", config.MaxPassword)
	}
	return p, nil
}
