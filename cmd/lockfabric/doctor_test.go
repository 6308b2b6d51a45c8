//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// diagnosis is what doctor said.
type diagnosis struct {
	t *testing.T
	doctor.Report
	code   int
	stdout string
	stderr string
}

// examine runs doctor on the test's own fabric of a server.
func examine(t *testing.T, url string, args ...string) *diagnosis {
	t.Helper()
	return diagnose(t, bare(t, append([]string{"--server", url, "--fabric", fabricName(t), "--output", "json", "doctor", "--probes", "3"}, args...)...))
}

func diagnose(t *testing.T, cmd *exec.Cmd) *diagnosis {
	t.Helper()
	d := &diagnosis{t: t}
	d.code, d.stdout, d.stderr = run(t, cmd)
	if err := json.Unmarshal([]byte(d.stdout), &d.Report); err != nil {
		t.Fatalf("exit code %d, %s, %v in %q", d.code, d.stderr, err, d.stdout)
	}
	for _, f := range d.Findings {
		if !slices.Contains(doctor.Checks(), f.Check) {
			t.Errorf("an unknown check: %+v", f)
		}
		if f.Detail == "" || (f.Remedy == "") != (f.Status == doctor.OK) {
			t.Errorf("a finding that does not help: %+v", f)
		}
	}
	return d
}

// find returns the findings of one check.
func (d *diagnosis) find(check string) (list []doctor.Finding) {
	for _, f := range d.Findings {
		if f.Check == check {
			list = append(list, f)
		}
	}
	return list
}

// has fails the test unless a finding has the status and all the texts.
func (d *diagnosis) has(check string, status doctor.Status, texts ...string) {
	d.t.Helper()
	for _, f := range d.find(check) {
		all := f.Status == status
		for _, text := range texts {
			all = all && strings.Contains(f.Subject+"|"+f.Detail+"|"+f.Remedy, text)
		}
		if all {
			return
		}
	}
	d.t.Errorf("no %s of %s with %q in %+v", status, check, texts, d.find(check))
}

// only fails the test if there is a worse finding than ok of another check.
func (d *diagnosis) only(checks ...string) {
	d.t.Helper()
	for _, f := range d.Findings {
		if f.Status != doctor.OK && !slices.Contains(checks, f.Check) {
			d.t.Errorf("not expected: %+v", f)
		}
	}
}

// exits fails the test unless the code, and what goes with it, is this.
func (d *diagnosis) exits(code int) {
	d.t.Helper()
	if d.code != code || d.OK != (code == 0) || (d.stderr == "") != (code == 0) || strings.Count(d.stderr, "\n") > 1 {
		d.t.Errorf("exit code %d, ok %v, stderr %q, want %d; %+v", d.code, d.OK, d.stderr, code, d.Findings)
	}
}

