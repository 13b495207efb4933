package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// podSpec is the part of a Kubernetes pod that decides what an agent beside exitgate can do. Other fields are the API server's to check.
type podSpec struct {
	Automount       *bool       `yaml:"automountServiceAccountToken"`
	HostNetwork     bool        `yaml:"hostNetwork"`
	HostPID         bool        `yaml:"hostPID"`
	SecurityContext podSecurity `yaml:"securityContext"`
	InitContainers  []podMember `yaml:"initContainers"`
	Containers      []podMember `yaml:"containers"`
	Volumes         []podVolume `yaml:"volumes"`
	Template        *podHolder  `yaml:"template"`    // of a Deployment, Job and the like
	Job             *podHolder  `yaml:"jobTemplate"` // of a CronJob
}

// innermost is the pod that a template, or a template of templates, makes.
func (s podSpec) innermost() podSpec {
	for _, of := range []*podHolder{s.Job, s.Template} {
		if of != nil {
			return of.Spec.innermost()
		}
	}
	return s
}

// podHolder is a document: a Pod, or what has a template for pods.
type podHolder struct {
	Spec podSpec `yaml:"spec"`
}

type podSecurity struct {
	NonRoot      *bool  `yaml:"runAsNonRoot"`
	User         *int64 `yaml:"runAsUser"`
	Group        *int64 `yaml:"fsGroup"`
	Escalation   *bool  `yaml:"allowPrivilegeEscalation"`
	Privileged   bool   `yaml:"privileged"`
	Capabilities struct {
		Add, Drop []string
	} `yaml:"capabilities"`
	Seccomp struct {
		Type string
	} `yaml:"seccompProfile"`
}

type podMember struct {
	Name            string      `yaml:"name"`
	Image           string      `yaml:"image"`
	Command         []string    `yaml:"command"`
	RestartPolicy   string      `yaml:"restartPolicy"`
	StartupProbe    any         `yaml:"startupProbe"`
	SecurityContext podSecurity `yaml:"securityContext"`
	Env             []struct {
		Name      string
		ValueFrom struct {
			Secret any `yaml:"secretKeyRef"`
		} `yaml:"valueFrom"`
	} `yaml:"env"`
	EnvFrom []podEnvFrom `yaml:"envFrom"`
	Mounts  []struct {
		Name string
	} `yaml:"volumeMounts"`
}

type podEnvFrom struct {
	Secret any `yaml:"secretRef"`
}

type podVolume struct {
	Name      string `yaml:"name"`
	Secret    any    `yaml:"secret"`
	HostPath  any    `yaml:"hostPath"`
	Projected struct {
		Sources []struct {
			Secret any `yaml:"secret"`
			Token  any `yaml:"serviceAccountToken"`
		}
	} `yaml:"projected"`
}

// readManifest finds the pods of a manifest. Documents without one are not looked at.
func readManifest(file string) (pods []podSpec, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for d := yaml.NewDecoder(f); ; {
		var doc podHolder
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		spec := doc.Spec.innermost()
		if len(spec.Containers) > 0 {
			pods = append(pods, spec)
		}
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("%s: no pod in it; give a manifest with a Pod, or with a pod template", file)
	}
	return pods, nil
}

// isGate tells exitgate's own container from the others.
func (m podMember) isGate() bool {
	image := path.Base(m.Image)
	image, _, _ = strings.Cut(image, "@")
	image, _, _ = strings.Cut(image, ":")
	return image == "exitgate" || len(m.Command) > 0 && path.Base(m.Command[0]) == "exitgate"
}

