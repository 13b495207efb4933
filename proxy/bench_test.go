package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The benchmarks compare three roads in one run: direct (TLS to the upstream), a
// bare ReverseProxy, and this package with all its checks, audit and scrubbing on.

// road is a way to the upstream: how to connect, and what to send.
type road struct {
	name string
	dial func() net.Conn
	host string
}

// roads starts an upstream and the proxies before it.
func roads(b *testing.B, serve func(net.Conn, *bufio.Reader)) []road {
	r := newRig(b, func(o *Options) { o.Audit = nil })
	port := r.rawOrigin(serve)
	r.configure(limits(apiPolicy(port), "connections: 5000"), apiSecrets())
	authority := fmt.Sprintf("127.0.0.1:%d", port)
	conf := &tls.Config{ServerName: "api.example.test", RootCAs: r.ca.pool, ClientSessionCache: tls.NewLRUClientSessionCache(8), DynamicRecordSizingDisabled: true}
	return []road{
		{"direct", func() net.Conn {
			nc, err := tls.Dial("tcp", authority, conf)
			must(b, err)
			return nc
		}, authority},
		{"reverseproxy", dialer(b, bareProxy(b, port, conf)), authority},
		{"exitgate", dialer(b, r.addr), r.addr},
	}
}

func dialer(b *testing.B, addr string) func() net.Conn {
	return func() net.Conn {
		nc, err := net.Dial("tcp", addr)
		must(b, err)
		return nc
	}
}

// bareProxy is httputil.ReverseProxy as one would write it in ten lines.
func bareProxy(b *testing.B, port int, conf *tls.Config) string {
	target := &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", port)}
	rp := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.Host = "api.example.test"
			p.Out.Header.Set("X-Api-Key", apiKey)
		},
		FlushInterval: -1,
		Transport:     &http.Transport{TLSClientConfig: conf, MaxIdleConnsPerHost: 1000, DisableCompression: true},
		BufferPool:    pooled{},
		ErrorLog:      quiet(),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	srv := &http.Server{Handler: rp}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	b.Cleanup(func() {
		_ = srv.Close()
		<-done
		rp.Transport.(*http.Transport).CloseIdleConnections()
	})
	return l.Addr().String()
}

type pooled struct{}

func (pooled) Get() []byte  { return *bigBuffers.Get().(*[]byte) }
func (pooled) Put(p []byte) { bigBuffers.Put(&p) }

// parse reads a head and returns its Content-Length, cheaply: the upstream and the
// client of a benchmark should cost little beside what is measured.
func parse(br *bufio.Reader) (length int, err error) {
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			return length, nil
		}
		if len(line) > 16 && bytes.EqualFold(line[:16], []byte("content-length: ")) {
			length, err = strconv.Atoi(string(bytes.TrimSpace(line[16:])))
			if err != nil {
				return 0, err
			}
		}
	}
}

func answers(size int, kind string) func(net.Conn, *bufio.Reader) {
	answer := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: %s\r\nRequest-Id: req_0123456789\r\nContent-Length: %d\r\n\r\n%s", kind, size, strings.Repeat("x", size)))
	return func(nc net.Conn, br *bufio.Reader) {
		for {
			n, err := parse(br)
			if err != nil {
				return
			}
			if _, err := br.Discard(n); err != nil {
				return
			}
			if _, err := nc.Write(answer); err != nil {
				return
			}
		}
	}
}

const clientFields = "User-Agent: claude-cli/2.1 (external, cli)\r\nAccept: application/json\r\nAuthorization: Bearer placeholder\r\nanthropic-version: 2023-06-01\r\nanthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14\r\nX-Stainless-Lang: js\r\nX-Stainless-Runtime: node\r\nContent-Type: application/json\r\n"

