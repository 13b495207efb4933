package proxy

import (
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// admit decides whether a new connection may make requests: a unix socket's peer
// must be the agent, and the agent must have room.
func (c *conn) admit() bool {
	if refused := c.stranger(); refused != nil {
		c.refuseConn(refused)
		return false
	}
	n := c.srv.snap.Load()
	if n == nil {
		c.agent.open.Add(1)
		return true // every request is refused until there is a policy
	}
	most := n.limits(c.agent.name).Connections
	if open := c.agent.open.Add(1); most > 0 && open > int64(most) {
		c.agent.open.Add(-1)
		c.refuseConn(limited("more connections than this agent's limit", time.Second))
		return false
	}
	return true
}

// stranger looks at a unix socket's peer.
func (c *conn) stranger() *refusal {
	if _, ok := c.nc.(*net.UnixConn); !ok {
		return nil
	}
	cred := c.peerCred()
	if cred == nil {
		return denied("the peer of this socket is unknown")
	}
	c.info.Peer = &Peer{PID: int(cred.Pid), UID: cred.Uid}
	n := c.srv.snap.Load()
	if n == nil {
		return &refusal{status: http.StatusServiceUnavailable, reason: "there is no policy yet"}
	}
	if a := n.agent(c.agent.name); a == nil || a.UID != cred.Uid {
		return denied("this socket is for another user")
	}
	return nil
}

func (c *conn) peerCred() (cred *unix.Ucred) {
	if c.raw == nil {
		return nil
	}
	_ = c.raw.Control(func(fd uintptr) {
		cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred
}

// maxTurnedAway is how many connections above the limit are told so at a time;
// further ones are just closed, so that nobody can make us hold more.
const maxTurnedAway = 32

// refuseConn answers the first request of a connection that is not admitted. It
// reads the head first: closing over unread bytes would take the answer along.
func (c *conn) refuseConn(r *refusal) {
	defer c.agent.over.Add(-1)
	if c.agent.over.Add(1) > maxTurnedAway {
		c.begin(&http.Request{})
		c.flow.event.Event, c.flow.event.Decision, c.flow.event.Reason = "limit", "deny", r.reason
		c.over()
		c.mu.Lock()
		c.resetLocked()
		c.mu.Unlock()
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	c.stage(stageEnd)
	req, err := c.readHead()
	if err != nil {
		req = &http.Request{}
	}
	r.close = true
	c.begin(req)
	c.refuse(r, nil)
	c.over()
	c.linger()
}
