package policy

import "testing"

func mustLoad(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Load("policy.yaml", []byte(text))
	if err != nil {
		t.Fatalf("load:\n%v", err)
	}
	return p
}
