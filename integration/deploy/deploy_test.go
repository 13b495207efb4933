// Package deploy holds the files by which exitgate is run elsewhere: compose, Kubernetes, dev containers, GitHub Actions, systemd, and
// hooks for podman and runc.
//
//	kubectl apply -k integration/deploy/kubernetes
//	go test ./integration/deploy       # no root, no engine, no network
//
// Its tests read each file strictly, by the types of those who will read it: k8s.io/api after a real kustomize build, compose-go, systemd-analyze; GitHub's
// and the dev containers' formats, which have no types in Go, by structs that know no more than these files use.
//
// What it does not do: run them. integration/containers does.
package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"exitgate/integration/rig/rigtest"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	kyaml "sigs.k8s.io/yaml"
)

// least is the set of capabilities that the README names, CHOWN aside.
var least = []string{"NET_ADMIN", "SETUID", "SETGID", "SETPCAP", "KILL"}

// base is the kustomize base as kubectl would send it.
func base(t *testing.T) (pod corev1.Pod, policy corev1.ConfigMap) {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range built.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		switch r.GetKind() {
		case "Pod":
			err = kyaml.UnmarshalStrict(text, &pod)
		case "ConfigMap":
			err = kyaml.UnmarshalStrict(text, &policy)
		default:
			t.Errorf("a resource of kind %s, which this test does not know", r.GetKind())
		}
		if err != nil {
			t.Fatalf("%s: %v", r.CurId(), err)
		}
	}
	return pod, policy
}

func TestKubernetes(t *testing.T) {
	pod, policy := base(t)
	if len(pod.Spec.InitContainers) != 1 || len(pod.Spec.Containers) != 1 {
		t.Fatalf("%d init containers and %d containers; want a sidecar and an agent", len(pod.Spec.InitContainers), len(pod.Spec.Containers))
	}
	gate, agent := pod.Spec.InitContainers[0], pod.Spec.Containers[0]
	if gate.RestartPolicy == nil || *gate.RestartPolicy != corev1.ContainerRestartPolicyAlways || gate.StartupProbe == nil {
		t.Error("the gate is no native sidecar with a startup probe: the agent could start before the fence")
	}
	for name, want := range map[string]struct {
		got  *corev1.SecurityContext
		user int64
		add  []corev1.Capability
	}{"exitgate": {gate.SecurityContext, 0, capabilities(least)}, "agent": {agent.SecurityContext, 1000, nil}} {
		wantSecurity(t, name, want.got, want.user, want.add)
	}
	if p := pod.Spec.AutomountServiceAccountToken; p == nil || *p {
		t.Error("the service account's token is mounted")
	}
	if pod.Spec.SecurityContext == nil || pod.Spec.SecurityContext.FSGroup != nil {
		t.Error("an fsGroup would let the agent's group read the credential")
	}
	for _, c := range []corev1.Container{gate, agent} {
		for _, list := range []corev1.ResourceList{c.Resources.Requests, c.Resources.Limits} {
			if list.Cpu().IsZero() || list.Memory().IsZero() || list.StorageEphemeral().IsZero() {
				t.Errorf("%s: requests or limits are missing in %v", c.Name, c.Resources)
			}
		}
	}
	wantVolumes(t, pod, policy)
}

// wantSecurity has every field of a security context said, those of other systems aside.
func wantSecurity(t *testing.T, name string, got *corev1.SecurityContext, user int64, add []corev1.Capability) {
	t.Helper()
	no, yes, nonRoot, proc := false, true, user != 0, corev1.DefaultProcMount
	want := &corev1.SecurityContext{
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: add}, Privileged: &no, AllowPrivilegeEscalation: &no,
		ReadOnlyRootFilesystem: &yes, RunAsUser: &user, RunAsGroup: &user, RunAsNonRoot: &nonRoot, ProcMount: &proc,
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("security context of %s (-want +got):\n%s", name, diff)
	}
	for v, i := reflect.ValueOf(*want), 0; i < v.NumField(); i++ {
		field := v.Type().Field(i).Name
		if v.Field(i).IsNil() && !slices.Contains([]string{"SELinuxOptions", "WindowsOptions", "AppArmorProfile"}, field) {
			t.Errorf("this test says nothing of a security context's %s, so the pod should", field)
		}
	}
}

func capabilities(names []string) (all []corev1.Capability) {
	for _, n := range names {
		all = append(all, corev1.Capability(n))
	}
	return all
}

// wantVolumes: the policy is a directory, which alone follows a changed ConfigMap; the credential is root's and the sidecar's alone.
func wantVolumes(t *testing.T, pod corev1.Pod, policy corev1.ConfigMap) {
	t.Helper()
	volumes := map[string]corev1.Volume{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = v
	}
	mounts := func(c corev1.Container) (names []string) {
		for _, m := range c.VolumeMounts {
			if m.SubPath != "" {
				t.Errorf("%s mounts %s by subPath, which never changes", c.Name, m.Name)
			}
			if _, found := volumes[m.Name]; !found {
				t.Errorf("%s mounts %s, which is no volume", c.Name, m.Name)
			}
			names = append(names, m.Name)
		}
		return names
	}
	if diff := cmp.Diff([]string{"policy", "credentials", "control"}, mounts(pod.Spec.InitContainers[0])); diff != "" {
		t.Errorf("mounts of the gate: %s", diff)
	}
	if diff := cmp.Diff([]string{"home", "tmp"}, mounts(pod.Spec.Containers[0])); diff != "" {
		t.Errorf("mounts of the agent: %s", diff)
	}
	if v := volumes["policy"].ConfigMap; v == nil || v.Name != policy.Name || policy.Data["policy.yaml"] == "" {
		t.Errorf("the policy's volume %+v is not the ConfigMap %s with policy.yaml", v, policy.Name)
	}
	if v := volumes["credentials"].Secret; v == nil || v.DefaultMode == nil || *v.DefaultMode != 0o400 {
		t.Errorf("the credentials' volume %+v is no Secret with mode 0400", v)
	}
}

