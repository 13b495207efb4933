package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"exitgate/cmd/internal/report"

	"github.com/spf13/cobra"
)

func newReportCommand(env *environment) *cobra.Command {
	var file, out string
	c := &cobra.Command{
		Use:   "report [--audit FILE] [-o FILE]",
		Short: "one HTML page of what was called, denied and spent",
		Long: "Reads an audit file, or the one that the running gate writes, and makes one page of HTML that needs nothing else:\n" +
			"decisions over time, denials by name and program, hosts by bytes, token usage, reloads.",
		Example: "  exitgate report -o report.html\n  exitgate report --audit /var/log/exitgate/audit.jsonl > report.html",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return env.report(file, out) },
	}
	auditFileFlag(c, &file)
	c.Flags().StringVarP(&out, "output", "o", "", "write the page to this `file` instead of standard output")
	return c
}

func (env *environment) report(file, out string) error {
	if file == "" {
		if err := env.call("auditfile", nil, &file); err != nil {
			return err
		}
	}
	var r report.Report
	strange, err := env.readEvents(file, r.Add)
	if err != nil {
		return err
	}
	if strange > 0 {
		fmt.Fprintf(env.stderr, "exitgate: %s: %d lines are no audit lines and were passed over\n", file, strange)
	}
	var page bytes.Buffer
	if err := r.Write(&page); err != nil {
		return err
	}
	if out == "" {
		_, err = page.WriteTo(env.stdout)
		return err
	}
	return os.WriteFile(out, page.Bytes(), 0o644)
}

// auditFile names the file that the running gate writes its audit to.
func (g *gate) auditFile(context.Context, url.Values) (any, error) {
	path, ok := strings.CutPrefix(g.sink, "file:")
	if !ok {
		return nil, errors.New("the running gate writes its audit to no file; set `audit` to file:PATH, or name a file with --audit")
	}
	return path, nil
}
