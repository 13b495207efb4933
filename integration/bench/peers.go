package main

import (
	"fmt"
	"os"
	"strings"

	"exitgate/integration/rig"
)

// peer is another proxy, configured as somebody would who wants of it what exitgate does here: verified TLS, connections that are kept, a
// credential that is put on. None of them writes an access log.
type peer struct {
	name    string
	program string // absent: the peer is left out
	kinds   kind
	command string                             // for /bin/sh; ends in the background
	files   func(s *stage) map[string]rig.File // its configuration
	address string
}

const caBundle = "/etc/ssl/certs/ca-certificates.crt"

var goPeer = peer{name: "Go ReverseProxy", program: "/bin/sh", kinds: reverse | connect | forward, address: listener,
	command: rig.ProberPath + " reverse " + listener + " https://" + upstreamName + " 'Bearer " + credential + "'"}

// byHandPeer checks nothing: what no proxy in Go goes below.
var byHandPeer = peer{name: "Go by hand", program: "/bin/sh", kinds: reverse, address: listener,
	command: rig.ProberPath + " byhand " + listener + " " + upstreamName + ":443 'Bearer " + credential + "'"}

var debianPeers = []peer{
	{name: "nginx", program: "/usr/sbin/nginx", kinds: reverse, address: listener,
		command: "/usr/sbin/nginx -p /run -c /etc/nginx.conf", files: func(s *stage) map[string]rig.File {
			return map[string]rig.File{"/etc/nginx.conf": {Data: fill(nginxConf, s)}}
		}},
	{name: "haproxy", program: "/usr/sbin/haproxy", kinds: reverse, address: listener,
		command: "/usr/sbin/haproxy -f /etc/haproxy.cfg", files: func(s *stage) map[string]rig.File {
			return map[string]rig.File{"/etc/haproxy.cfg": {Data: fill(haproxyConf, s)}}
		}},
	{name: "Apache", program: "/usr/sbin/apache2", kinds: reverse | connect, address: listener,
		command: "/usr/sbin/apache2 -D FOREGROUND -f /etc/apache.conf", files: func(s *stage) map[string]rig.File {
			return map[string]rig.File{"/etc/apache.conf": {Data: fill(apacheConf, s)}}
		}},
	{name: "squid", program: "/usr/sbin/squid", kinds: connect | forward, address: listener,
		command: "/usr/sbin/squid -N -f /etc/squid.conf", files: func(s *stage) map[string]rig.File {
			return map[string]rig.File{"/etc/squid.conf": {Data: fill(squidConf, s)}}
		}},
	{name: "tinyproxy", program: "/usr/bin/tinyproxy", kinds: connect, address: listener,
		command: "/usr/bin/tinyproxy -d -c /etc/tinyproxy.conf", files: func(s *stage) map[string]rig.File {
			return map[string]rig.File{"/etc/tinyproxy.conf": {Data: fill(tinyproxyConf, s)}}
		}},
}

func fill(conf string, s *stage) string {
	return strings.NewReplacer("@ADDR@", s.up.addr.String(), "@NAME@", upstreamName, "@SECRET@", credential, "@CA@", caBundle).Replace(conf)
}

// peers are those of a kind: the bare Go proxies, and with -peers what is installed of the others.
func (b *bench) peers(want kind) (starts []func(*bench, *stage) (*candidate, error)) {
	all := []peer{goPeer, byHandPeer}
	if b.withPeers {
		all = append(all, debianPeers...)
	}
	for _, p := range all {
		if p.kinds&want == 0 {
			continue
		}
		if _, err := os.Stat(p.program); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s is left out: %v\n", p.name, err)
			continue
		}
		starts = append(starts, p.start)
	}
	return starts
}

// start runs the peer in a box whose PID 1 becomes the load generator; with the box it ends.
func (p peer) start(_ *bench, s *stage) (*candidate, error) {
	cfg := rig.Config{World: s.world, Hosts: s.hosts(), Plain: true, Serve: true, Uncaptured: true,
		Args: []string{"/bin/sh", "-c", p.command + " >&2 </dev/null & exec " + strings.Join(serveOnly, " ")}}
	if p.files != nil {
		cfg.Files = p.files(s)
	}
	box, err := rig.Start(cfg)
	return &candidate{name: p.name, box: box, address: p.address, kinds: p.kinds}, err
}

