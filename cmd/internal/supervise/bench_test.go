package supervise

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"exitgate/netns/netnstest"
)

// What the stage costs an agent's start: the difference of the two.
func BenchmarkStart(b *testing.B) {
	netnstest.RequireRoot(b)
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command("/bin/true").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("agent", func(b *testing.B) {
		o, err := json.Marshal(order{Command: Command{Argv: []string{"/bin/true"}, Env: agentEnv(), Identity: agentID, ConnectPorts: []uint16{8080}}})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe", "stage")
			cmd.Args[0] = "exitgate"
			cmd.ExtraFiles = []*os.File{r}
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			_, err = w.Write(o)
			r.Close()
			w.Close()
			if err != nil {
				b.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