// requests has conns connections make b.N requests.
func requests(b *testing.B, rd road, conns, body int) {
	request := []byte(fmt.Sprintf("POST /v1/messages?beta=true HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %d\r\n\r\n%s", rd.host, clientFields, body, strings.Repeat("b", body)))
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	opened := make([]net.Conn, conns)
	for i := range opened {
		opened[i] = rd.dial()
		defer opened[i].Close()
		once(b, opened[i], request)
	}
	b.ReportAllocs()
	used := cpuTime()
	b.ResetTimer()
	for _, nc := range opened {
		wg.Add(1)
		go func() {
			defer wg.Done()
			br := bufio.NewReaderSize(nc, 16<<10)
			for left.Add(-1) >= 0 {
				if _, err := nc.Write(request); err != nil {
					b.Error(err)
					return
				}
				n, err := parse(br)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := br.Discard(n); err != nil {
					b.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	b.ReportMetric(float64((cpuTime()-used).Microseconds())/float64(b.N), "cpu-us/op")
}

// cpuTime is what the process has used: client, proxy and upstream together. On a
// busy machine it says more than the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func once(b *testing.B, nc net.Conn, request []byte) {
	_, err := nc.Write(request)
	must(b, err)
	br := bufio.NewReader(nc)
	n, err := parse(br)
	must(b, err)
	_, err = br.Discard(n)
	must(b, err)
}

func BenchmarkRequests(b *testing.B) {
	all := roads(b, answers(1024, "application/json"))
	for _, conns := range []int{1, 16, 64} {
		for _, rd := range all {
			b.Run(fmt.Sprintf("conns=%d/%s", conns, rd.name), func(b *testing.B) { requests(b, rd, conns, 64) })
		}
	}
	for _, rd := range all {
		b.Run("post64KiB/"+rd.name, func(b *testing.B) { requests(b, rd, 16, 64<<10) })
	}
}

func BenchmarkDownload(b *testing.B) {
	const size = 16 << 20
	for _, rd := range roads(b, answers(size, "application/octet-stream")) {
		b.Run(rd.name, func(b *testing.B) {
			b.SetBytes(size)
			requests(b, rd, 1, 0)
		})
	}
}

// BenchmarkEvents measures one event's way: from its being written by the upstream
// to its being read by the client.
func BenchmarkEvents(b *testing.B) {
	event := []byte("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"" + strings.Repeat("word ", 20) + "\"}}\n\n")
	chunk := []byte(fmt.Sprintf("%x\r\n%s\r\n", len(event), event))
	for _, streams := range []int{1, 16} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) { eventLatency(b, streams, chunk) })
	}
}

// eventLatency has an upstream write an event on each stream in turn and times it.
func eventLatency(b *testing.B, streams int, chunk []byte) {
	var ticks atomic.Pointer[chan chan<- time.Time] // of the road that is measured
	serve := func(nc net.Conn, br *bufio.Reader) {
		if _, err := parse(br); err != nil {
			return
		}
		_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
		for at := range *ticks.Load() {
			at <- time.Now()
			if _, err := nc.Write(chunk); err != nil {
				return
			}
		}
	}
	for _, rd := range roads(b, serve) {
		b.Run(rd.name, func(b *testing.B) {
			var took []time.Duration
			tick := make(chan chan<- time.Time)
			defer close(tick)
			ticks.Store(&tick)
			got := make(chan time.Time, streams)
			for range streams {
				nc := rd.dial()
				defer nc.Close()
				fmt.Fprintf(nc, "GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", rd.host)
				br := bufio.NewReader(nc)
				_, err := parse(br)
				must(b, err)
				go func() {
					for {
						if _, err := readEvent(br); err != nil {
							return
						}
						got <- time.Now()
					}
				}()
			}
			time.Sleep(10 * time.Millisecond)
			b.ResetTimer()
			for range b.N {
				at := make(chan time.Time, 1)
				tick <- at
				from := <-at
				to := <-got
				took = append(took, to.Sub(from))
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "us-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "us-p99")
		})
	}
}

// readEvent reads up to an event's empty line, chunk frames or not.
func readEvent(br *bufio.Reader) (n int, err error) {
	seen := false
	for {
		line, err := br.ReadSlice('\n')
		n += len(line)
		if err != nil {
			return n, err
		}
		if bytes.HasPrefix(line, []byte("data:")) {
			seen = true
		} else if seen && len(line) == 1 {
			return n, nil
		}
	}
}

// BenchmarkTunnel moves 64 MiB from the upstream through a CONNECT.
func BenchmarkTunnel(b *testing.B) {
	const size = 64 << 20
	piece := make([]byte, 1<<20)
	r := newRig(b, func(o *Options) { o.Audit = nil })
	port := r.rawTCP(func(nc net.Conn) {
		for {
			var one [1]byte
			if _, err := nc.Read(one[:]); err != nil {
				return
			}
			for range size / len(piece) {
				if _, err := nc.Write(piece); err != nil {
					return
				}
			}
		}
	})
	r.configure(egressPolicy(port, "plain.example.test"), nil)
	for _, rd := range []road{
		{"direct", dialer(b, fmt.Sprintf("127.0.0.1:%d", port)), ""},
		{"exitgate", dialer(b, r.addr), fmt.Sprintf("plain.example.test:%d", port)},
	} {
		b.Run(rd.name, func(b *testing.B) {
			nc := rd.dial()
			defer nc.Close()
			if rd.host != "" {
				fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", rd.host, rd.host)
				if line, err := bufio.NewReaderSize(nc, 16).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
					b.Fatalf("%q %v", line, err)
				}
			}
			b.SetBytes(size)
			b.ResetTimer()
			for range b.N {
				_, err := nc.Write([]byte{1})
				must(b, err)
				_, err = io.CopyN(io.Discard, nc, size)
				must(b, err)
			}
		})
	}
}

