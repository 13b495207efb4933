package rig

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// ErrNoBrowser says that there is none to look with.
var ErrNoBrowser = errors.New("no chromium here; install the package chromium")

// Browser is a headless Chromium in the namespaces of whoever started it: with no way out, as Enter leaves them. It is
// driven by the DevTools protocol over a pair of pipes, so that nothing listens.
type Browser struct {
	cmd    *exec.Cmd
	in     *os.File
	cancel context.CancelFunc

	mu      sync.Mutex // guards the following
	next    int
	answers map[int]chan reply
	events  map[string]int
	session string
	ended   error
}

type reply struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// NewBrowser starts one whose files are below dir, with one empty page.
func NewBrowser(dir string) (*Browser, error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, ErrNoBrowser
	}
	ours, err := pipes(4)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Browser{cancel: cancel, in: ours[1], answers: make(map[int]chan reply), events: make(map[string]int)}
	b.cmd = exec.CommandContext(ctx, path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
		"--remote-debugging-pipe", "--user-data-dir="+dir, "about:blank")
	b.cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	b.cmd.Cancel = func() error { return syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) } // its helpers too
	b.cmd.ExtraFiles = []*os.File{ours[0], ours[3]}
	err = b.cmd.Start()
	ours[0].Close()
	ours[3].Close()
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("start chromium: %w", err)
	}
	go b.read(ours[2])
	if err := b.attach(); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// pipes returns n/2 pipes as read and write ends in turn.
func pipes(n int) (all []*os.File, err error) {
	for range n / 2 {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		all = append(all, r, w)
	}
	return all, nil
}

// attach opens the first page's session.
func (b *Browser) attach() error {
	var targets struct {
		TargetInfos []struct{ TargetID, Type string }
	}
	if err := b.Call("Target.getTargets", nil, &targets); err != nil {
		return err
	}
	for _, t := range targets.TargetInfos {
		if t.Type != "page" {
			continue
		}
		var s struct{ SessionID string }
		if err := b.Call("Target.attachToTarget", map[string]any{"targetId": t.TargetID, "flatten": true}, &s); err != nil {
			return err
		}
		b.mu.Lock()
		b.session = s.SessionID
		b.mu.Unlock()
		for _, domain := range []string{"Page", "Network", "Accessibility", "Runtime", "Log"} {
			if err := b.Call(domain+".enable", nil, nil); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.New("chromium has no page")
}

// read hands answers to those who wait for them, and counts events by name.
func (b *Browser) read(from *os.File) {
	defer from.Close()
	messages := bufio.NewReaderSize(from, 1<<16)
	for {
		text, err := messages.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			b.ended = fmt.Errorf("chromium is gone: %w", err)
			for id, c := range b.answers {
				delete(b.answers, id)
				close(c)
			}
			b.mu.Unlock()
			return
		}
		var m struct {
			ID     int
			Method string
			reply
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		if c := b.answers[m.ID]; c != nil && m.ID != 0 {
			delete(b.answers, m.ID)
			c <- m.reply
		} else {
			b.events[m.Method]++
		}
		b.mu.Unlock()
	}
}

// browserPatience bounds one call; on a busy machine the first of them takes seconds.
const browserPatience = time.Minute

// Call is one call of the DevTools protocol.
func (b *Browser) Call(method string, params, result any) error {
	b.mu.Lock()
	if b.ended != nil {
		b.mu.Unlock()
		return b.ended
	}
	b.next++
	id, answer := b.next, make(chan reply, 1)
	b.answers[id] = answer
	message := map[string]any{"id": id, "method": method}
	if params != nil {
		message["params"] = params
	}
	if b.session != "" {
		message["sessionId"] = b.session
	}
	b.mu.Unlock()
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if _, err := b.in.Write(append(text, 0)); err != nil {
		return err
	}
	select {
	case r, ok := <-answer:
		switch {
		case !ok:
			return b.ended
		case r.Error != nil:
			return fmt.Errorf("%s: %s", method, r.Error.Message)
		case result == nil:
			return nil
		}
		return json.Unmarshal(r.Result, result)
	case <-time.After(browserPatience):
		return fmt.Errorf("%s: chromium does not answer", method)
	}
}

// Events is how many events of that name there were.
func (b *Browser) Events(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.events[name]
}

// Show opens an address in a window of that size, with the reader's choice of "light" or "dark", and waits until it is
// loaded.
func (b *Browser) Show(url, scheme string, width, height int) error {
	loaded := b.Events("Page.loadEventFired")
	for _, step := range []struct {
		method string
		params any
	}{
		{"Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}},
		{"Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}},
		{"Page.navigate", map[string]any{"url": url}},
	} {
		if err := b.Call(step.method, step.params, nil); err != nil {
			return err
		}
	}
	for until := time.Now().Add(browserPatience); b.Events("Page.loadEventFired") == loaded; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			return errors.New("the page does not load")
		}
	}
	return nil
}

// Evaluate runs an expression in the page, whether or not the page may run scripts, and decodes its value.
func (b *Browser) Evaluate(expression string, value any) error {
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct{ Text string }
	}
	if err := b.Call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &r); err != nil {
		return err
	}
	if r.ExceptionDetails != nil {
		return errors.New(r.ExceptionDetails.Text)
	}
	return json.Unmarshal(r.Result.Value, value)
}

// Picture is the whole page as a PNG.
func (b *Browser) Picture() ([]byte, error) {
	var r struct{ Data string }
	if err := b.Call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &r); err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(r.Data)
}

// Close ends it.
func (b *Browser) Close() error {
	b.cancel()
	b.in.Close()
	if b.cmd.Process != nil {
		_ = b.cmd.Wait() // killed
	}
	return nil
}
