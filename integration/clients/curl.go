package main

import (
	"errors"
	"fmt"
	"strings"

	"exitgate/integration/rig"
)

const apiHost = "api.example.com"

// apiPolicy is a route of one's own, with a credential.
const apiPolicy = `version: 1
credentials:
  - name: api
    from: file:/run/secrets/api
routes:
  - name: api
    path: /api
    upstream: https://api.example.com
    credential: api
    allow: [GET /reflect, POST /reflect]
    env: ["API_URL={url}", "API_TOKEN={dummy}"]
egress:
  - host: files.example.com
`

const plainToken = "FAKE-clients-token-0123456789"

// shell runs a script in place of a command line.
func shell(script string) []string { return []string{"/bin/sh", "-ec", script} }

func curl() client {
	return client{
		name: "curl", title: "curl", program: "curl --version", presets: "none; a route or an egress entry of your own",
		needs: "nothing: it honours the proxy variables, which are set",
		modes: func(map[string]string) []mode {
			m := mode{policy: apiPolicy, secrets: map[string]string{"api": plainToken}, stand: curlStand, strict: true, judge: func(*scene) error { return nil }}
			route, upload, connect, refused, open := m, m, m, m, m
			route.name, route.dummy = "by a route", "API_TOKEN"
			route.argv = shell(`curl -fsS -H "Authorization: Bearer $API_TOKEN" "$API_URL/reflect"`)
			route.judge = func(s *scene) error { return s.sent(apiHost, "Authorization", "Bearer "+plainToken) }
			upload.name = "by a route, 2 MB with Expect: 100-continue"
			upload.argv = shell(`head -c 2000000 /dev/zero >body; curl -fsSv --data-binary @body -o answer "$API_URL/reflect"; wc -c answer`)
			upload.judge = judgeUpload
			connect.name = "by CONNECT"
			connect.argv = shell(`curl -fsS https://files.example.com/reflect`)
			connect.judge = func(s *scene) error { return s.sent("files.example.com", "Authorization", "") }
			refused.name, refused.denied = "by CONNECT, a host that is not allowed", []string{"attacker.example", "GET /"}
			refused.argv = shell(`curl -sS https://attacker.example/ && exit 1; curl -sS http://attacker.example/ | grep exitgate:`)
			open.name, open.open, open.wants, open.strict = "no fence", true, []string{"files.example.com", "attacker.example"}, false
			open.argv = shell(`curl -fsS https://files.example.com/reflect https://attacker.example/`)
			return []mode{route, upload, connect, refused, open}
		},
	}
}

func curlStand(s *scene) error {
	return errors.Join(s.serve(apiHost, rig.Server{H1: true}), s.serve("files.example.com", rig.Server{}))
}

func judgeUpload(s *scene) error {
	if !strings.Contains(s.out, "Expect: 100-continue") || !strings.Contains(s.out, "HTTP/1.1 100 Continue") {
		return fmt.Errorf("no 100-continue: %s", tail(s.out, 1000))
	}
	for _, seen := range s.upstreams[apiHost].Seen() {
		if seen.Header.Get("Content-Length") != "2000000" {
			return fmt.Errorf("a body of %s bytes arrived", seen.Header.Get("Content-Length"))
		}
	}
	return s.sent(apiHost, "Authorization", "Bearer "+plainToken)
}