// dialTo connects to a server and is closed with the test.
func dialTo(t *testing.T, url string, opts ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(url, append(opts, nats.ReconnectBufSize(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// made creates the buckets of the test's fabric, as a program would.
func made(t *testing.T, url string, opts ...fabric.Option) jetstream.JetStream {
	t.Helper()
	nc, js := dialTo(t, url)
	m, err := fabric.New(t.Context(), nc, append(opts, fabric.WithFabric(fabricName(t)))...)
	if err == nil {
		err = m.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// stream returns one of the fabric's streams.
func stream(t *testing.T, js jetstream.JetStream, bucket string) *jetstream.StreamInfo {
	t.Helper()
	s, err := js.Stream(t.Context(), "KV_"+fabricName(t)+bucket)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo()
}

// put writes a value past the library.
func put(t *testing.T, js jetstream.JetStream, bucket, key, value string) {
	t.Helper()
	if _, err := js.Publish(t.Context(), "$KV."+fabricName(t)+bucket+"."+key, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func TestDoctorLocal(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	if code, _, stderr := run(t, m.command("ls")); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	d := diagnose(t, m.command("--output", "json", "doctor", "--strict"))
	d.exits(0)
	d.has("sync", doctor.OK)
	if s := d.Cluster.Servers; len(s) != 1 || !s[0].SyncAlways || s[0].SyncInterval != 0 || s[0].Name != d.Server.Name || d.Cluster.Name != "" || d.Server.Version == "" || d.Server.Address == "" {
		t.Errorf("%+v, %+v", d.Server, d.Cluster)
	}
	seen := map[string]bool{}
	for _, f := range d.Findings {
		seen[f.Check] = true
	}
	for _, check := range doctor.Checks() {
		if !seen[check] && check != "peers" { // which a single server has none of
			t.Errorf("no finding of %s", check)
		}
	}
	l := d.Latency
	if l.Probes != 20 || l.TTL != fabric.DefaultTTL {
		t.Errorf("%+v", l)
	}
	for name, times := range map[string]*doctor.Times{"rtt": l.RTT, "acquire": l.Acquire, "release": l.Release} {
		if times == nil || times.Median <= 0 || times.P99 < times.Median || times.Max < times.P99 {
			t.Errorf("%s: %+v", name, times)
		}
	}
	// The text has the same findings, a line each.
	code, stdout, _ := run(t, m.command("doctor"))
	lines := strings.Split(stdout, "\n")
	if code != 0 || strings.Join(strings.Fields(lines[0]), " ") != "STATUS CHECK OF FINDING" || strings.Contains(stdout, "->") {
		t.Errorf("exit code %d, %s", code, stdout)
	}
	for i, f := range d.Findings {
		if got := strings.Fields(lines[i+1]); len(got) < 3 || got[0] != string(f.Status) || got[1] != f.Check {
			t.Errorf("line %d: %q, want %+v", i+1, lines[i+1], f)
		}
	}
}

// Nothing is created, and that is no problem.
func TestDoctorWithoutBuckets(t *testing.T) {
	t.Parallel()
	_, js := dialTo(t, server.ClientURL())
	d := examine(t, server.ClientURL())
	d.exits(0)
	d.only("sync", "writes")
	d.has("bucket", doctor.OK, "-locks", "first program")
	d.has("bucket", doctor.OK, "-leases", "first program")
	d.has("writes", doctor.Unknown, "creates no buckets")
	if d.Latency.RTT == nil || d.Latency.Acquire != nil {
		t.Errorf("%+v", d.Latency)
	}
	for name := range js.ListStreams(t.Context()).Info() {
		if strings.Contains(name.Config.Name, fabricName(t)) {
			t.Errorf("%s was created", name.Config.Name)
		}
	}
	d = examine(t, server.ClientURL(), "--strict") // sync is not visible here
	d.exits(78)
	code, stdout, stderr := run(t, lockfabric(t, "doctor", "--strict"))
	if code != 78 || stderr != "lockfabric: doctor: 0 problem(s), 0 warning(s), 2 unknown\n" || !strings.Contains(stdout, "-> ask as the system account") {
		t.Errorf("exit code %d, %s, %s", code, stderr, stdout)
	}
}

func TestDoctorOneBucketGone(t *testing.T) {
	t.Parallel()
	for bucket, remedy := range map[string]string{"-locks": "the next program creates it", "-leases": "delete the locks bucket too"} {
		t.Run(bucket, func(t *testing.T) {
			js := made(t, server.ClientURL())
			if err := js.DeleteStream(t.Context(), "KV_"+fabricName(t)+bucket); err != nil {
				t.Fatal(err)
			}
			d := examine(t, server.ClientURL())
			d.exits(0)
			d.has("bucket", doctor.Warning, bucket, "void", remedy)
			d.only("sync", "writes", "bucket", "leases")
		})
	}
}

// What doctor leaves behind.
func TestDoctorWrites(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	locks, leases := stream(t, js, "-locks"), stream(t, js, "-leases")
	d := examine(t, server.ClientURL(), "--no-probe")
	d.exits(0)
	d.has("writes", doctor.OK, "--no-probe")
	if l := d.Latency; l.Acquire != nil || l.Release != nil || l.RTT == nil {
		t.Errorf("%+v", l)
	}
	for bucket, before := range map[string]*jetstream.StreamInfo{"-locks": locks, "-leases": leases} {
		if now := stream(t, js, bucket); now.State.LastSeq != before.State.LastSeq || now.State.Msgs != before.State.Msgs {
			t.Errorf("%s: written with --no-probe: %+v, before %+v", bucket, now.State, before.State)
		}
	}

	examine(t, server.ClientURL(), "--probes", "7").has("writes", doctor.OK)
	now := stream(t, js, "-locks")
	if n := now.State.LastSeq - locks.State.LastSeq; n != 2*7 {
		t.Errorf("%d writes for 7 probes", n)
	}
	if now.State.Msgs != 1 {
		t.Errorf("%d messages left", now.State.Msgs)
	}
	s, err := js.Stream(t.Context(), now.Config.Name)
	if err != nil {
		t.Fatal(err)
	}
	left, err := s.GetMsg(t.Context(), now.State.LastSeq)
	if err != nil || left.Header.Get("KV-Operation") != "PURGE" || left.Header.Get("Nats-TTL") == "" || !strings.Contains(left.Subject, "_lockfabric-doctor.") {
		t.Errorf("left behind: %+v, %v", left, err)
	}
	bucket, err := js.KeyValue(t.Context(), fabricName(t)+"-leases")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bucket.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if e, err := bucket.Get(t.Context(), k); k != kv.MetaKey && (err != nil || !strings.Contains(string(e.Value()), `"state":"dead"`)) {
			t.Errorf("lease left behind: %s, %v", e.Value(), err)
		}
	}
}

// The documented shape.
func TestDoctorJSON(t *testing.T) {
	t.Parallel()
	made(t, server.ClientURL())
	var v any
	if err := json.Unmarshal([]byte(examine(t, server.ClientURL()).stdout), &v); err != nil {
		t.Fatal(err)
	}
	const want = `cluster{name servers[]} fabric{buckets[{first_seq keys last_seq leader name replicas storage}] name shards} ` +
		`findings[{check detail remedy? status subject?}] latency{acquire{max_ns median_ns p99_ns} coalesced probes release{max_ns median_ns p99_ns} rtt{max_ns median_ns p99_ns} ttl_ns} ` +
		`ok server{address name version}`
	if got := strings.TrimSuffix(strings.TrimPrefix(shape(v), "{"), "}"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// shape tells the keys of a JSON value; "?" marks those that not all elements
// of a list have.
func shape(v any) string {
	switch v := v.(type) {
	case map[string]any:
		var keys []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			keys = append(keys, k+shape(v[k]))
		}
		return "{" + strings.Join(keys, " ") + "}"
	case []any:
		in := map[string]int{}
		for _, e := range v {
			for k := range strings.FieldsSeq(strings.Trim(shape(e), "{}")) {
				in[k]++
			}
		}
		if len(v) == 0 {
			return "[]"
		}
		var keys []string
		for _, k := range slices.Sorted(maps.Keys(in)) {
			if in[k] < len(v) {
				k += "?"
			}
			keys = append(keys, k)
		}
		return "[{" + strings.Join(keys, " ") + "}]"
	}
	return ""
}

func TestDoctorUsage(t *testing.T) {
	t.Parallel()
	for arg, want := range map[string]string{
		"--probes=0": "--probes=0", "--probes=1001": "1 to 1000", "--ttl=99ms": "--ttl=99ms", "--ttl=25h": "24h", "--output=xml": "--output",
	} {
		if code, _, stderr := run(t, lockfabric(t, "doctor", arg)); code != 64 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %s", arg, code, stderr)
		}
	}
	for url, want := range map[string]int{"nats://me:sEcret@127.0.0.1:1": 69, "nats://me:sEcret%@127.0.0.1:1": 64} {
		code, stdout, stderr := run(t, bare(t, "--server", url, "--timeout", "2s", "doctor"))
		if code != want || stdout != "" || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "sEcret") || !strings.Contains(stderr, "--server") {
			t.Errorf("exit code %d, %s", code, stderr)
		}
	}
	if code, stdout, _ := run(t, bare(t, "doctor", "--help")); code != 0 || !strings.Contains(strings.Join(strings.Fields(stdout), " "), "78: a problem") {
		t.Errorf("help: exit code %d, %s", code, fmt.Sprintf("%q", stdout))
	}
}
