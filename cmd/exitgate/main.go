// Package main is the command exitgate: it fences a network namespace and holds the credentials of what runs in it.
//
//	exitgate run --policy policy.yaml -- claude   # as a container's first process
//	exitgate exec -- bash                         # another process in a running gate
//	exitgate check policy.yaml                    # and rules, diff, explain: no privilege needed
//
// Not done here: this package reads flags and settings, wires the parts together, prints and chooses exit codes. What is
// allowed is package policy's to say, how it is enforced firewall's and proxy's, in which order engine's.
package main

import (
	"os"
	"time"

	"exitgate/cmd/internal/supervise"
	"exitgate/netns"
)

func init() { netns.LockMainThread() }

func main() {
	// The hidden processes come first: the agent's stage must not spend time on settings, the proxy must not read any.
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "proxy":
			os.Exit(runProxy())
		case "stage":
			os.Exit(supervise.Stage())
		case "probe":
			os.Exit(runProbe())
		case "inner":
			os.Exit(runInner())
		}
	}
	os.Exit(execute(&environment{
		args:  os.Args[1:],
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, environ: os.Environ,
		now: time.Now,
	}))
}
