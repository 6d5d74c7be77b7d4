// Command gatepost is a sign-in mail gateway: it takes mail from the systems that create it, keeps auth and marketing
// mail apart, signs it, and forwards it from a pinned address to the services that deliver it.
package main

import (
	"context"
	"os"

	"gatepost/cli"
)

func main() { os.Exit(cli.Main(context.Background(), os.Args, os.Stdout, os.Stderr)) }
