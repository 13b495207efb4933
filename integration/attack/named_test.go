package attack

import (
	"testing"

	"exitgate/integration/rig/rigtest"
)

const module = "../.." // of the module, from this package's directory

// shown are cases that other packages have, by the test that shows each.
var shown = []struct{ family, name, test string }{
	{"L3/L4", "conntrack: root's 5-tuple used again", "firewall.TestHoleConntrackReuse"},
	{"L3/L4", "a refusal that carries data to a chosen source", "firewall.TestHoleRefusalToChosenSource"},
	{"L3/L4", "tcp fast open into a listener of root's", "firewall.TestHoleFastOpen"},
	{"L3/L4", "SYN cookies", "firewall.TestHoleSynCookies"},
	{"L3/L4", "simultaneous open between two agents", "firewall.TestHoleSimultaneousOpen"},
	{"L3/L4", "mid-stream packets of a revoked flow (loose pickup)", "firewall.TestRevocation"},
	{"L3/L4", "raw neighbour discovery with data", "firewall.TestHoleRawDiscovery"},
	{"L3/L4", "10,000 random flows against a model of the ruleset", "firewall.TestModel"},
	{"L3/L4", "a rule, or a set element, taken out", "firewall.TestEveryRuleMatters"},
	{"L3/L4", "conntrack table full", "chaos.TestChaos"},
	{"L3/L4", "32-bit system calls (socketcall)", "supervise.TestForeignCalls"},
	{"inside the box", "leaked descriptors", "supervise.TestAgentStatus"},
	{"inside the box", "environment with a secret", "integration.TestEnvironmentOfTheAgent"},
	{"inside the box", "LD_PRELOAD, PATH and the like into a credential helper", "secrets.TestHelperReally"},
	{"inside the box", "symlinks and directories that the agent may write, in the way of a credential", "secrets.TestWhoCouldReadIt"},
	{"inside the box", "a credential file swapped under way", "secrets.TestSwapRace"},
	{"inside the box", "core dump and /proc of the proxy", "supervise.TestProxyUndumpable"},
	{"inside the box", "the listener's port while the proxy is dead", "integration.TestProxyKilledUnderLoad"},
	{"inside the box", "a stranger on the listener's port", "firewall.TestHoleStrangerOnListenerPort"},
	{"inside the box", "another agent's listener", "integration.TestAgentsAreApart"},
	{"inside the box", "SIGSTOP of the proxy, fork bomb, memory and descriptors exhausted", "chaos.TestChaos"},
	{"inside the box", "inbound: unpublished ports, from outside", "integration.TestInbound"},
	{"inside the box", "keystrokes into another terminal", "supervise.TestTerminalInjection"},
	{"inside the box", "host's unix sockets (docker, D-Bus, ssh-agent), isolate", "integration.TestIsolateHasNoSocketOfTheHost"},
	{"dns", "Docker's embedded DNS with its DNAT", "firewall.TestDockerDNS"},
	{"dns", "the proxy's own words to a name server", "firewall.TestHoleProxyAsksNames"},
	{"dns", "refused names cause no packet", "resolver.TestRefusedNamesCauseNoPacket"},
	{"dns", "forged answers", "resolver.TestForgeriesAreIgnored"},
	{"resolution", "rotating pool", "resolver.TestRotationOfManyAddresses"},
	{"resolution", "address that a denied host shares", "resolver.TestSharedAddressIsHeldByEachName"},
	{"resolution", "address drops out while a flow is alive", "resolver.TestPinOutlivesTheLease"},
	{"resolution", "boot without DNS", "integration.TestResolverDeadAtStart"},
	{"resolution", "commit fails: no dial", "resolver.TestFailedCommitFailsTheDial"},
	{"reload", "host removed with live and pooled flows", "integration.TestReloadAddsAndRevokes"},
	{"reload", "streaming answer of a revoked route", "integration.TestRevokedRouteStream"},
	{"reload", "line rate during swaps", "integration.TestReloadHammer"},
	{"reload", "1,000 SIGHUPs", "integration.TestThousandHangups"},
	{"reload", "kill -9 of PID 1 and a new one over its table", "integration.TestRestartOverAnExistingTable"},
	{"proxy", "ClientHello without SNI, oversized, in fragments", "proxy.TestConnectHello"},
	{"proxy", "encrypted ClientHello", "hello.TestECH"},
	{"proxy", "slow clients", "proxy.TestSlowClients"},
	{"proxy", "pipelining and keep-alive host switch", "proxy.TestPipelining"},
	{"proxy", "credential reflected", "proxy.TestReflection"},
	{"proxy", "client's own credentials and proxy tokens", "proxy.TestClientCredentials"},
	{"proxy", "requests that two parsers read differently", "head.FuzzRead"},
	{"proxy", "tables of bad requests", "integration.TestBadRequests"},
	{"proxy", "panic in a handler", "proxy.TestPanicSaysNothing"},
	{"boot", "agent before the fence", "integration.TestAgentNeverBeforeTheFence"},
	{"boot", "SIGTERM while starting", "integration.TestSignalBeforeTheAgent"},
	{"boot", "SIGTERM and drain", "integration.TestSignalsAreForwarded"},
	{"boot", "zombies", "integration.TestOrphansAreReaped"},
	{"boot", "foreign tables are left alone", "integration.TestForeignChanges"},
	{"boot", "not as root", "integration.TestNotRoot"},
	{"boot", "under a container engine", "containers.TestDefaultNetwork"},
}

// unstaged are cases of which this machine, or any test, has no stage, and why.
var unstaged = []struct{ family, name, why string }{
	{"L3/L4", "conntrack helpers (ftp, sip)", "the kernel here has no such modules, and kernels since 6.0 assign none by themselves"},
	{"L3/L4", "AF_PACKET by root with NET_RAW", "a limit: it goes around every output chain; drop NET_RAW, as the documented flags do"},
	{"inside the box", "a socket that root hands over (SCM_RIGHTS)", "a limit: a socket is its maker's; exitgate hands none over (supervise.TestAgentStatus)"},
	{"inside the box", "sudo, su, newuidmap, pkexec, ping", "all are setuid or file-capability programs; the rows of those stand for them"},
	{"inside the box", "ssh-agent, gpg-agent, nscd, D-Bus sockets with mode 0666", "a limit: a pathname socket is a file, and is the image's; isolate hides them"},
	{"dns", "exfiltration in an allowed wildcard's subdomain", "a limit: the policy allows those names"},
	{"dns", "DoH at an allowed host", "a limit: inside an allowed tunnel the bytes are the agent's"},
	{"boot", "gVisor", "not to be had here: no network for its packages"},
	{"boot", "userns-remap", "unsupported, and told by doctor"},
}

// TestShownElsewhere completes the table: every test that it names must exist.
func TestShownElsewhere(t *testing.T) {
	tests := rigtest.Tests(t, module)
	for _, s := range shown {
		seen := "exists"
		if !tests[s.test] {
			seen = "does not exist"
		}
		judge(t, row{s.family, s.name, "-", "exists", seen, s.test})
	}
	for _, u := range unstaged {
		table.Add(row{u.family, u.name, "-", "not run", "not run", u.why}.line())
	}
}