func BenchmarkNewTunnels(b *testing.B) {
	r := newRig(b, func(o *Options) { o.Audit = nil })
	port := r.rawTCP(func(nc net.Conn) { _, _ = io.Copy(nc, nc) })
	r.configure(egressPolicy(port, "plain.example.test"), nil)
	connect := fmt.Sprintf("CONNECT plain.example.test:%d HTTP/1.1\r\nHost: plain.example.test:%d\r\n\r\n", port, port)
	for _, rd := range []road{
		{"direct", dialer(b, fmt.Sprintf("127.0.0.1:%d", port)), ""},
		{"exitgate", dialer(b, r.addr), connect},
	} {
		b.Run(rd.name, func(b *testing.B) {
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					nc := rd.dial()
					if rd.host != "" {
						_, _ = io.WriteString(nc, rd.host)
						if _, err := parse(bufio.NewReader(nc)); err != nil {
							b.Error(err)
						}
					}
					_, _ = nc.Write([]byte("x"))
					_, _ = nc.Read(make([]byte, 1))
					_ = nc.Close()
				}
			})
		})
	}
}

// BenchmarkOpenStreams reports what an open event stream holds: memory of client,
// proxy and upstream together, so that the direct road is what to subtract.
func BenchmarkOpenStreams(b *testing.B) {
	const streams = 500
	wait := make(chan struct{})
	all := roads(b, func(nc net.Conn, br *bufio.Reader) {
		if _, err := parse(br); err != nil {
			return
		}
		_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n7\r\ndata:\n\n\r\n")
		<-wait
	})
	b.Cleanup(func() { close(wait) })
	for _, rd := range all {
		b.Run(rd.name, func(b *testing.B) {
			for range b.N {
				before := inUse()
				var open []net.Conn
				for range streams {
					nc := rd.dial()
					open = append(open, nc)
					fmt.Fprintf(nc, "GET /v1/models HTTP/1.1\r\nHost: %s\r\n%s\r\n", rd.host, clientFields)
					br := bufio.NewReaderSize(nc, 16)
					for line := ""; !strings.Contains(line, "data:"); {
						var err error
						line, err = br.ReadString('\n')
						must(b, err)
					}
				}
				b.ReportMetric(float64(inUse()-before)/1024/streams, "KiB/stream")
				for _, nc := range open {
					_ = nc.Close()
				}
			}
		})
	}
}

func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
