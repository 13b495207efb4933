package proxy

import (
	"bytes"
	"encoding/json"

	"exitgate/policy"
)

// usage reads the tokens that a model's upstream says it used, from a copy of the
// answer on its way to the agent: the body is neither held back nor kept. Known are
// the Anthropic, OpenAI and Gemini shapes, in JSON and in server-sent events.
type usage struct {
	events bool
	line   []byte // events: the beginning of a line, at most maxUsageLine
	skip   bool   // events: the line is longer than that
	json   objectScan
	fed    int // json: bytes looked at
	sum    policy.Tokens
	seen   bool
}

// maxUsageLine bounds an event that is searched. Those that tell usage have some
// hundred bytes.
const maxUsageLine = 64 << 10

// maxTokens is beyond any real count; what claims more is not believed.
const maxTokens = 1 << 40

// maxUsageBody bounds how far into a JSON answer is looked. A model's whole answer
// has some hundred KiB; what goes on for longer is something else.
const maxUsageBody = 4 << 20

// newUsage is nil for a content type that tells no usage.
func newUsage(kind string) *usage {
	switch kind {
	case "text/event-stream":
		return &usage{events: true}
	case "application/json":
		return &usage{}
	}
	return nil
}

// feed reads the next bytes of the answer.
func (u *usage) feed(p []byte) {
	if u.events {
		u.feedEvents(p)
		return
	}
	if u.fed += len(p); u.fed > maxUsageBody {
		return
	}
	if object := u.json.feed(p); object != nil {
		var c counts
		if json.Unmarshal(object, &c) == nil {
			u.add(&c)
		}
	}
}

func (u *usage) feedEvents(p []byte) {
	for {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			u.keep(p)
			return
		}
		line := p[:end]
		if len(u.line) > 0 {
			u.keep(line)
			line = u.line
		}
		if !u.skip {
			u.event(line)
		}
		u.line, u.skip, p = u.line[:0], false, p[end+1:]
	}
}

func (u *usage) keep(p []byte) {
	if u.skip || len(u.line)+len(p) > maxUsageLine {
		u.line, u.skip = u.line[:0], true
		return
	}
	u.line = append(u.line, p...)
}

// event reads one line. A model's own text cannot pass for the key: within a JSON
// string its quotes are escaped.
func (u *usage) event(line []byte) {
	data, ok := bytes.CutPrefix(line, []byte("data:"))
	if !ok || !bytes.Contains(data, []byte(`"usage`)) {
		return
	}
	var e struct {
		Usage    *counts `json:"usage"`
		Metadata *counts `json:"usageMetadata"`
		Message  struct {
			Usage *counts `json:"usage"`
		} `json:"message"`
		Response struct {
			Usage *counts `json:"usage"`
		} `json:"response"`
	}
	if json.Unmarshal(data, &e) != nil {
		return
	}
	for _, c := range []*counts{e.Message.Usage, e.Usage, e.Response.Usage, e.Metadata} {
		if c != nil {
			u.add(c)
		}
	}
}

// counts are the fields of all three shapes; each answer has those of one.
type counts struct {
	Input         *int64 `json:"input_tokens"`
	Output        *int64 `json:"output_tokens"`
	CacheRead     *int64 `json:"cache_read_input_tokens"`
	CacheCreation *int64 `json:"cache_creation_input_tokens"`
	Prompt        *int64 `json:"prompt_tokens"`
	Completion    *int64 `json:"completion_tokens"`
	InputDetails  cached `json:"input_tokens_details"`
	PromptDetails cached `json:"prompt_tokens_details"`
	GeminiInput   *int64 `json:"promptTokenCount"`
	GeminiOutput  *int64 `json:"candidatesTokenCount"`
	GeminiCached  *int64 `json:"cachedContentTokenCount"`
}

type cached struct {
	Tokens *int64 `json:"cached_tokens"`
}

