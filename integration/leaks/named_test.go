package leaks

import (
	"testing"

	"exitgate/integration/rig/rigtest"
)

// shown are cases that other packages show, by the tests that do.
var shown = []struct{ group, name, test string }{
	{"A", "anthropic-* and x-claude-code-* byte for byte, duplicates and order", "proxy.TestRequestPassesAsItCame"},
	{"A", "forms of a credential: Bearer, raw, Basic, either Anthropic kind", "proxy.TestCredentialForms"},
	{"B", "queries that do not parse, ?a=b;c=d", "proxy.TestRequestPassesAsItCame"},
	{"B", "requests that two parsers read differently", "head.FuzzRead"},
	{"C", "Expect: 100-continue, accepted, refused, left alone", "proxy.TestExpectContinue"},
	{"C", "slow heads, slow bodies, idle clients", "proxy.TestSlowClients"},
	{"C", "bodies without a length, empty ones, 32 MB", "proxy.TestBodies"},
	{"C", "memory with large bodies", "proxy.TestLargeBodiesFlat"},
	{"C", "early answer with an unread body", "proxy.TestEarlyAnswer"},
	{"C", "keep-alive after a refusal", "proxy.TestAfterRefusal"},
	{"C", "a stale connection to the upstream", "proxy.TestStaleConnection"},
	{"D", "every channel with every encoding, by HTTP/2 as well", "proxy.TestReflection"},
	{"D", "the search against an oracle", "scrub.FuzzScrub"},
	{"D", "what is held back does not depend on the secret", "scrub.TestEmissionDoesNotDependOnSecret"},
	{"E", "certificates: expired, another name, unknown authority; refused, reset, silent", "proxy.TestUpstreamFails"},
	{"E", "the same under the binary", "integration.TestUpstreamFaults"},
	{"E", "a panic in a handler", "proxy.TestPanicSaysNothing"},
	{"E", "every way to print the types that hold a secret", "proxy.TestSecretsPrintAsRedacted"},
	{"E", "the same in PID 1", "secrets.TestNothingPrintsAValue"},
	{"F", "ptrace, process_vm_readv, pidfd_getfd, perf, userfaultfd, setuid programs, namespaces", "attack.TestPackets"},
	{"F", "who could read or replace a credential's file", "secrets.TestWhoCouldReadIt"},
	{"F", "a file swapped under way", "secrets.TestSwapRace"},
	{"F", "descriptors of the agent", "supervise.TestAgentStatus"},
	{"F", "dumpable, core limit of the proxy", "supervise.TestProxyUndumpable"},
	{"F", "the port while the proxy is dead", "integration.TestProxyKilledUnderLoad"},
	{"F", "a proxy that was taken over", "attack.TestTakeover"},
	{"G", "sockets handed over, closed at once, orphaned: pid and exe of the audit", "caller.TestFind"},
	{"G", "several agents", "integration.TestAgentsAreApart"},
	{"H", "a file written in place, secrets volumes", "secrets.TestWrittenInPlace"},
	{"H", "a symlinked secrets volume", "secrets.TestSecretsVolume"},
	{"H", "exec: hangs", "secrets.TestHelperThatHangs"},
	{"H", "exec: one fetch for a hundred requests", "secrets.TestRefreshIsOneFetch"},
	{"H", "exec: refreshed at three quarters", "secrets.TestRefreshAtThreeQuarters"},
	{"H", "requests under way keep the old one, and show neither", "proxy.TestRotationInFlight"},
	{"H", "exec: the program, the 401 and the refusal without a value, in the built binary", "integration.TestHelpers"},
	{"I", "latency per event", "proxy.TestEventsFlow"},
	{"I", "silence, first byte", "proxy.TestSilence"},
	{"I", "the agent leaves: the upstream notices", "proxy.TestAgentLeaves"},
	{"I", "an answer cut short does not look whole", "proxy.TestTruncated"},
	{"I", "the same over HTTP/2", "proxy.TestTruncatedHTTP2"},
	{"I", "usage of streams that broke off, in audit and counters", "proxy.TestUsageOfAborted"},
	{"I", "a slow reader, a thousand streams", "proxy.TestManyStreams"},
	{"I", "usage in every shape", "proxy.TestUsage"},
	{"J", "CONNECT and forward", "attack.TestProxy"},
	{"K", "mistakes in a policy", "policy.TestBad"},
	{"K", "agent before the proxy", "integration.TestAgentNeverBeforeTheFence"},
	{"K", "real clients with a placeholder", "clients.TestEveryPresetIsTried"},
}

// TestShownElsewhere completes the table: every test that it names must exist.
func TestShownElsewhere(t *testing.T) {
	tests := rigtest.Tests(t, "../..")
	for _, s := range shown {
		seen := map[bool]string{true: "exists", false: "does not exist"}[tests[s.test]]
		judge(t, row{s.group, s.name, "exists", seen, s.test})
	}
}
