package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"exitgate/integration/rig"

	"golang.org/x/sys/unix"
)

// way is one of the ways out that ask nobody.
type way struct {
	name, what string
	late       bool // the kernel reports success to a ping socket of IPv6 although nothing leaves; the agent waits in vain
}

var directWays = []way{
	{name: "tcp4", what: "TCP to " + public4},
	{name: "tcp6", what: "TCP to " + public6},
	{name: "upstream", what: "TCP to the API's own address"},
	{name: "udp", what: "UDP to " + public4},
	{name: "dns", what: "DNS, the box's own resolver"},
	{name: "dnstcp", what: "DNS over TCP"},
	{name: "ping4", what: "ping, IPv4"},
	{name: "ping6", what: "ping, IPv6", late: true},
	{name: "neighbour4", what: "root's service on 127.0.0.1"},
	{name: "neighbour6", what: "root's service on ::1"},
}

// chapter closes the one before, and opens the one that the script paused for.
func (d *demo) chapter(what string) error {
	s := d.screen
	switch what {
	case "secrets":
		s.step("The agent looks for a credential")
		s.say("PID 1 holds one, from a file that only root can read. The agent dumps its environment and all it can read in /proc.")
	case "stream":
		d.tellSecrets()
		s.step("It streams an answer from the API, by its listener")
		s.say("It sends a placeholder; the proxy puts the real credential in its place, and the upstream says what arrived.")
	case "connect":
		d.tellStream()
		s.step("It uses HTTPS_PROXY for an allowed host, and for another")
	case "direct":
		d.tellConnect()
		s.step("It tries every way out that asks nobody")
		s.say("Each of these worked just now in a box without exitgate.")
		return neighbours(d.box)
	case "revoke":
		d.tellDirect()
		s.step("The operator takes a host back while a connection to it is busy")
		s.say("The policy file loses files.example.com, PID 1 gets SIGHUP.")
	}
	return nil
}

func (d *demo) tellSecrets() {
	s := d.screen
	identity := strings.Fields(d.dumps["identity"])
	s.quote(strings.Join(identity, " "))
	powerless := strings.Count(d.dumps["identity"], "0000000000000000") == 5 && strings.Contains(d.dumps["identity"], "uid=1000")
	s.check(powerless, "its identity", "uid 1000", "uid 1000, no capability, in no set")
	env := d.dumps["environment"]
	placeholder := strings.Contains(env, "ANTHROPIC_AUTH_TOKEN=") && strings.Contains(env, "ANTHROPIC_BASE_URL=http://127.0.0.1:8080")
	s.check(placeholder && !strings.Contains(env, credential), "credential in its environment", "none", found(env))
	proc := d.dumps["processes"]
	s.check(strings.Contains(proc, "exitgate") && !strings.Contains(proc, credential), "credential in /proc", "none", found(proc))
	for name, what := range map[string]string{"pid1": "PID 1's environment", "secret": "the secret's file"} {
		r := d.seen[name]
		s.check(r.Errno == "EACCES" || r.Errno == "EPERM" || r.Errno == "ENOENT" && name == "secret", "reading "+what, "refused", r.Errno)
	}
}

func found(text string) string {
	if strings.Contains(text, credential) {
		return "THE CREDENTIAL"
	}
	return fmt.Sprintf("not in %d bytes", len(text))
}

func (d *demo) tellStream() {
	s, r := d.screen, d.seen["stream"]
	for i, p := range r.parts {
		s.quote(fmt.Sprintf("after %s: %s", ms(p.At.Sub(r.parts[0].At)), p.Data))
		if i == 4 {
			break
		}
	}
	spread := time.Duration(0)
	if n := len(r.parts); n > 0 {
		spread = r.parts[n-1].At.Sub(r.parts[0].At)
	}
	s.check(r.Status == 200 && len(r.parts) == 5 && spread > 400*time.Millisecond, "events as they are sent", "streamed", fmt.Sprintf("%d events over %s", len(r.parts), ms(spread)))
	arrived, sent := d.authorization()
	s.check(arrived == "Bearer "+credential && !sent, "the upstream received", "the real", strings.Replace(arrived, credential, credential[:17]+"...", 1))
	refused := d.seen["delete"]
	s.quote(message(refused.Data))
	s.check(refused.Status == 403, "DELETE /v1/files", "refused", fmt.Sprint(refused.Status))
}

