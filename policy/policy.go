// Package policy is exitgate's language of permissions: what each agent may
// reach, by which road, with which credential.
//
//	p, err := policy.Load("policy.yaml", data) // err is policy.Errors: all mistakes at once, with line and mend
//	d := p.Decide(policy.Request{Agent: "claude", Road: policy.RoadConnect, Host: "pypi.org", Port: 443, Now: now})
//	if !d.Allow {
//		reply(d.Message())
//	}
//
// A *Policy is immutable after Load and safe for concurrent use. Decide is the
// one function that enforcement, explanation and tests ask; Diff tells what a
// change widens; Digest names a policy by its meaning, not by its spelling.
//
// The package is pure: it opens no file and no socket, reads no clock and no
// environment (time, data and inherited variables are parameters), resolves no
// name, judges no resolved address and never sees a credential's value except
// as the list of values Environ keeps out of an agent's environment.
package policy

import (
	"net/netip"
	"time"
)

// MaxSize is the largest policy Load reads, in bytes.
const MaxSize = 8 << 20

// Policy is a loaded policy. It is immutable.
type Policy struct {
	File        string
	Presets     []string
	Agents      []Agent
	Credentials []Credential
	Routes      []Route
	Egress      []Egress
	Root        []RootHost
	// RootLoopback and RootInbound are TCP ports, ascending.
	RootLoopback []uint16
	RootInbound  []uint16
	DNS          DNS

	index  index
	digest string
	source []byte
}

// Agent is one untrusted uid and the one listener it can reach.
type Agent struct {
	Name     string
	UID      uint32
	GID      *uint32 // nil: the uid's primary group, else the uid
	Listen   netip.AddrPort
	Socket   string // "" : none
	Loopback Loopback
	Publish  []uint16
	Limits   Limits
	At       Position
}

// Loopback says what an agent may reach on the loopback interface beside its listener.
type Loopback string

const (
	LoopbackDeny Loopback = "deny" // nothing
	LoopbackOwn  Loopback = "own"  // TCP listeners of its own uid on 127.0.0.1 and ::1
)

// Limits bound one agent's use of the proxy. Zero means no limit, except that
// Connections is never zero.
type Limits struct {
	Connections        int // concurrent
	RequestsPerMinute  int
	UploadBytesPerHour int64 // per sliding hour
	BodyBytes          int64 // of one request
}

// Credential names a secret and how it is sent. Its value is never here.
type Credential struct {
	Name    string
	From    Source
	Kind    Kind
	Header  string // canonical form; "" for KindAnthropic, which chooses by the token
	Format  string // with one {}, or "basic:USER"; "" for KindAnthropic
	Refresh time.Duration
	At      Position
	Preset  string // the preset it came from, or ""
}

// Source says where a credential is read from: scheme file, fd, exec or env.
type Source struct{ Scheme, Value string }

// String is the source as it is written in a policy.
func (s Source) String() string { return s.Scheme + ":" + s.Value }

// Kind says how a credential is placed in a request.
type Kind string

const (
	KindHeader    Kind = "header"
	KindAnthropic Kind = "anthropic"
)

// What the two kinds of an Anthropic credential begin with: an OAuth token and an API key.
const (
	AnthropicToken = "sk-ant-oat"
	AnthropicKey   = "sk-ant-api"
)

// MinCredential is the length in bytes below which a credential cannot be told from other text in an answer, and is
// not used.
const MinCredential = 8

// Route is one path prefix of the listener, forwarded to one upstream.
type Route struct {
	Name       string
	Path       string // "/" or "/a/b", no trailing slash
	Upstream   Upstream
	Credential string // "" : none
	Allow      []Pattern
	Headers    []Header
	Expires    time.Time // zero: never; UTC
	Agents     []string  // nil: every agent; empty: none
	Env        []string
	Addresses  []netip.Prefix
	At         Position
}

// Upstream is where a route leads.
type Upstream struct {
	Scheme string // https, or http where the policy says plaintext: true
	Host   string // normal form, or an IP literal
	Port   uint16
	Base   string // "" or "/base", no trailing slash
}

// Header is a request header added to a route's requests: merged into a comma list, once.
type Header struct{ Name, Value string }

// Egress is one host that agents may reach through the forward proxy.
type Egress struct {
	Host      Host
	Ports     []uint16
	Methods   []string // of absolute-form plain http; empty: no plain http
	Addresses []netip.Prefix
	Required  bool
	Agents    []string  // nil: every agent; empty: none
	Expires   time.Time // zero: never; UTC
	At        Position
}

// RootHost is one host that root-owned processes may reach directly.
type RootHost struct {
	Host      Host
	Ports     []uint16
	Addresses []netip.Prefix
	Expires   time.Time // zero: never; UTC
	Required  bool
	At        Position
}

// DNS names the servers the resolver asks; none: those of the system.
type DNS struct{ Servers []netip.AddrPort }

// Agent returns the agent of that name, the first one for "", nil for an unknown name.
func (p *Policy) Agent(name string) *Agent {
	for i := range p.Agents {
		if name == "" || p.Agents[i].Name == name {
			return &p.Agents[i]
		}
	}
	return nil
}

// Credential returns the credential of that name, or nil.
func (p *Policy) Credential(name string) *Credential {
	for i := range p.Credentials {
		if p.Credentials[i].Name == name {
			return &p.Credentials[i]
		}
	}
	return nil
}

// Digest names the policy's meaning: "sha256:" and the hex of a hash over its
// canonical form. Comments, positions, the order of keys and the spelling of
// hosts and paths do not change it.
func (p *Policy) Digest() string { return p.digest }

// Source returns the bytes the policy was loaded from; they must not be changed.
func (p *Policy) Source() []byte { return p.source }
