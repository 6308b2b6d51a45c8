//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// contributed reads a file of contrib.
func contributed(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../contrib", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// parses fails the test unless this is a command line of serve that makes sense to the parser,
// and returns it.
func parses(t *testing.T, args []string) serveCmd {
	t.Helper()
	var c cli
	parser, err := newParser(&c, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(args)
	if err != nil || parsed.Selected().Name != "serve" {
		t.Fatalf("%q: %v", args, err)
	}
	return c.Serve
}

// The unit's flags are those of serve, and systemd finds no fault where it is there.
func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	unit := contributed(t, "systemd/lockfabric.service")
	line := regexp.MustCompile(`(?m)^ExecStart=(\S+) (.*)$`).FindStringSubmatch(unit)
	if line == nil {
		t.Fatal("no ExecStart")
	}
	parses(t, strings.Fields(line[2]))
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // its flags were checked
	}
	path := filepath.Join(t.TempDir(), "lockfabric.service")
	if err := os.WriteFile(path, []byte(strings.Replace(unit, line[1], "/bin/true", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	// What it says of this host's other units is no matter.
	if out, err := exec.Command(analyze, "verify", path).CombinedOutput(); bytes.Contains(out, []byte("lockfabric.service")) {
		t.Errorf("%v: %s", err, out)
	}
}

// resource is what the test looks at in a resource of Kubernetes.
type resource struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		ServiceName          string `yaml:"serviceName"`
		Replicas             int
		MaxUnavailable       int `yaml:"maxUnavailable"`
		Selector             map[string]any
		Ports                []port
		VolumeClaimTemplates []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
		Template             struct {
			Metadata struct{ Labels, Annotations map[string]string }
			Spec     struct {
				SecurityContext struct {
					RunAsUser int `yaml:"runAsUser"`
				} `yaml:"securityContext"`
				Containers []container
				Volumes    []struct {
					Name   string
					Secret struct {
						SecretName string `yaml:"secretName"`
					}
				}
			}
		}
	}
}

type port struct {
	Name          string
	Port          int
	TargetPort    string `yaml:"targetPort"`
	ContainerPort int    `yaml:"containerPort"`
}

type container struct {
	Args           []string
	Env            []struct{ Name string }
	Ports          []port
	LivenessProbe  httpProbe `yaml:"livenessProbe"`
	ReadinessProbe httpProbe `yaml:"readinessProbe"`
	VolumeMounts   []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type httpProbe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

// What the example for Kubernetes names is there: flags, ports, files, paths of probes. With other
// addresses its three servers become a cluster that grants locks to who has the password.
func TestKubernetesExample(t *testing.T) {
	t.Parallel()
	text := contributed(t, "kubernetes/lockfabric.yaml")
	found := map[string]resource{}
	for d := yaml.NewDecoder(strings.NewReader(text)); ; {
		var r resource
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		found[r.Kind+" "+r.Metadata.Name] = r
	}
	set, labels := found["StatefulSet lockfabric"].Spec, map[string]any{"app": "lockfabric"}
	if len(found) != 4 || set.Replicas != 3 || len(set.Template.Spec.Containers) != 1 || found["PodDisruptionBudget lockfabric"].Spec.MaxUnavailable != 1 {
		t.Fatalf("%+v", found)
	}
	c := set.Template.Spec.Containers[0]
	flags := parses(t, c.Args)
	ports := map[string]int{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}
	for name, addr := range map[string]string{"client": flags.Listen, "cluster": flags.ClusterListen, "health": flags.Health} {
		if addr != fmt.Sprint("0.0.0.0:", ports[name]) {
			t.Errorf("port %s is %d, and the server's %s", name, ports[name], addr)
		}
	}
	for _, name := range []string{"lockfabric", set.ServiceName} {
		service := found["Service "+name].Spec
		if fmt.Sprint(service.Selector) != fmt.Sprint(labels) || len(service.Ports) == 0 {
			t.Errorf("service %s: %+v", name, service)
		}
		for _, p := range service.Ports {
			if ports[p.TargetPort] != p.Port {
				t.Errorf("service %s: port %d goes to %s", name, p.Port, p.TargetPort)
			}
		}
	}
	for i, route := range flags.Routes {
		if want := fmt.Sprintf("lockfabric-%d.%s:%d", i, set.ServiceName, ports["cluster"]); route != want || len(flags.Routes) != set.Replicas {
			t.Errorf("route %s, want %s", route, want)
		}
	}
	mounts := map[string]string{}
	for _, m := range c.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	if mounts[set.VolumeClaimTemplates[0].Metadata.Name] != flags.Store || flags.Store == "" {
		t.Errorf("the store is %s", flags.Store)
	}
	if secret := set.Template.Spec.Volumes[0]; !strings.Contains(text, "kubectl create secret generic "+secret.Secret.SecretName+" ") {
		t.Errorf("nobody makes secret %s", secret.Secret.SecretName)
	}
	annotated := set.Template.Metadata.Annotations
	if annotated["prometheus.io/port"] != fmt.Sprint(ports["health"]) || annotated["prometheus.io/path"] != "/metrics" || c.LivenessProbe.HTTPGet.Port != "health" || c.ReadinessProbe.HTTPGet.Port != "health" {
		t.Errorf("%v, %+v, %+v", annotated, c.LivenessProbe, c.ReadinessProbe)
	}
	agreesWithImage(t, set.Template.Spec.SecurityContext.RunAsUser, ports, flags.Store)
	forms(t, c, flags, mounts["passwords"], regexp.MustCompile(`--from-literal=([a-z-]+)=`).FindAllStringSubmatch(text, -1))
}

// agreesWithImage holds the container file against what Kubernetes is told.
func agreesWithImage(t *testing.T, user int, ports map[string]int, store string) {
	t.Helper()
	image := contributed(t, "container/Containerfile")
	for _, want := range []string{fmt.Sprint("\nUSER ", user, ":"), fmt.Sprint("\nEXPOSE ", ports["client"], " ", ports["cluster"], " ", ports["health"], "\n"), "\nVOLUME " + store + "\n"} {
		if !strings.Contains(image, want) {
			t.Errorf("the container file has no line %q", want)
		}
	}
	var command []string
	if line := regexp.MustCompile(`(?m)^CMD (.*)$`).FindStringSubmatch(image); line == nil || json.Unmarshal([]byte(line[1]), &command) != nil || parses(t, command).Store != store {
		t.Errorf("the container runs %v", line)
	}

}

// forms runs the servers of a stateful set, with addresses and directories of this host.
func forms(t *testing.T, c container, flags serveCmd, secrets string, passwords [][]string) {
	t.Helper()
	dir, password := t.TempDir(), "open sesame"
	for _, name := range passwords {
		if err := os.WriteFile(filepath.Join(dir, name[1]), []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	routes := freeAddrs(t, len(flags.Routes))
	var servers []string
	var at []serving
	var started []*proc
	for i := range flags.Routes {
		args := slices.Clone(c.Args)
		for j := range args {
			args[j] = strings.NewReplacer("$("+c.Env[0].Name+")", fmt.Sprint("lockfabric-", i), flags.Store, filepath.Join(dir, fmt.Sprint(i)), secrets, dir,
				flags.ClusterListen, routes[i], flags.Listen, "127.0.0.1:0", flags.Health, "127.0.0.1:0", strings.Join(flags.Routes, ","), strings.Join(routes, ",")).Replace(args[j])
		}
		started = append(started, start(t, bare(t, append([]string{"--output", "json", "--log-level", "error"}, args...)...)))
	}
	for _, p := range started {
		v := p.serving()
		servers, at = append(servers, v.URL), append(at, v)
	}
	for _, v := range at {
		for _, path := range []string{c.LivenessProbe.HTTPGet.Path, c.ReadinessProbe.HTTPGet.Path, "/metrics"} {
			r, err := http.Get("http://" + v.Health + path)
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Body.Close()
			if r.StatusCode != http.StatusOK {
				t.Errorf("%s: %d", path, r.StatusCode)
			}
		}
	}
	runs := bare(t, "--server", strings.Join(servers, ","), "--user", flags.Security.AllowUser, "run", "k", "--", "echo", "in")
	runs.Env = append(runs.Env, "LOCKFABRIC_PASSWORD="+password)
	if code, stdout, stderr := run(t, runs); code != 0 || stdout != "in\n" {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}
}
