package policy

import (
	"net/netip"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"
)

// agentDraft is an agent with the places that cross checks point at.
type agentDraft struct {
	Agent
	nameAt, uidAt, listenAt, socketAt Position
	publish                           []port
}

const (
	defaultAgent       = "agent"
	defaultUID         = 1000
	defaultConnections = 512

	// denyMark is the ct mark by which the fence knows a refused flow, and an
	// agent's loopback mark is its uid: an agent of this uid would be let through.
	denyMark = 0x6167dead
)

var defaultListen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 8080)

// newAgent is an agent with every default.
func newAgent(at Position) agentDraft {
	return agentDraft{
		Agent:  Agent{Name: defaultAgent, UID: defaultUID, Listen: defaultListen, Loopback: LoopbackDeny, Limits: Limits{Connections: defaultConnections}, At: at},
		nameAt: at, uidAt: at, listenAt: at, socketAt: at,
	}
}

func (r *reader) agents(n *yaml.Node) []agentDraft {
	all := []agentDraft{}
	if r.list(n, "agents", func(v *yaml.Node) { all = append(all, r.agent(v)) }) && len(all) == 0 {
		r.fail(n, "remove the key for the one default agent, or name an agent", "agents is empty, so nobody could be let in")
	}
	return all
}

func (r *reader) agent(n *yaml.Node) agentDraft {
	a := newAgent(r.at(n))
	keys := []string{"name", "uid", "gid", "listen", "socket", "loopback", "publish", "limits"}
	r.object(n, "an agent", keys, []string{"name"}, func(key string, v *yaml.Node) {
		at := r.at(v)
		switch key {
		case "name":
			a.Name, a.nameAt = r.name(v, "agent name"), at
		case "uid":
			a.UID, a.uidAt = r.uid(v), at
		case "gid":
			if gid, ok := r.number(v, "gid", 0, 1<<32-2); ok {
				id := uint32(gid)
				a.GID = &id
			}
		case "listen":
			a.Listen, a.listenAt = r.listen(v), at
		case "socket":
			a.Socket, a.socketAt = r.socket(v), at
		case "loopback":
			if mode, ok := r.enum(v, "loopback", string(LoopbackDeny), string(LoopbackOwn)); ok {
				a.Loopback = Loopback(mode)
			}
		case "publish":
			a.publish = r.ports(v, "publish")
			a.Publish = numbers(a.publish)
		case "limits":
			a.Limits = r.limits(v)
		}
	})
	return a
}

func (r *reader) uid(n *yaml.Node) uint32 {
	if n.Value == "0" {
		r.fail(n, "write the agent's own uid, such as 1000", "uid 0 is root, which the fence cannot hold")
		return defaultUID
	}
	v, ok := r.number(n, "uid", 1, 1<<32-2) // 1<<32-1 is "no uid" to the kernel
	if v == denyMark {
		r.fail(n, "write another uid", "uid %d is kept for the fence's mark of refused flows", v)
	}
	if !ok {
		return defaultUID
	}
	return uint32(v)
}

// listen reads the agent's one address. Only 127.0.0.1 and ::1: agents are told
// apart by port, and other loopback addresses are in nobody's NO_PROXY.
func (r *reader) listen(n *yaml.Node) netip.AddrPort {
	s, ok := r.raw(n, "listen")
	if !ok {
		return defaultListen
	}
	listen, err := netip.ParseAddrPort(s)
	loopback := err == nil && (listen.Addr() == netip.IPv6Loopback() || listen.Addr() == defaultListen.Addr())
	switch {
	case err == nil && listen.Port() == 0:
		r.fail(n, "write a port from 1 to 65535", "listen %s has no port", quoted(s))
	case loopback:
		return listen
	default:
		r.fail(n, "write "+loopbackForm(s)+": the agent reaches its listener over loopback only", "listen is %s", quoted(s))
	}
	return defaultListen
}

// loopbackForm is the nearest acceptable spelling of a listen address.
func loopbackForm(s string) string {
	p := s[strings.LastIndexByte(s, ':')+1:]
	if len(p) > 5 || strings.Trim(p, "0123456789") != "" || p == "" {
		p = "8080"
	}
	if strings.HasPrefix(s, "[") {
		return "[::1]:" + p
	}
	return "127.0.0.1:" + p
}

// maxSocket is what sun_path holds beside its final NUL (unix(7)).
const maxSocket = 107

func (r *reader) socket(n *yaml.Node) string {
	s, ok := r.str(n, "socket")
	switch {
	case !ok:
		return ""
	case !absolute(s):
		r.fail(n, "write an absolute path without dot segments, such as /run/exitgate/claude.sock", "socket is %s", quoted(s))
	case len(s) > maxSocket:
		r.fail(n, "write a shorter path", "socket has %d bytes, of at most %d", len(s), maxSocket)
	}
	return s
}

// absolute says that a file path is absolute and the shortest of its spellings.
func absolute(s string) bool {
	return path.IsAbs(s) && path.Clean(s) == s && s != "/" && !hasControl(s)
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || 0x7f <= c && c < 0xa0 })
}

func (r *reader) limits(n *yaml.Node) Limits {
	l := Limits{Connections: defaultConnections}
	r.object(n, "limits", []string{"connections", "requests_per_minute", "upload_bytes_per_hour", "body_bytes"}, nil, func(key string, v *yaml.Node) {
		switch key {
		case "connections":
			if c, ok := r.number(v, key, 1, 1_000_000); ok {
				l.Connections = int(c)
			}
		case "requests_per_minute":
			c, _ := r.number(v, key, 0, 1_000_000_000)
			l.RequestsPerMinute = int(c)
		case "upload_bytes_per_hour":
			l.UploadBytesPerHour, _ = r.number(v, key, 0, 1<<60)
		case "body_bytes":
			l.BodyBytes, _ = r.number(v, key, 0, 1<<60)
		}
	})
	return l
}