// add takes over what c tells. The counts of a stream are running totals, so a
// later one replaces an earlier one, and an aborted stream leaves the last.
func (u *usage) add(c *counts) {
	set := func(to *int64, from ...*int64) {
		for _, v := range from {
			if v != nil && *v >= 0 && *v <= maxTokens {
				*to, u.seen = *v, true
			}
		}
	}
	set(&u.sum.Input, c.Input, c.Prompt, c.GeminiInput)
	set(&u.sum.Output, c.Output, c.Completion, c.GeminiOutput)
	set(&u.sum.CacheRead, c.CacheRead, c.InputDetails.Tokens, c.PromptDetails.Tokens, c.GeminiCached)
	set(&u.sum.CacheCreation, c.CacheCreation)
}

// tokens is what was told, nil where nothing was.
func (u *usage) tokens() *policy.Tokens {
	if !u.seen {
		return nil
	}
	sum := u.sum
	return &sum
}

// objectScan finds the value of the key "usage" or "usageMetadata" in the outermost
// object of a JSON text that comes in pieces. It keeps nothing else.
type objectScan struct {
	depth   int
	text    bool // within a string
	escape  bool // after a backslash
	key     []byte
	keyed   bool // key is a whole string, its colon may come
	wanted  bool // the next value is the one
	capture []byte
}

// maxUsage bounds the object that is captured.
const maxUsage = 4 << 10

// feed returns the wanted object once its end has come.
func (s *objectScan) feed(p []byte) (object []byte) {
	for len(p) > 0 {
		if s.text {
			p = s.feedString(p)
			continue
		}
		if len(s.capture) == 0 {
			if p = p[plain(p):]; len(p) == 0 {
				break
			}
		}
		c := p[0]
		s.keep(p[:1])
		p = p[1:]
		switch c {
		case '"':
			s.text, s.key, s.keyed = true, s.key[:0], false
		case ':':
			s.wanted = s.depth == 1 && s.keyed && (string(s.key) == "usage" || string(s.key) == "usageMetadata")
		case '{', '[':
			s.depth++
			if s.wanted && c == '{' {
				s.capture = append(s.capture[:0], c)
			}
			s.wanted = false
		case '}', ']':
			if s.depth--; s.depth == 1 && len(s.capture) > 0 {
				object, s.capture = s.capture, nil
			}
		case ',':
			s.wanted = false
		}
	}
	return object
}

// plain is how many bytes stand before the next one with a meaning.
func plain(p []byte) int {
	for i, c := range p {
		if structure[c] {
			return i
		}
	}
	return len(p)
}

var structure = [256]bool{'"': true, ':': true, '{': true, '[': true, '}': true, ']': true, ',': true}

// feedString consumes up to the end of a string or of p.
func (s *objectScan) feedString(p []byte) []byte {
	n := 0
	switch {
	case s.escape:
		s.escape, n = false, 1
	default:
		n = bytes.IndexAny(p, `"\`)
		if n < 0 {
			n = len(p)
		} else if p[n] == '\\' {
			s.escape = true
			n++
		} else {
			s.text, s.keyed = false, true
			s.noteKey(p[:n])
			n++
			s.keep(p[:n])
			return p[n:]
		}
	}
	s.noteKey(p[:n])
	s.keep(p[:n])
	return p[n:]
}

// noteKey keeps the beginning of a string of the outermost object, which may be a key.
func (s *objectScan) noteKey(p []byte) {
	const longest = len("usageMetadata") + 1
	if s.depth == 1 {
		s.key = append(s.key, p[:min(len(p), longest-min(len(s.key), longest))]...)
	}
}

// keep adds to the object that is being captured; one too large is given up.
func (s *objectScan) keep(p []byte) {
	switch {
	case len(s.capture) == 0:
	case len(s.capture)+len(p) > maxUsage:
		s.capture = s.capture[:0]
	default:
		s.capture = append(s.capture, p...)
	}
}
