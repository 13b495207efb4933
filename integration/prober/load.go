package prober

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
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

// window is when samples count: from Every after the last connection had its first answer, for Timeout.
type window struct{ from, until atomic.Int64 }

func (w *window) set(from time.Time, length time.Duration) {
	w.until.Store(from.Add(length).UnixNano())
	w.from.Store(from.UnixNano())
}

// sees reports whether a sample that began then counts.
func (w *window) sees(begin time.Time) bool {
	from := w.from.Load()
	return from != 0 && begin.UnixNano() >= from && !w.over(begin)
}

func (w *window) over(now time.Time) bool {
	until := w.until.Load()
	return until != 0 && now.UnixNano() >= until
}

// worker is one of the connections of a load.
type worker struct {
	*road
	number int
	window *window
	up     func() // the first answer came
	got    []time.Duration
}

func (w *worker) sample(begin, end time.Time) {
	if w.window.sees(begin) {
		w.got = append(w.got, end.Sub(begin))
	}
}

// setUps is how many connections are made at a time: a burst of SYNs would measure the listener's backlog.
const setUps = 32

// setUpLimit ends a connection whose first answer does not come: all others wait for it before the measurement begins.
const setUpLimit = time.Minute

// gather runs f on several connections at once and collects their samples. When all are up it says so, in a result of its own. The first
// failure is the result's.
func gather(p Probe, more emit, f func(p Probe, w *worker) error) (r Result) {
	var mu sync.Mutex
	var up, all sync.WaitGroup
	var samples []time.Duration
	var times window
	slots := make(chan struct{}, setUps)
	conns := max(p.Connections, 1)
	up.Add(conns)
	for n := range conns {
		all.Go(func() {
			slots <- struct{}{}
			var mine Result
			q := p
			q.Timeout = setUpLimit
			rd, ok := open(q, &mine)
			w := &worker{road: rd, number: n, window: &times}
			w.up = sync.OnceFunc(func() {
				if ok {
					rd.SetDeadline(time.Now().Add(time.Hour)) // the measurement ends by itself
				}
				<-slots
				up.Done()
			})
			defer w.up()
			if ok {
				defer rd.Close()
				if err := f(p, w); err != nil {
					mine.fail("load", err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			samples = append(samples, w.got...)
			if !mine.OK() {
				r.Stage, r.Err, r.Errno = mine.Stage, mine.Err, mine.Errno
			}
		})
	}
	up.Wait()
	times.set(time.Now().Add(p.Every), p.Timeout)
	more(Result{Count: conns})
	all.Wait()
	r.Count, r.Quantiles = len(samples), quantiles(samples)
	return r
}

var errNotOK = errors.New("the answer is not 200")

// answer reads an answer's head, and cheaply: a client that costs much hides what is measured. length is -1 for a body in chunks.
func answer(br *bufio.Reader) (length int64, err error) {
	status, err := br.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(status) < 12 || string(status[9:12]) != "200" {
		return 0, fmt.Errorf("%w: %.60q", errNotOK, status)
	}
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			return length, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return 0, err
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			length = -1
		}
	}
}

// discard reads a body of length bytes, or one in chunks (-1).
func (w *worker) discard(length int64, buf []byte) error {
	if length < 0 {
		for {
			line, err := w.br.ReadSlice('\n')
			if err != nil {
				return err
			}
			n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
			if err != nil {
				return err
			}
			if err := w.discard(n+2, buf); err != nil || n == 0 {
				return err
			}
		}
	}
	n, err := w.br.Discard(int(min(length, int64(w.br.Buffered()))))
	for left := length - int64(n); left > 0 && err == nil; left -= int64(n) {
		n, err = w.Read(buf[:min(left, int64(len(buf)))])
	}
	return err
}

// load repeats a request on keep-alive connections; a sample is the time from sending to the end of the answer.
func load(p Probe, more emit) Result {
	return gather(p, more, func(p Probe, w *worker) error {
		buf := make([]byte, 4<<10)
		for begin := time.Now(); !w.window.over(begin); {
			if _, err := w.Write(p.Data); err != nil {
				return err
			}
			length, err := answer(w.br)
			if err == nil {
				err = w.discard(length, buf)
			}
			if err != nil {
				return err
			}
			w.up()
			end := time.Now()
			w.sample(begin, end)
			begin = w.pace(p, begin, end)
		}
		return nil
	})
}

// pace waits for the connection's next turn where there is a rate. Who is late goes on at once.
func (w *worker) pace(p Probe, begin, end time.Time) time.Time {
	if p.Rate == 0 {
		return end
	}
	next := begin.Add(time.Duration(max(p.Connections, 1)) * time.Second / time.Duration(p.Rate))
	if wait := next.Sub(end); wait > 0 {
		time.Sleep(wait)
		return time.Now()
	}
	return end
}

// streams reads events that carry the time of their sending ("sent":NANOSECONDS); a sample is the time from there to here. {n} in Data is
// the connection's number, so that the server can spread the streams over time.
func streams(p Probe, more emit) Result {
	return gather(p, more, func(p Probe, w *worker) error {
		if _, err := w.Write(bytes.ReplaceAll(p.Data, []byte("{n}"), strconv.AppendInt(nil, int64(w.number), 10))); err != nil {
			return err
		}
		if _, err := answer(w.br); err != nil {
			return err
		}
		w.up()
		for {
			line, err := w.br.ReadSlice('\n')
			if err != nil {
				return err
			}
			_, rest, ok := bytes.Cut(line, []byte(`"sent":`))
			if !ok {
				continue
			}
			now := time.Now()
			if w.window.over(now) {
				return nil
			}
			if sent, err := strconv.ParseInt(string(bytes.TrimRight(rest, "}\n")), 10, 64); err == nil {
				w.sample(now.Add(-time.Duration(now.UnixNano()-sent)), now)
			}
		}
	})
}

// piece is what a transfer writes and reads at a time.
const piece = 256 << 10

// transfer moves Size bytes again and again; a sample is one time.
func transfer(p Probe, more emit) Result {
	return gather(p, more, func(p Probe, w *worker) error {
		buf := make([]byte, piece)
		for begin := time.Now(); !w.window.over(begin); {
			if err := w.transfer(p, buf); err != nil {
				return err
			}
			w.up()
			end := time.Now()
			w.sample(begin, end)
			begin = end
		}
		return nil
	})
}

func (w *worker) transfer(p Probe, buf []byte) error {
	if _, err := w.Write(p.Data); err != nil {
		return err
	}
	length := p.Size
	if p.Up {
		for left := p.Size; left > 0; left -= min(left, int64(len(buf))) {
			if _, err := w.Write(buf[:min(left, int64(len(buf)))]); err != nil {
				return err
			}
		}
		length = 1
	}
	if !p.Raw {
		var err error
		if length, err = answer(w.br); err != nil {
			return err
		}
	}
	return w.discard(length, buf)
}

// echo sends a byte and waits for one.
func (w *worker) echo() error {
	if _, err := w.Write([]byte("e")); err != nil {
		return err
	}
	_, err := w.br.ReadByte()
	return err
}

// pingpong has one byte go to and fro.
func pingpong(p Probe, more emit) Result {
	return gather(p, more, func(p Probe, w *worker) error {
		for begin := time.Now(); !w.window.over(begin); {
			if err := w.echo(); err != nil {
				return err
			}
			w.up()
			w.sample(begin, time.Now())
			time.Sleep(p.Pause)
			begin = time.Now()
		}
		return nil
	})
}

// tunnels makes new connections, each for one byte to and fro; a sample reaches from dialling to that byte.
func tunnels(p Probe, more emit) Result {
	return gather(p, more, func(p Probe, w *worker) error {
		for begin := time.Now(); !w.window.over(begin); {
			err := w.echo()
			w.hangUp()
			if err != nil {
				return err
			}
			w.up()
			w.sample(begin, time.Now())
			begin = time.Now()
			q, mine := p, Result{}
			q.Timeout = time.Minute
			rd, ok := open(q, &mine)
			if !ok {
				return errors.New(mine.Err)
			}
			w.road = rd
		}
		return nil
	})
}

// hangUp closes with a reset: nothing is left in TIME_WAIT, which would use up the ports.
func (w *worker) hangUp() {
	if t, ok := w.Conn.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	w.Close()
}

// idle holds connections after one answer each.
func idle(p Probe, more emit) Result {
	return gather(p, more, func(p Probe, w *worker) error {
		buf := make([]byte, 512)
		if _, err := w.Write(p.Data); err != nil {
			return err
		}
		length, err := answer(w.br)
		if err == nil {
			err = w.discard(length, buf)
		}
		if err != nil {
			return err
		}
		w.up()
		for !w.window.over(time.Now()) {
			time.Sleep(500 * time.Millisecond) // thousands that look every few milliseconds would be the load
		}
		w.got = append(w.got, 0)
		return nil
	})
}
