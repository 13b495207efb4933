package wire

import (
	"bytes"
	"encoding/binary"
	"errors"

	"exitgate/policy"
)

// appendDraft adds a whole frame, with its length.
func appendDraft(b []byte, d *Draft) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(1+4+len(d.File)+len(d.Text)))
	b = append(b, draftTag)
	b = binary.BigEndian.AppendUint32(b, uint32(len(d.File)))
	return append(append(b, d.File...), d.Text...)
}

// parseDraft reads the body of a frame after its tag, of which nothing is kept.
func parseDraft(body []byte) (*Draft, error) {
	if len(body) < 4 || uint64(binary.BigEndian.Uint32(body)) > uint64(len(body)-4) {
		return nil, errors.New("a frame is not a draft")
	}
	n := int(binary.BigEndian.Uint32(body))
	return &Draft{File: string(body[4 : 4+n]), Text: bytes.Clone(body[4+n:])}, nil
}

// reading is a policy that is being loaded. 10,000 hosts take 50 ms, during which other messages are obeyed.
type reading struct {
	done   chan struct{}
	policy *policy.Policy
	err    error
}

func read(d *Draft) *reading {
	r := &reading{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.policy, r.err = policy.Load(d.File, d.Text)
	}()
	return r
}

// result waits for the end of it.
func (r *reading) result() (*policy.Policy, error) {
	if r == nil {
		return nil, errors.New("no policy came before the configuration")
	}
	<-r.done
	return r.policy, r.err
}