// checkPod says what in a pod weakens the fence around its agents. It finds every container but exitgate's to be one.
func checkPod(p podSpec) (out []finding) {
	high := func(mend, format string, args ...any) {
		out = append(out, finding{"high", fmt.Sprintf(format, args...), mend})
	}
	gates := 0
	for _, list := range [][]podMember{p.InitContainers, p.Containers} {
		for _, m := range list {
			if !m.isGate() {
				out = append(out, checkMember(p, m)...)
				continue
			}
			gates++
			if m.RestartPolicy != "Always" || m.StartupProbe == nil {
				out = append(out, finding{"warn", fmt.Sprintf("container %s is no native sidecar with a startup probe: an agent could start before the fence", m.Name),
					"put it into initContainers with `restartPolicy: Always` and `startupProbe: {exec: {command: [/exitgate, status]}}`"})
			}
		}
	}
	if gates == 0 {
		high("add the sidecar of integration/deploy/kubernetes/pod.yaml", "no container of the pod runs exitgate")
	}
	if p.HostNetwork {
		high("leave hostNetwork out", "the pod is in the node's own network namespace")
	}
	if p.HostPID {
		high("leave hostPID out", "the pod sees the node's processes")
	}
	if p.Automount == nil || *p.Automount {
		high("`automountServiceAccountToken: false`", "the service account's token is mounted into every container, the agents' too")
	}
	if p.SecurityContext.Group != nil {
		high("leave fsGroup out", "fsGroup lets every container's group read the volumes, the credentials' too")
	}
	if len(out) == 0 {
		out = append(out, ok("pod: its agents hold no capability and no secret"))
	}
	return out
}

// checkMember looks at a container beside exitgate's.
func checkMember(p podSpec, m podMember) (out []finding) {
	high := func(mend, format string, args ...any) {
		out = append(out, finding{"high", "container " + m.Name + " " + fmt.Sprintf(format, args...), mend})
	}
	s := m.SecurityContext
	user, nonRoot := either(s.User, p.SecurityContext.User), either(s.NonRoot, p.SecurityContext.NonRoot)
	if user != nil && *user == 0 || nonRoot == nil || !*nonRoot {
		high("`runAsNonRoot: true` and the agent's `runAsUser`", "may run as root, whom the fence lets reach allowed hosts directly")
	}
	if s.Privileged {
		high("leave privileged out", "is privileged")
	}
	if s.Escalation == nil || *s.Escalation {
		high("`allowPrivilegeEscalation: false`", "may gain rights by setuid programs")
	}
	if !slices.Contains(s.Capabilities.Drop, "ALL") || len(s.Capabilities.Add) > 0 {
		high("`capabilities: {drop: [ALL]}`", "holds capabilities")
	}
	if s.Seccomp.Type == "" && p.SecurityContext.Seccomp.Type == "" {
		out = append(out, finding{"warn", "container " + m.Name + " has no seccomp profile", "`seccompProfile: {type: RuntimeDefault}`"})
	}
	for _, e := range m.Env {
		if e.ValueFrom.Secret != nil {
			high("give it to exitgate, as a file", "holds a secret in its variable %s", e.Name)
		}
	}
	if slices.ContainsFunc(m.EnvFrom, func(e podEnvFrom) bool { return e.Secret != nil }) {
		high("give it to exitgate, as a file", "holds a secret in its environment")
	}
	for _, mount := range m.Mounts {
		i := slices.IndexFunc(p.Volumes, func(v podVolume) bool { return v.Name == mount.Name })
		switch {
		case i < 0:
		case p.Volumes[i].holdsSecret():
			high("mount it into exitgate's container alone", "mounts the secret %s", mount.Name)
		case p.Volumes[i].HostPath != nil:
			out = append(out, finding{"warn", fmt.Sprintf("container %s mounts %s of the node: a socket in it would be a way around the fence", m.Name, mount.Name), "use another kind of volume"})
		}
	}
	return out
}

func (v podVolume) holdsSecret() bool {
	for _, s := range v.Projected.Sources {
		if s.Secret != nil || s.Token != nil {
			return true
		}
	}
	return v.Secret != nil
}

// either is the first that is set: a container's own word before the pod's.
func either[T any](own, pods *T) *T {
	if own != nil {
		return own
	}
	return pods
}

// checkManifest is doctor's work on pods that are not there yet.
func checkManifest(file string) ([]finding, error) {
	pods, err := readManifest(file)
	if err != nil {
		return nil, err
	}
	var all []finding
	for _, p := range pods {
		all = append(all, checkPod(p)...)
	}
	return all, nil
}
