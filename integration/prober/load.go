package prober

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Quantiles of a number of samples.
type Quantiles struct {
	P50, P90, P99, Max time.Duration
	Samples            int
}

func quantiles(samples []time.Duration) *Quantiles {
	if len(samples) == 0 {
		return nil
	}
	slices.Sort(samples)
	at := func(q float64) time.Duration { return samples[int(q*float64(len(samples)-1))] }
	return &Quantiles{P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: samples[len(samples)-1], Samples: len(samples)}
}

// gather runs f on several connections at once and collects their samples. The first failure is the result's.
func gather(p Probe, f func(rd *road, warm, until time.Time) ([]time.Duration, error)) (r Result) {
	var mu sync.Mutex
	var all sync.WaitGroup
	var samples []time.Duration
	warm := time.Now().Add(p.Every) // until all connections are up and caches are filled
	until := warm.Add(p.Timeout)
	for range max(p.Connections, 1) {
		all.Go(func() {
			var mine Result
			q := p
			q.Timeout += p.Every + 10*time.Second // for the connection; the measurement ends by itself
			rd, ok := open(q, &mine)
			var got []time.Duration
			if ok {
				defer rd.Close()
				var err error
				if got, err = f(rd, warm, until); err != nil {
					mine.fail("load", err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			samples = append(samples, got...)
			if !mine.OK() {
				r.Stage, r.Err, r.Errno = mine.Stage, mine.Err, mine.Errno
			}
		})
	}
	all.Wait()
	r.Count, r.Quantiles = len(samples), quantiles(samples)
	return r
}

// load repeats a request on keep-alive connections; a sample is the time from sending to the end of the answer.
func load(p Probe, _ emit) Result {
	method, _, _ := bytes.Cut(p.Data, []byte(" "))
	req := &http.Request{Method: string(method)}
	return gather(p, func(rd *road, warm, until time.Time) (got []time.Duration, err error) {
		for begin := time.Now(); begin.Before(until); begin = time.Now() {
			if _, err := rd.Write(p.Data); err != nil {
				return got, err
			}
			res, err := http.ReadResponse(rd.br, req)
			if err != nil {
				return got, err
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil {
				return got, err
			}
			if begin.After(warm) {
				got = append(got, time.Since(begin))
			}
		}
		return got, nil
	})
}

// streams reads events that carry the time of their sending ("sent":NANOSECONDS); a sample is the time from there to here.
func streams(p Probe, _ emit) Result {
	return gather(p, func(rd *road, warm, until time.Time) (got []time.Duration, err error) {
		if _, err := rd.Write(p.Data); err != nil {
			return nil, err
		}
		res, err := http.ReadResponse(rd.br, nil)
		if err != nil {
			return nil, err
		}
		// The body is not closed: that would read an endless stream to its end.
		lines := bufio.NewReader(res.Body)
		for time.Now().Before(until) {
			line, err := lines.ReadSlice('\n')
			if err != nil {
				return got, err
			}
			_, rest, ok := bytes.Cut(line, []byte(`"sent":`))
			if !ok {
				continue
			}
			now := time.Now()
			if sent, err := strconv.ParseInt(string(bytes.TrimRight(rest, "}\n")), 10, 64); err == nil && now.After(warm) {
				got = append(got, time.Duration(now.UnixNano()-sent))
			}
		}
		return got, nil
	})
}
