package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// These are set by `-ldflags "-X main.commit=..."`; what is not comes from the build's own information. That has no commit where
// the build sees no .git: in an image's build context, or by GOFLAGS=-buildvcs=false.
var version, commit string

// build is `version --json`.
type build struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	Commit  string `json:"commit"` // "unknown" in a build that nobody told
}

func newVersionCommand(env *environment) *cobra.Command {
	var asJSON bool
	c := needsNoSettings(&cobra.Command{
		Use:     "version",
		Short:   "version, Go and commit of this binary",
		Example: "  exitgate version\n  exitgate version --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return env.printJSON(thisBuild())
			}
			_, err := fmt.Fprintln(env.stdout, thisBuild())
			return err
		},
	})
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

func (b build) String() string {
	return fmt.Sprintf("exitgate %s (%s, commit %s)", b.Version, b.Go, b.Commit)
}

func thisBuild() build {
	info, _ := debug.ReadBuildInfo()
	return describe(info)
}

// describe reads what the linker recorded; info may be nil.
func describe(info *debug.BuildInfo) build {
	b := build{Version: version, Go: runtime.Version(), Commit: "unknown"}
	if info == nil {
		info = &debug.BuildInfo{}
	}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	modified := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.Commit = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+modified"
		}
	}
	switch {
	case b.Commit != "unknown":
		b.Commit += modified
	case commit != "":
		b.Commit = commit
	}
	return b
}
