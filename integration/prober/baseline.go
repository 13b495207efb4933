package prober

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"sync"
)

// initMain is a bare init in Go, a baseline: start one program, wait for it, exit with its code.
func initMain(argv []string) int {
	signal.Notify(make(chan os.Signal, 1))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "prober:", err)
		return 127
	}
	return cmd.ProcessState.ExitCode()
}

// reverseMain is a bare reverse proxy of the standard library with a credential and nothing else, a baseline.
func reverseMain(listen, upstream, authorization string) int {
	to, err := url.Parse(upstream)
	if err == nil {
		err = http.ListenAndServe(listen, &httputil.ReverseProxy{
			FlushInterval: -1, BufferPool: &buffers{},
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(to)
				r.Out.Header.Set("Authorization", authorization)
			},
			Transport: &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true},
		})
	}
	fmt.Fprintln(os.Stderr, "prober:", err)
	return 1
}

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