const nginxConf = `
daemon off; user root; pid /run/nginx.pid; error_log stderr error; worker_processes auto; worker_rlimit_nofile 20000;
events { worker_connections 10000; }
http {
  access_log off; client_body_temp_path /run/b; proxy_temp_path /run/p; fastcgi_temp_path /run/f; uwsgi_temp_path /run/u; scgi_temp_path /run/s;
  keepalive_requests 100000000; keepalive_timeout 1h; client_max_body_size 0;
  upstream api { server @ADDR@:443; keepalive 1024; keepalive_requests 100000000; keepalive_timeout 1h; }
  server {
    listen 127.0.0.1:8080 backlog=4096;
    location / {
      proxy_pass https://api; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host @NAME@;
      proxy_set_header Authorization "Bearer @SECRET@";
      proxy_ssl_verify on; proxy_ssl_trusted_certificate @CA@; proxy_ssl_name @NAME@; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;
      proxy_buffering off; proxy_request_buffering off; proxy_buffer_size 16k; proxy_buffers 16 16k; proxy_busy_buffers_size 32k; proxy_read_timeout 1h;
    }
  }
}
`

const haproxyConf = `
global
  maxconn 9000
  ulimit-n 20000
defaults
  mode http
  option http-no-delay
  timeout connect 10s
  timeout client 1h
  timeout server 1h
frontend in
  bind 127.0.0.1:8080 backlog 4096
  maxconn 9000
  http-request set-header Authorization "Bearer @SECRET@"
  http-request set-header Host @NAME@
  default_backend api
backend api
  http-reuse always
  server api @ADDR@:443 ssl verify required ca-file @CA@ sni str(@NAME@) verifyhost @NAME@ alpn http/1.1
`

const apacheConf = `
ServerRoot /usr/lib/apache2
ServerName localhost
PidFile /run/apache.pid
DefaultRuntimeDir /run
ErrorLog /dev/null
Listen 127.0.0.1:8080
User nobody
Group nogroup
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule headers_module modules/mod_headers.so
LoadModule socache_shmcb_module modules/mod_socache_shmcb.so
LoadModule ssl_module modules/mod_ssl.so
LoadModule proxy_module modules/mod_proxy.so
LoadModule proxy_http_module modules/mod_proxy_http.so
LoadModule proxy_connect_module modules/mod_proxy_connect.so
StartServers 20
MinSpareThreads 64
MaxSpareThreads 1536
AsyncRequestWorkerFactor 8
ServerLimit 24
ThreadLimit 64
ThreadsPerChild 64
MaxRequestWorkers 1536
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 3600
Timeout 3600
LimitRequestBody 0
SSLProxyEngine on
SSLProxyVerify require
SSLProxyCACertificateFile @CA@
SSLProxyCheckPeerName on
SSLProxyProtocol TLSv1.3
ProxyRequests On
AllowCONNECT 443 9000
RequestHeader set Authorization "Bearer @SECRET@"
ProxyPass "/small" "https://@NAME@/small" keepalive=On flushpackets=on
ProxyPass "/bytes" "https://@NAME@/bytes" keepalive=On flushpackets=on
ProxyPass "/events" "https://@NAME@/events" keepalive=On flushpackets=on
ProxyPass "/upload" "https://@NAME@/upload" keepalive=On flushpackets=on
`

const squidConf = `
http_port 127.0.0.1:8080
http_access allow all
cache deny all
access_log none
cache_log /dev/null
cache_store_log none
pid_filename none
cache_effective_user nobody
cache_mem 8 MB
coredump_dir /tmp
forwarded_for delete
via off
max_filedescriptors 20000
shutdown_lifetime 0 seconds
netdb_filename none
pinger_enable off
client_idle_pconn_timeout 1 hour
`

const tinyproxyConf = `
User nobody
Group nogroup
Port 8080
Listen 127.0.0.1
Timeout 3600
MaxClients 2000
LogLevel Critical
ConnectPort 443
ConnectPort 9000
`
