package supervise

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// order is what the stage is started for; it comes on stageFD.
type order struct {
	Command
	Helper  bool          `json:"helper,omitempty"`  // the command is no agent: it keeps the uid, without capabilities
	Signals []unix.Signal `json:"signals,omitempty"` // no command: as the agent, send these
	Target  int           `json:"target,omitempty"`  // to this, as kill takes it; 0: to every process the agent may signal
}

const stageFD = 3

// Stage is the main function of `exitgate stage`, the process in which an agent is hardened before it exists. It returns only
// if that failed, having said so in one line on stderr: 125, or 126 and 127 for a command that cannot be executed or found.
func Stage() int {
	runtime.LockOSThread()
	o, err := readOrder()
	if err == nil {
		err = o.follow()
	}
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "exitgate: %v\n", err)
	return ExitCode(err)
}

func (o order) follow() error {
	switch {
	case o.Helper:
		return becomeHelper(o.Command)
	case len(o.Signals) == 0:
		return Become(o.Command)
	}
	if err := o.check(); err != nil { // as root it would reach everybody
		return err
	}
	if err := harden(o.Command); err != nil {
		return err
	}
	target := o.Target
	if target == 0 {
		target = -1 // all but the first process of the namespace and this one
	}
	for _, sig := range o.Signals {
		_ = unix.Kill(target, sig)
	}
	return nil
}

// becomeHelper executes a command with this process's uid and none of its capabilities.
func becomeHelper(c Command) error {
	for _, step := range []func() error{setNoCore, defaultSignals, closeOnExec, oneThread.disarm} {
		if err := step(); err != nil {
			return err
		}
	}
	return execute(c.Argv, c.Env)
}

func readOrder() (order, error) {
	f := os.NewFile(stageFD, "order")
	defer f.Close()
	var o order
	if err := json.NewDecoder(f).Decode(&o); err != nil {
		return o, fmt.Errorf("stage: no order on descriptor %d: %w; this command is for exitgate itself", stageFD, err)
	}
	return o, nil
}
