package prober

import (
	"fmt"
	"io"
	"net"
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

// reverseMain is a bare proxy of the standard library, a baseline: a credential and nothing else towards the upstream, absolute-form http
// and CONNECT to wherever the client says.
func reverseMain(listen, upstream, authorization string) int {
	to, err := url.Parse(upstream)
	if err == nil {
		transport := &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}
		proxy := &httputil.ReverseProxy{
			FlushInterval: -1, BufferPool: &buffers{}, Transport: transport,
			Rewrite: func(r *httputil.ProxyRequest) {
				if r.In.URL.IsAbs() {
					return
				}
				r.SetURL(to)
				r.Out.Header.Set("Authorization", authorization)
			},
		}
		err = http.ListenAndServe(listen, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodConnect {
				tunnel(w, r.Host)
				return
			}
			proxy.ServeHTTP(w, r)
		}))
	}
	fmt.Fprintln(os.Stderr, "prober:", err)
	return 1
}

// tunnel copies both ways between TCP connections, which the library does by splice.
func tunnel(w http.ResponseWriter, to string) {
	up, err := net.Dial("tcp", to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	if _, err := io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		io.Copy(down, up)
		down.(*net.TCPConn).CloseWrite()
	})
	io.Copy(up, down)
	up.(*net.TCPConn).CloseWrite()
	back.Wait()
}

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
