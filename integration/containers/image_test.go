package containers

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// gateImage is what the repository's Dockerfile makes.
const gateImage = "exitgate:latest"

// builder stands in for the Go toolchain of the Dockerfile's first stage, which no registry is asked for here: it has the binary under
// test ready, and refuses another build than the one that it takes the place of.
const builder = `#!/bin/sh
echo "go $*, CGO_ENABLED=$CGO_ENABLED"
case $1 in
mod) [ "$2" = download ] && [ -s go.mod ] && [ -s go.sum ] ;;
build) [ "$CGO_ENABLED" = 0 ] && [ -s cmd/exitgate/main.go ] || exit 1
	shift
	while [ "$1" != -o ]; do shift; done
	cp /prebuilt "$2" ;;
*) exit 1 ;;
esac
`

// buildImage builds the Dockerfile as it stands.
var buildImage = sync.OnceValue(func() error {
	e, err := engines["docker"]()
	if err != nil {
		return err
	}
	var base, context bytes.Buffer
	data, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	w := tar.NewWriter(&base)
	for _, f := range []struct {
		name string
		data []byte
	}{{"bin/busybox", shell}, {"prebuilt", data}, {"bin/go", []byte(builder)}, {"etc/ssl/certs/ca-certificates.crt", internet.CA.PEM()}} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o755, Size: int64(len(f.data))}))
		_, werr := w.Write(f.data)
		err = errors.Join(err, werr)
	}
	for _, name := range []string{"sh", "cp"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		return err
	}
	from, _, _ := strings.Cut(strings.TrimPrefix(string(dockerfile[bytes.Index(dockerfile, []byte("FROM ")):]), "FROM "), " AS build\n")
	if _, err := e.do(base.String(), "import", "-", from); err != nil {
		return err
	}
	w = tar.NewWriter(&context)
	for _, name := range []string{"Dockerfile", "go.mod", "go.sum", "cmd/exitgate/main.go"} {
		data, rerr := os.ReadFile("../../" + name)
		err = errors.Join(err, rerr, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}))
		_, werr := w.Write(data)
		err = errors.Join(err, werr)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	_, err = e.do(context.String(), "build", "-t", gateImage, "-")
	return err
})

// TestDockerfile: its image, from scratch, fences another container whose network it shares, and says whose a port is that is taken.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	e := needs(t, "docker")
	if err := buildImage(); err != nil {
		t.Fatal(err)
	}
	p := somewhere(t)
	_, mounts := e.files(t, p.policy())
	agent := e.start(t, append(with(), "-u", "1000"), "sleep", "1000")
	wantOpen(t, agent.through(nil, []string{"probe", "serve"}, p.direct()...))
	sidecar := func(name string, command ...string) []string {
		return slices.Concat([]string{"run", "--name", name, "--network", "container:" + agent.name, "--read-only", "--tmpfs", "/run/exitgate"}, usual(), mounts, []string{gateImage}, command)
	}
	taken := e.start(t, append(with(), "-u", "1000", "--network", "container:"+agent.name), "probe", "do", `{"op":"listen","address":"`+listener+`","timeout":600000000000}`)
	eventually(t, "the port is taken", func() bool { return strings.Contains(taken.logs(), listener) })
	o, err := e.client(nil, append([]string{"run", "--rm"}, sidecar("taken")[1:]...)...)
	if err != nil || o.code != 125 || !strings.Contains(o.stderr, "the port is taken by a process of uid 1000 that cannot be seen from here") {
		t.Errorf("with the port taken: %v %v; want exit 125 and whose it is", o, err)
	}
	taken.must(t, "kill", taken.name)
	c := &container{engine: e, t: t, name: "gate-image"}
	t.Cleanup(func() { e.do("", "rm", "-f", c.name) })
	e.must(t, append([]string{"run", "-d"}, sidecar(c.name)[1:]...)...)
	eventually(t, "the sidecar is ready", func() bool { return c.exec("/exitgate", "status").code == 0 })
	p.wantFence(t, agent.through(nil, []string{"probe", "serve"}, p.tries()...))
	if o := c.exec("/exitgate", "verify"); o.code != 0 {
		t.Errorf("verify: %v", o)
	}
	if o := c.exec("/exitgate", "version"); o.code != 0 {
		t.Errorf("version: %v", o)
	}
}
