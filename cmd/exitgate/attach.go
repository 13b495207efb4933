package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"

	"exitgate/cmd/internal/control"
	"exitgate/netns"

	"github.com/spf13/cobra"
)

func newAttachCommand(env *environment) *cobra.Command {
	var a attacher
	c := &cobra.Command{
		Use:   "attach (--pid N | --netns PATH) [--policy FILE]",
		Short: "fence another network namespace, and dial for it from here",
		Long: "Closes the network namespace of process N, or the one that PATH names, and opens the policy's listeners inside it. The\n" +
			"proxy accepts there and dials from here, so the target needs no interface but lo (`docker run --network none`), no\n" +
			"capability and no secret. Nothing in there, root included, reaches an address by itself: of the policy, `root` and\n" +
			"`root_loopback` have no effect. A path in `socket` is one of this machine; mount it into the target.\n\n" +
			"Ends, with code 0, on a signal, when process N has ended, or when PATH is gone or names another namespace. The fence stays:\n" +
			"what still runs in there then reaches nothing. 125: it could not be set up, or not be kept.\n\n" +
			"The control socket is /run/exitgate/NAME.sock, where NAME is pid-N or the last part of PATH; name it to the other\n" +
			"commands by --control.\n\n" +
			"A target that runs already has been open until now: its connections break, what it sent before is sent. To be there before\n" +
			"a container's first instruction, use `exitgate hook`; or start it with --network none.",
		Example: "  exitgate attach --pid $(docker inspect -f '{{.State.Pid}}' NAME) --policy policy.yaml\n" +
			"  exitgate attach --netns /run/netns/blue & exitgate status --control /run/exitgate/blue.sock --wait ready",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.attach(env) },
	}
	c.Flags().IntVar(&a.pid, "pid", 0, "fence the namespace of this `process`")
	c.Flags().StringVar(&a.path, "netns", "", "fence the namespace that this `path` names, such as /run/netns/NAME")
	c.MarkFlagsOneRequired("pid", "netns")
	c.MarkFlagsMutuallyExclusive("pid", "netns")
	return c
}

// attacher is one `exitgate attach`.
type attacher struct {
	runner
	pid  int
	path string
}

func (a *attacher) attach(env *environment) error {
	if err := a.begin(env, "attach"); err != nil {
		return ours(err)
	}
	if err := a.nameControl(targetName(a.pid, a.path)); err != nil {
		return ours(err)
	}
	target, err := a.open()
	if err != nil {
		return ours(err)
	}
	defer target.Close()
	if err := a.enter(target); err != nil {
		return ours(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	a.gone = target.Gone(ctx)
	a.notef("fencing network namespace %d; the other commands take --control %s", target.Inode(), a.settings.Control)
	return a.guard()
}

func (a *attacher) open() (*netns.Handle, error) {
	switch {
	case a.path != "":
		return netns.FromPath(a.path)
	case a.pid <= 0:
		return nil, fmt.Errorf("--pid %d is no process", a.pid)
	}
	return netns.FromPID(a.pid)
}

// enter takes a thread into the target, unless that is where everybody else is.
func (a *attacher) enter(target *netns.Handle) error {
	own, err := netns.Current()
	if err != nil {
		return err
	}
	defer own.Close()
	if own.ID() == target.ID() {
		return errors.New("the target is in this very network namespace, which the fence would cut off; name a process or a namespace of its own, " +
			"or use `exitgate run` to fence this one")
	}
	if same, err := target.OfOurUsers(); err != nil {
		return err
	} else if !same {
		return errors.New("the target belongs to another user namespace (a rootless or userns-remapped container), where the fence would not know root's " +
			"sockets by their uid; run `exitgate run` as the container's first process, which works there")
	}
	if a.place, err = enter(target); err != nil {
		return err
	}
	return a.place.do(func() error {
		if inHostNetwork() {
			return errors.New("the target is in the host's own network namespace, and the fence would cut off the whole host; give it a namespace of its own")
		}
		return nil
	})
}

// nameControl chooses the control socket by the target, where nobody else did, and makes sure that nobody answers on it: a
// second gate over the same target would empty the sets of the first.
func (r *runner) nameControl(name string) error {
	if !r.settings.isSet("control") {
		path, err := targetFile(name, ".sock")
		if err != nil {
			return err
		}
		r.settings.Control = path
	}
	return unanswered(r.settings.Control)
}

// unanswered makes sure that no gate answers on a control socket.
func unanswered(path string) error {
	err := control.Client{Path: path}.Call(context.Background(), "status", nil, &struct{}{})
	if !errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("%s: an exitgate answers there already; end it first, or set --control to another path", path)
	}
	return nil
}

// targetName is what the files of a target's gate are called.
func targetName(pid int, path string) string {
	byProcess := regexp.MustCompile(`^/proc/([0-9]+)/(?:task/[0-9]+/)?ns/net$`)
	if m := byProcess.FindStringSubmatch(filepath.Clean(path)); m != nil {
		return "pid-" + m[1]
	}
	if path != "" {
		return filepath.Base(path)
	}
	return "pid-" + strconv.Itoa(pid)
}
