package containers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"exitgate/integration/prober"
	"exitgate/integration/rig"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// cluster is what the README's kubectl commands send.
type cluster struct {
	pod    corev1.Pod
	policy corev1.ConfigMap
	secret corev1.Secret
}

// kubectl reads the README's commands, in the directory where they are run.
func kubectl(t testing.TB, dir string) (c cluster) {
	t.Helper()
	for line := range strings.Lines(blocks(t, "### kubectl", "sh")[0]) {
		words := strings.Fields(line)
		switch {
		case len(words) == 6 && slices.Equal(words[:4], []string{"kubectl", "create", "secret", "generic"}):
			key, file, _ := strings.Cut(strings.TrimPrefix(words[5], "--from-file="), "=")
			data, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			c.secret = corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: words[4]}, Data: map[string][]byte{key: data}}
		case len(words) == 4 && slices.Equal(words[:3], []string{"kubectl", "apply", "-k"}):
			built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(dir, words[3]))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range built.Resources() {
				text, err := r.AsYAML()
				if err == nil {
					into, known := map[string]any{"Pod": &c.pod, "ConfigMap": &c.policy}[r.GetKind()]
					if !known {
						t.Fatalf("a resource of kind %s", r.GetKind())
					}
					err = yaml.UnmarshalStrict(text, into)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		default:
			t.Fatalf("the README says %q, which this test cannot do", line)
		}
	}
	return c
}

// forPodman rewrites what podman 4.3 has no word for, and nothing else: an init container that goes on is an ordinary one to it; a
// Secret and an emptyDir are directories made here as the kubelet makes them.
func (c *cluster) forPodman(t testing.TB, dir string) []byte {
	t.Helper()
	gate := c.pod.Spec.InitContainers[0]
	gate.RestartPolicy = nil
	c.pod.Spec.Containers = append([]corev1.Container{gate}, c.pod.Spec.Containers...)
	c.pod.Spec.InitContainers = nil
	directory := corev1.HostPathDirectory
	for i, v := range c.pod.Spec.Volumes {
		to := filepath.Join(dir, "volume-"+v.Name)
		mode, files := os.FileMode(0o644), map[string][]byte{}
		switch {
		case v.Secret != nil:
			if v.Secret.SecretName != c.secret.Name {
				t.Fatalf("the pod's secret is %s, the README makes %s", v.Secret.SecretName, c.secret.Name)
			}
			mode, files = os.FileMode(*v.Secret.DefaultMode), c.secret.Data
		case v.ConfigMap != nil:
			if v.ConfigMap.Name != c.policy.Name {
				t.Fatalf("the pod's ConfigMap is %s, the base makes %s", v.ConfigMap.Name, c.policy.Name)
			}
			for name, text := range c.policy.Data {
				files[name] = []byte(text)
			}
			mode = os.FileMode(*v.ConfigMap.DefaultMode)
		}
		publish(t, to, mode, files)
		if v.EmptyDir != nil {
			if err := os.Chmod(to, 0o1777); err != nil {
				t.Fatal(err)
			}
		}
		c.pod.Spec.Volumes[i].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: to, Type: &directory}}
	}
	text, err := yaml.Marshal(c.pod)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// publish makes or changes a mounted ConfigMap or Secret; without files it is an emptyDir.
func publish(t testing.TB, dir string, mode os.FileMode, files map[string][]byte) {
	t.Helper()
	err := os.MkdirAll(dir, 0o755)
	if err == nil && len(files) > 0 {
		err = rig.PublishConfigMap(dir, mode, files)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestReadmeKubectl: the README's pod under podman kube play: fenced, reloaded when the ConfigMap changes, scraped, and with the
// environment that its policy gives an agent.
func TestReadmeKubectl(t *testing.T) {
	t.Parallel()
	e := needs(t, "podman")
	if err := buildImage(); err != nil {
		t.Fatal(err)
	}
	archive := "/run/rig/gate-image.tar"
	if _, err := needs(t, "docker").do("", "save", "-o", archive, gateImage); err != nil {
		t.Fatal(err)
	}
	e.must(t, "load", "-i", archive)
	e.must(t, "tag", image, "agent:latest")
	dir := checkout(t)
	c := kubectl(t, dir)
	want := c.pod.Spec.Containers[0].Env
	policy := c.policy.Data["policy.yaml"]
	file := filepath.Join(dir, "pod.yaml")
	if err := os.WriteFile(file, c.forPodman(t, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"agent-exitgate", "agent-agent"} {
				o, _ := e.client(nil, "logs", name)
				t.Logf("%s: %v", name, o)
			}
		}
		if out, err := e.do("", "pod", "rm", "-f", "-t", "1", "agent"); err != nil {
			t.Errorf("%s %v", out, err)
		}
	})
	e.must(t, "kube", "play", file)
	gate := &container{engine: e, t: t, name: "agent-exitgate"}
	eventually(t, "the startup probe passes", func() bool { return gate.exec(c.pod.Spec.Containers[0].StartupProbe.Exec.Command...).code == 0 })
	if o := gate.exec(c.pod.Spec.Containers[0].LivenessProbe.Exec.Command...); o.code != 0 {
		t.Errorf("the liveness probe: %v", o)
	}
	var env []corev1.EnvVar
	o := gate.exec("/exitgate", "env", "--format", "k8s")
	if err := yaml.UnmarshalStrict([]byte(o.stdout), &env); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(env, want); diff != "" {
		t.Errorf("the manifest's env (+) is not what `exitgate env --format k8s` prints (-):\n%s", diff)
	}
	agent := &container{engine: e, t: t, name: "agent-agent"}
	o, err := e.client(strings.NewReader("\n"), "exec", "-i", agent.name, "claude")
	if err != nil {
		t.Fatal(err)
	}
	wantClaude(t, o.stdout)
	address := e.must(t, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", e.must(t, "pod", "inspect", "--format", "{{.InfraContainerID}}", "agent"))
	if text := fetch(t, "http://"+address+":9090/metrics"); !strings.Contains(text, "exitgate_config_last_reload_successful 1") {
		t.Errorf("metrics: %s", text)
	}
	publish(t, filepath.Join(dir, "volume-policy"), 0o444, map[string][]byte{"policy.yaml": []byte(strings.Replace(policy, "[claude-code]", "[]", 1))})
	eventually(t, "the changed ConfigMap is in force", func() bool {
		o, err := e.client(strings.NewReader(lines([]prober.Probe{get("/v1/models")})), "exec", "-i", agent.name, "probe", "serve")
		return err == nil && o.code == 0 && results(t, o, 1)[0].Status == 403
	})
	var state struct{ Generation int }
	if err := json.Unmarshal([]byte(gate.exec("/exitgate", "status", "--json").stdout), &state); err != nil || state.Generation != 2 {
		t.Errorf("generation %d (%v); want 2", state.Generation, err)
	}
}
