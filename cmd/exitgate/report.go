package main

import (
	"io"
	"os"
	"strings"
	"sync"

	"exitgate/cmd/internal/report"
	"exitgate/policy"

	"github.com/spf13/cobra"
)

func newReportCommand(env *environment) *cobra.Command {
	var file, out string
	c := &cobra.Command{
		Use:   "report [--audit FILE] [-o FILE]",
		Short: "one HTML page of what was called, denied and spent",
		Long: "Makes one page of HTML that needs nothing else, of what the running gate has decided since it started, or of an audit\n" +
			"file and those it was rotated to: decisions over time, denials by name and program, hosts by bytes, token usage, reloads.",
		Example: "  exitgate report -o report.html\n  exitgate report --audit /var/log/exitgate/audit.jsonl > report.html",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return env.report(file, out) },
	}
	auditFileFlag(c, &file)
	c.Flags().StringVarP(&out, "output", "o", "", "write the page to this `file` instead of standard output")
	return c
}

func (env *environment) report(file, out string) error {
	var page string
	var err error
	if file == "" {
		err = env.call("report", nil, &page)
	} else {
		page, err = env.reportOf(file)
	}
	if err != nil {
		return err
	}
	if out == "" {
		_, err = io.WriteString(env.stdout, page)
		return err
	}
	return os.WriteFile(out, []byte(page), 0o644)
}

func (env *environment) reportOf(file string) (string, error) {
	var r report.Report
	if err := env.readEvents(file, r.Add); err != nil {
		return "", err
	}
	var page strings.Builder
	err := r.Write(&page)
	return page.String(), err
}

// ownReport is the running gate's report of itself. Its memory is bounded, and it holds no credential.
type ownReport struct {
	mu     sync.Mutex // guards the following
	report report.Report
}

func (o *ownReport) add(e policy.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.report.Add(e)
}

func (o *ownReport) page() (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var page strings.Builder
	err := o.report.Write(&page)
	return page.String(), err
}
