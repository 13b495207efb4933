package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestManifest: doctor finds nothing in the pod that we ship, and each weakness that is put into it.
func TestManifest(t *testing.T) {
	const shipped = "../../integration/deploy/kubernetes/pod.yaml"
	text, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	good := string(text)
	at := strings.Index(good, "    - name: agent\n      image: agent")
	if at < 0 {
		t.Fatalf("%s has no container agent", shipped)
	}
	look := func(t *testing.T, manifest string) []finding {
		t.Helper()
		file := filepath.Join(t.TempDir(), "pod.yaml")
		if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := checkManifest(file)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	indented := "apiVersion: apps/v1\nkind: Deployment\nspec:\n  template:\n    " + strings.ReplaceAll(good, "\n", "\n    ")
	cron := "apiVersion: batch/v1\nkind: CronJob\nspec:\n  jobTemplate:\n    " + strings.ReplaceAll(indented, "\n", "\n    ")
	for _, manifest := range []string{good, indented, cron, "apiVersion: v1\nkind: Namespace\n---\n" + good} {
		if all := look(t, manifest); len(all) != 1 || all[0].Level != "ok" {
			t.Errorf("the shipped pod: %+v", all)
		}
	}
	for _, c := range []struct{ old, new, level, says string }{
		{"runAsNonRoot: true", "runAsNonRoot: false", "high", "container agent may run as root"},
		{"runAsUser: 1000", "runAsUser: 0", "high", "container agent may run as root"},
		{"privileged: false", "privileged: true", "high", "container agent is privileged"},
		{"allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "high", "container agent may gain rights"},
		{"drop: [ALL]", "drop: [NET_RAW]", "high", "container agent holds capabilities"},
		{"drop: [ALL]", "{drop: [ALL], add: [NET_ADMIN]}", "high", "container agent holds capabilities"},
		{"{name: tmp, mountPath: /tmp}", "{name: credentials, mountPath: /tmp}", "high", "container agent mounts the secret credentials"},
		{"{name: HTTP_PROXY, value: ", "{name: KEY, valueFrom: {secretKeyRef: {name: a, key: b}}, x: ", "high", "container agent holds a secret in its variable KEY"},
		{"      stdin: true\n", "      envFrom: [{secretRef: {name: a}}]\n", "high", "container agent holds a secret in its environment"},
		{"- name: tmp\n      emptyDir: {sizeLimit: 1Gi}", "- name: tmp\n      hostPath: {path: /run}", "warn", "container agent mounts tmp of the node"},
	} {
		changed := good[:at] + strings.Replace(good[at:], c.old, c.new, 1)
		if strings.Contains(c.new, "{drop") {
			changed = good[:at] + strings.Replace(good[at:], "capabilities:\n          drop: [ALL]", "capabilities: "+c.new, 1)
		}
		wantFinding(t, look(t, changed), c.level, c.says)
	}
	for _, c := range []struct{ old, new, level, says string }{
		{"automountServiceAccountToken: false", "automountServiceAccountToken: true", "high", "token is mounted"},
		{"hostNetwork: false", "hostNetwork: true", "high", "node's own network"},
		{"hostPID: false", "hostPID: true", "high", "node's processes"},
		{"  securityContext:\n", "  securityContext:\n    fsGroup: 1000\n", "high", "fsGroup"},
		{"image: exitgate\n", "image: other\n", "high", "no container of the pod runs exitgate"},
		{"      restartPolicy: Always\n", "", "warn", "could start before the fence"},
	} {
		wantFinding(t, look(t, strings.Replace(good, c.old, c.new, 1)), c.level, c.says)
	}
	for _, bad := range []string{"kind: Secret\n", "\t"} {
		file := filepath.Join(t.TempDir(), "bad.yaml")
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if all, err := checkManifest(file); err == nil {
			t.Errorf("%q: %+v; want an error", bad, all)
		}
	}
}

func wantFinding(t *testing.T, all []finding, level, says string) {
	t.Helper()
	for _, f := range all {
		if f.Level == level && strings.Contains(f.What, says) && f.Mend != "" {
			return
		}
	}
	t.Errorf("found %+v; want %s: %s", all, level, says)
}
