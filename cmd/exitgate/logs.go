package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"exitgate/cmd/internal/audit"

	"golang.org/x/term"
)

// Where log and audit go when stderr is the agent's terminal: nothing may draw over an interactive program.
const (
	runDir     = "/run/exitgate"
	quietLog   = runDir + "/exitgate.log"
	quietAudit = "file:" + runDir + "/audit.jsonl"
)

// openLogs opens the log and the audit, as the settings say.
func (g *gate) openLogs(interactive bool) error {
	var out io.Writer = g.env.stderr
	g.sink = g.settings.Audit
	if interactive {
		if err := os.MkdirAll(filepath.Join("/", g.env.root, runDir), 0o711); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join("/", g.env.root, quietLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("%w; mount a writable directory there (`--tmpfs %s`)", err, runDir)
		}
		out = f
		if !g.settings.isSet("audit") {
			g.sink = quietAudit
		}
	}
	straight := g.logger(out)
	g.log = newLogWriter(out, func(n int) { straight.Warn(fmt.Sprintf("%d lines were lost here: nobody read the log", n)) })
	g.openLog(g.log)
	g.report.report.Clean = g.scrub
	var err error
	g.audit, err = audit.Open(audit.Options{Sink: g.sink, Stderr: g.env.stderr, Root: g.env.root, Log: g.logf, Scrub: g.scrubLine, Each: g.report.add})
	return err
}

// onTerminal says whether an agent that we start would have our stderr as its terminal.
func (g *gate) onTerminal() bool {
	f, ok := g.env.stderr.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// openLog has the log written to w.
func (g *gate) openLog(w io.Writer) {
	l := g.logger(w)
	g.logf = func(format string, args ...any) { l.Warn(fmt.Sprintf(format, args...)) }
	g.notef = func(format string, args ...any) { l.Info(fmt.Sprintf(format, args...)) }
}

// logger writes one line a message, in text for people or JSON for programs.
func (g *gate) logger(w io.Writer) *slog.Logger {
	var at slog.Level
	_ = at.UnmarshalText([]byte(g.settings.LogLevel)) // an unknown word was refused with the settings; the zero value is info
	if g.settings.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: at}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: at}))
}