// authorization is the header that the API received, and whether the agent's placeholder arrived anywhere in the request.
func (d *demo) authorization() (header string, placeholder bool) {
	for _, req := range d.api.Seen() {
		if req.Method == "POST" {
			header = strings.Join(req.Header.Values("Authorization"), " AND ")
		}
	}
	for line := range strings.Lines(d.dumps["environment"]) {
		if token, ok := strings.CutPrefix(strings.TrimSpace(line), "ANTHROPIC_AUTH_TOKEN="); ok && token != "" {
			for _, raw := range d.api.Raw() {
				placeholder = placeholder || strings.Contains(string(raw), token)
			}
		}
	}
	return header, placeholder
}

func (d *demo) tellConnect() {
	s := d.screen
	r := d.seen["connect"]
	s.check(r.OK() && r.Status == 200, "CONNECT registry.npmjs.org", "allowed", fmt.Sprintf("%d from the registry", r.Status))
	r = d.seen["telemetry"]
	s.quote(message(r.Data))
	s.check(r.Status == 403 && d.world.DNS.Count("telemetry.example.com") == 0, "CONNECT telemetry.example.com", "refused", fmt.Sprintf("%d, and not even looked up", r.Status))
}

func (d *demo) tellDirect() {
	for _, w := range directWays {
		r := d.seen[w.name]
		ok := !r.OK() && (w.late || r.Elapsed < 200*time.Millisecond)
		seen := fmt.Sprintf("%s after %s", r.Errno, ms(r.Elapsed))
		if r.OK() {
			seen = "IT WORKS"
		}
		d.screen.check(ok, w.what, "refused", seen)
	}
	leaks := d.box.Capture().Except(func(f rig.Flow) bool {
		return f.Proto == unix.IPPROTO_TCP && f.Port == 443 && f.Dst != netip.MustParseAddr(public4) && f.Dst != netip.MustParseAddr(public6) ||
			f.Proto == unix.IPPROTO_UDP && f.Port == 53 && (f.Dst == d.world.DNS.Addr4 || f.Dst == d.world.DNS.Addr6)
	})
	asked := d.world.DNS.Count(tunnelled) - d.looked
	d.screen.check(len(leaks) == 0 && asked == 0, "packets that left for these", "none", fmt.Sprintf("%d flows %s", len(leaks), strings.Join(leaks, ", ")))
}

func (d *demo) tellRevocation() {
	s := d.screen
	cut := d.seen["revoked"]
	took := cut.At.Sub(d.revoked)
	s.check(!cut.OK() && took < time.Second, "the connection to files.example.com", "cut", fmt.Sprintf("%s %s after SIGHUP", cut.Errno, ms(took)))
	kept := d.seen["kept"]
	s.check(kept.OK(), "the connection to the registry", "goes on", fmt.Sprintf("%s, %d requests", outcomeWord(kept), kept.Count))
	again := d.seen["again"]
	s.quote(message(again.Data))
	s.check(again.Status == 403, "CONNECT files.example.com", "refused", fmt.Sprint(again.Status))
}

func outcomeWord(o outcome) string {
	if o.OK() {
		return "unharmed"
	}
	return o.String()
}

// message is the text of a refusal.
func message(body []byte) string {
	var e struct{ Error struct{ Message string } }
	if json.Unmarshal(body, &e) != nil || e.Error.Message == "" {
		return string(body)
	}
	return e.Error.Message
}