func TestCompose(t *testing.T) {
	text, err := os.ReadFile("compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{WorkingDir: "compose",
		ConfigFiles: []types.ConfigFile{{Filename: "compose.yaml", Content: text}}}, func(o *loader.Options) { o.SetProjectName("test", true) })
	if err != nil {
		t.Fatal(err)
	}
	s := project.Services["agent"]
	if diff := cmp.Diff(append(slices.Clone(least), "CHOWN"), s.CapAdd); diff != "" || !slices.Equal(s.CapDrop, []string{"ALL"}) {
		t.Errorf("capabilities: drop %q, add %s", s.CapDrop, diff)
	}
	if !s.ReadOnly || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) || s.Privileged || s.NetworkMode != "" {
		t.Errorf("the service is looser than the README's docker run: %+v", s)
	}
	if _, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{ConfigFiles: []types.ConfigFile{{Filename: "x",
		Content: bytes.Replace(text, []byte("cap_drop"), []byte("cap_dorp"), 1)}}}, func(o *loader.Options) { o.SetProjectName("test", true) }); err == nil {
		t.Error("control: a misspelt key is accepted")
	}
}

// feature is what a devcontainer-feature.json may hold here.
type feature struct {
	ID, Version, Name, Description, Entrypoint string
	CapAdd, SecurityOpt                        []string
	Options                                    map[string]struct{ Type, Default, Description string }
}

func TestDevcontainerFeature(t *testing.T) {
	var f feature
	text, err := os.ReadFile("devcontainer/devcontainer-feature.json")
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		t.Fatal(err)
	}
	if f.ID == "" || f.Name == "" || strings.Count(f.Version, ".") != 2 || !slices.Equal(f.CapAdd, least) || !slices.Equal(f.SecurityOpt, []string{"no-new-privileges"}) {
		t.Errorf("%+v", f)
	}
	install, err := os.ReadFile("devcontainer/install.sh")
	if err != nil || !strings.Contains(string(install), f.Entrypoint) {
		t.Errorf("install.sh does not write the entrypoint %s (%v)", f.Entrypoint, err)
	}
	for name := range f.Options {
		if !strings.Contains(string(install), "${"+strings.ToUpper(name)) {
			t.Errorf("install.sh does not read the option %s", name)
		}
	}
}

// step is a step of an action or a workflow.
type step struct {
	Name, If, ID, Uses, Run, Shell string
	Env                            map[string]string
	With                           map[string]yaml.Node
}

type action struct {
	Name, Description string
	Inputs            map[string]struct {
		Description string
		Required    bool
		Default     string
	}
	Runs struct {
		Using string
		Steps []step
	}
}

type workflow struct {
	Name        string
	On          map[string]*struct{ Branches []string }
	Permissions map[string]string
	Concurrency struct {
		Group  string
		Cancel bool `yaml:"cancel-in-progress"`
	}
	Jobs map[string]struct {
		RunsOn    string `yaml:"runs-on"`
		Timeout   int    `yaml:"timeout-minutes"`
		Container struct{ Image, Options string }
		Steps     []step
	}
}

func strictly(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func TestAction(t *testing.T) {
	var a action
	strictly(t, "action/action.yml", &a)
	if a.Runs.Using != "composite" || a.Name == "" || a.Description == "" {
		t.Errorf("%+v", a)
	}
	for _, s := range a.Runs.Steps {
		if s.Run == "" || s.Shell != "bash" || strings.Contains(s.Run, "${{") {
			t.Errorf("step %q: want a bash script that gets inputs by its environment, where they are no code", s.Name)
		}
		for name, value := range s.Env {
			if input := strings.TrimSuffix(strings.TrimPrefix(value, "${{ inputs."), " }}"); a.Inputs[input].Description == "" {
				t.Errorf("step %q: %s is %s, which is no input", s.Name, name, value)
			}
		}
		syntax(t, s.Run)
	}
}

// syntax has bash read a script without running it.
func syntax(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestWorkflow(t *testing.T) {
	files, err := filepath.Glob("../../.github/workflows/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no workflow: %v", err)
	}
	for _, file := range files {
		var w workflow
		strictly(t, file, &w)
		job := w.Jobs["test"]
		if !strings.Contains(job.Container.Options, "--privileged") || w.Permissions["contents"] != "read" || len(job.Steps) != 2 || job.Steps[1].Run != ".ci/run" {
			t.Errorf("%s: %+v", file, w)
		}
	}
}

// TestUnit: systemd itself reads the unit. The binary it names is not installed here, so another one stands in for it.
func TestUnit(t *testing.T) {
	analyze := rigtest.Program(t, "systemd-analyze", "systemd")
	text, err := os.ReadFile("systemd/exitgate-attach@.service")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(text string) string {
		path := filepath.Join(t.TempDir(), "exitgate-attach@.service")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
		if err != nil {
			return err.Error() + ": " + string(out)
		}
		return string(out)
	}
	here := strings.ReplaceAll(string(text), "/usr/local/bin/exitgate", analyze)
	if said := verify(here); said != "" {
		t.Error(said)
	}
	if said := verify(strings.Replace(here, "NoNewPrivileges", "NoNewPrivilege", 1)); !strings.Contains(said, "NoNewPrivilege") {
		t.Errorf("control: a misspelt key is accepted: %s", said)
	}
}
