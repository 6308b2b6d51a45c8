//go:build unix

package main

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

// as puts a user's name and password, which is the same, in a server's URL.
func as(user, url string) string {
	return strings.Replace(url, "nats://", "nats://"+user+":"+user+"@", 1)
}

func TestDoctorWithoutJetStream(t *testing.T) {
	t.Parallel()
	srv := testserver.Start(t, &natsserver.Options{})
	d := examine(t, srv.ClientURL())
	d.exits(78)
	d.has("jetstream", doctor.Problem, "not enabled", "nats-server with JetStream")
	d.has("writes", doctor.Unknown)
	d.only("jetstream", "writes")
}

func TestDoctorAccountWithoutJetStream(t *testing.T) {
	t.Parallel()
	with, without := natsserver.NewAccount("WITH"), natsserver.NewAccount("WITHOUT")
	srv := testserver.Start(t, &natsserver.Options{JetStream: true, StoreDir: t.TempDir(), Accounts: []*natsserver.Account{with, without},
		Users: []*natsserver.User{{Username: "u", Password: "u", Account: without}}})
	d := examine(t, as("u", srv.ClientURL()))
	d.exits(78)
	d.has("jetstream", doctor.Problem, "for this account")
}

func TestDoctorServerTooOld(t *testing.T) {
	t.Parallel()
	srv := testserver.Start(t, &natsserver.Options{})
	nc, _ := dialTo(t, srv.ClientURL())
	// As a server of 2.11 or older answers, which knows no API level.
	_, err := nc.Subscribe("$JS.API.>", func(msg *nats.Msg) {
		answer := `{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`
		if msg.Subject == "$JS.API.INFO" {
			answer = `{"memory":0,"storage":90,"streams":99,"consumers":0,"limits":{"max_memory":-1,"max_storage":100,"max_streams":100,"max_consumers":-1},"api":{"total":1,"errors":0}}`
		}
		_ = msg.Respond([]byte(answer))
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	d := examine(t, srv.ClientURL())
	d.exits(78)
	d.has("version", doctor.Problem, "too old", "2.12.0")
	d.has("limits", doctor.Warning, "file storage 90 of 100")
	d.has("limits", doctor.Problem, "streams 99 of 100")
}

// Only the system account sees when a server writes to disk.
func TestDoctorSync(t *testing.T) {
	t.Parallel()
	for mode, always := range map[string]bool{"2m0s": false, "always": true} {
		sys, work := natsserver.NewAccount("SYS"), natsserver.NewAccount("WORK")
		o := natsserver.Options{JetStream: true, StoreDir: t.TempDir(), ServerName: "one", SyncAlways: always}
		o.Accounts, o.SystemAccount = []*natsserver.Account{sys, work}, "SYS"
		o.Users = []*natsserver.User{{Username: "sys", Password: "sys", Account: sys}, {Username: "work", Password: "work", Account: work}}
		srv := testserver.Start(t, &o)
		account, err := srv.LookupAccount("WORK")
		if err == nil {
			err = account.EnableJetStream(nil, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		url := as("work", srv.ClientURL())
		made(t, url)
		d := examine(t, url, "--system-server", as("sys", srv.ClientURL()))
		d.exits(0)
		want := doctor.OK
		if mode != "always" {
			want = doctor.Warning
			d.has("sync", want, "one", mode, "sync_interval: always")
			examine(t, url, "--system-server", as("sys", srv.ClientURL()), "--strict").exits(78)
		}
		d.has("sync", want, "one")
		d.only("sync")
		if s := d.Cluster.Servers; len(s) != 1 || s[0].Sync() != mode || s[0].SyncAlways != always || s[0].Name != "one" || s[0].Version == "" {
			t.Errorf("%+v", s)
		}

		d = examine(t, url)
		d.exits(0)
		d.has("sync", doctor.Unknown, "only the system account", "--system-server", "--system-creds")
		if s := d.Cluster.Servers; len(s) != 0 {
			t.Errorf("%+v", s)
		}
		examine(t, url, "--system-server", url).has("sync", doctor.Unknown, "not those of a system account")
		d = examine(t, url, "--system-server", strings.Replace(as("sys", srv.ClientURL()), ":sys@", ":sEcret@", 1))
		d.has("sync", doctor.Unknown, "can't be asked", "check --system-server")
		if strings.Contains(d.stdout+d.stderr, "sEcret") {
			t.Error("a password is told")
		}
		examine(t, url, "--system-creds", "/none/such").has("sync", doctor.Unknown, "/none/such")
	}
}

// Both connections with credentials files: the second one goes where the first one
// went, or where it is told.
func TestDoctorSystemCredentials(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	work, _, _, _ := o.user(nil)
	sys, _, _, _ := o.userOf(o.system, nil)
	work, sys = file(t, "work.creds", work), file(t, "sys.creds", sys)
	for name, tt := range map[string]struct {
		args, vars []string
		sees       bool
	}{
		"none":                     {nil, nil, false},
		"flag":                     {[]string{"--system-creds", sys}, nil, true},
		"variable":                 {nil, []string{"LOCKFABRIC_SYSTEM_CREDS=" + sys}, true},
		"variables":                {nil, []string{"LOCKFABRIC_SYSTEM_CREDS=" + sys, "LOCKFABRIC_SYSTEM_SERVER=" + address(o.srv)}, true},
		"those of another account": {[]string{"--system-creds", work}, nil, false},
	} {
		cmd := bare(t, append([]string{"--server", address(o.srv), "--creds", work, "--fabric", fabricName(t), "--output", "json", "doctor", "--probes", "1"}, tt.args...)...)
		cmd.Env = append(cmd.Env, tt.vars...)
		d := diagnose(t, cmd)
		if sync := d.find("sync"); (len(d.Cluster.Servers) == 1) != tt.sees || len(sync) != 1 || (sync[0].Status == doctor.Unknown) == tt.sees {
			t.Errorf("%s: %+v, %+v", name, sync, d.Cluster.Servers)
		}
	}
}

// Every server of the cluster is listed, and none of another one. The servers
// that answer here are the test's: a real one without JetStream is among them.
func TestDoctorSyncOfAll(t *testing.T) {
	t.Parallel()
	sys, work := natsserver.NewAccount("SYS"), natsserver.NewAccount("WORK")
	o := &natsserver.Options{ServerName: "bare", Accounts: []*natsserver.Account{sys, work}, SystemAccount: "SYS",
		Users: []*natsserver.User{{Username: "sys", Password: "sys", Account: sys}, {Username: "work", Password: "work", Account: work}}}
	o.Cluster.Name, o.Cluster.Host, o.Cluster.Port = "three", "127.0.0.1", -1
	srv := testserver.Start(t, o)
	answer := func(user, subject string, texts ...string) {
		t.Helper()
		nc, _ := dialTo(t, as(user, srv.ClientURL()))
		_, err := nc.Subscribe(subject, func(msg *nats.Msg) {
			for _, text := range texts {
				_ = nc.Publish(msg.Reply, []byte(text))
			}
		})
		if err == nil {
			err = nc.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	answer("work", "$JS.API.INFO", `{"api":{"level":5}}`)
	answer("work", "$JS.API.STREAM.INFO.*", `{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`)
	answer("sys", "$SYS.REQ.SERVER.PING.JSZ",
		`{"server":{"name":"b","cluster":"three","ver":"2.11.4"},"data":{"config":{"sync_interval":60000000000}}}`,
		`{"server":{"name":"a","cluster":"three","ver":"2.15.2"},"data":{"config":{"sync_interval":120000000000,"sync_always":true}}}`,
		`{"server":{"name":"c","cluster":"three","ver":"2.15.2"},"error":{"description":"busy"}}`,
		`{"server":{"name":"z","cluster":"another","ver":"2.15.2"},"data":{"config":{"sync_interval":120000000000}}}`)
	d := examine(t, as("work", srv.ClientURL()), "--system-server", as("sys", srv.ClientURL()))
	d.exits(78)
	d.has("version", doctor.Problem, "b|", "2.11.4")
	d.has("version", doctor.OK, "a|")
	d.has("sync", doctor.OK, "a|")
	d.has("sync", doctor.Warning, "b|", "1m0s")
	d.has("sync", doctor.Unknown, "c|", "busy")
	want := []doctor.Member{{Name: "a", Version: "2.15.2", SyncAlways: true}, {Name: "b", Version: "2.11.4", SyncInterval: time.Minute}}
	if !slices.Equal(d.Cluster.Servers, want) || len(d.find("sync")) != 3 || d.Cluster.Name != "three" {
		t.Errorf("%+v, %+v", d.Cluster, d.find("sync"))
	}
	code, stdout, _ := run(t, bare(t, "--server", as("work", srv.ClientURL()), "doctor", "--system-server", as("sys", srv.ClientURL())))
	if code != 78 || !strings.Contains(stdout, "\nserver b: nats-server 2.11.4, sync 1m0s\n") {
		t.Errorf("exit code %d, %s", code, stdout)
	}
}

// What a user may not do is told, subject by subject.
func TestDoctorPermissions(t *testing.T) {
	t.Parallel()
	name := fabricName(t)
	all, err := fabric.Permissions(name, fabric.RoleClient, "_INBOX", 1)
	if err != nil {
		t.Fatal(err)
	}
	var subscribe, helpful []string
	publish := []string{"$JS.API.INFO"}
	for _, p := range all {
		switch {
		case p.Subscribe:
			subscribe = append(subscribe, p.Subject) // the inbox first
		case p.Helpful:
			helpful = append(helpful, p.Subject)
		default:
			publish = append(publish, p.Subject)
		}
	}
	tells := append(slices.Clone(publish), "$SYS.REQ.USER.INFO")
	user := func(name string, publish, deny, subscribe []string) *natsserver.User {
		return &natsserver.User{Username: name, Password: name, Permissions: &natsserver.Permissions{
			Publish:   &natsserver.SubjectPermission{Allow: publish, Deny: deny},
			Subscribe: &natsserver.SubjectPermission{Allow: subscribe},
		}}
	}
	without := func(part string) []string {
		return slices.DeleteFunc(slices.Concat(tells, helpful), func(s string) bool { return strings.Contains(s, part) })
	}
	srv := testserver.Start(t, &natsserver.Options{JetStream: true, StoreDir: t.TempDir(), Users: []*natsserver.User{
		{Username: "admin", Password: "admin"},
		user("worker", slices.Concat(tells, helpful), nil, subscribe),
		user("bare", tells, nil, subscribe[:1]),
		user("writeless", without("$KV."), nil, subscribe),
		user("blind", without("CONSUMER.CREATE"), nil, subscribe),
		user("denied", nil, []string{"$KV.*.secret.>", "$KV." + name + "-leases.x"}, subscribe),
		user("infoless", without("STREAM.INFO"), nil, subscribe),
		user("silent", publish, nil, subscribe),
		user("silent-bare", publish, nil, subscribe[:1]),
		user("silent-reader", slices.DeleteFunc(slices.Clone(publish), func(s string) bool { return strings.Contains(s, "$KV.") || s == "$JS.API.INFO" }), nil, subscribe),
	}})
	made(t, as("admin", srv.ClientURL()))
	look := func(user string) *diagnosis { return examine(t, as(user, srv.ClientURL())) }

	for _, user := range []string{"admin", "worker"} {
		d := look(user)
		d.exits(0)
		d.has("permissions", doctor.OK)
		d.only("sync")
	}
	d := look("bare")
	d.exits(0)
	d.has("permissions", doctor.Warning, `allow the user to publish "$JS.FC.KV_`+name+`-locks.>"`)
	d.has("permissions", doctor.Warning, `allow the user to subscribe "$JS.EVENT.ADVISORY.STREAM.DELETED.KV_`+name+`-leases"`)
	d.has("deadlocks", doctor.Unknown, "may not ask")
	d.only("permissions", "sync", "deadlocks")

	d = look("writeless")
	d.exits(78)
	d.has("permissions", doctor.Problem, `allow the user to publish "$KV.`+name+`-locks.>"`)
	d.has("permissions", doctor.Problem, `allow the user to publish "$KV.`+name+`-leases.>"`)
	d.has("writes", doctor.Unknown, "may not do")
	d.has("deadlocks", doctor.Warning, "may not write to it", `allow the user to publish "$KV.`+name+`-waits.>"`)
	d.only("permissions", "sync", "writes", "deadlocks")

	d = look("blind")
	d.exits(78)
	d.has("permissions", doctor.Problem, "$JS.API.CONSUMER.CREATE.KV_"+name+"-leases.>")
	d.has("keys", doctor.Unknown, "-locks")
	d.has("records", doctor.Unknown)
	d.has("leases", doctor.Unknown)

	d = look("denied")
	d.has("permissions", doctor.Problem, "$KV."+name+"-leases.>")

	d = look("infoless")
	d.exits(78)
	d.has("bucket", doctor.Unknown, "-locks", "may not ask")

	// A server that does not tell, but refuses.
	d = look("silent")
	d.exits(0)
	d.has("permissions", doctor.Unknown, "$SYS.REQ.USER.INFO")
	d.has("writes", doctor.OK)
	d.only("permissions", "sync", "deadlocks")
	d = look("silent-bare") // refused what locks do without
	d.exits(0)
	d.has("writes", doctor.OK)
	d.only("permissions", "sync", "deadlocks")
	d = look("silent-reader")
	d.exits(78)
	d.has("jetstream", doctor.Unknown, "$JS.API.INFO")
	d.has("limits", doctor.Unknown)
	d.has("configuration", doctor.OK, "-locks")
	d.has("records", doctor.OK)
	d.has("writes", doctor.Problem, "may not write")
}

// A link that is slow for the TTL in use.
func TestDoctorLatency(t *testing.T) {
	t.Parallel()
	made(t, server.ClientURL())
	proxy := faultproxy.New(t, server.ClientURL())
	proxy.SetDelay(60*time.Millisecond, 0) // in each direction
	d := examine(t, proxy.URL(), "--ttl", "300ms")
	d.exits(0)
	d.has("rtt", doctor.Warning, "third of the TTL of 300ms", "use a TTL of")
	d.has("writes", doctor.Warning, "tenth of the TTL of 300ms", "use a TTL of")
	d.only("rtt", "writes", "sync")
	if l := d.Latency; l.TTL != 300*time.Millisecond || l.RTT.Median < 120*time.Millisecond || l.Acquire.Median < 120*time.Millisecond || l.Release.Median < 120*time.Millisecond {
		t.Errorf("%+v, %+v, %+v, %+v", l, l.RTT, l.Acquire, l.Release)
	}
	d = examine(t, proxy.URL(), "--ttl", "2h")
	d.has("rtt", doctor.OK)
	d.has("writes", doctor.OK)
}

// More probes than there is time for are no problem: those that were made count.
func TestDoctorProbesAreBoundedInTime(t *testing.T) {
	t.Parallel()
	made(t, server.ClientURL())
	proxy := faultproxy.New(t, server.ClientURL())
	proxy.SetDelay(10*time.Millisecond, 0)
	nc, _ := dialTo(t, proxy.URL())
	r, err := doctor.Run(t.Context(), nc, doctor.Options{Fabric: fabricName(t), Probes: 1000, ProbeTime: 300 * time.Millisecond, TTL: time.Minute, Logger: slog.New(slog.DiscardHandler)})
	if err != nil || !r.OK || r.Latency.RTT == nil || r.Latency.Acquire == nil || r.Latency.Release == nil {
		t.Errorf("%+v, %v", r, err)
	}
}

// Three servers, then two, then one.
func TestDoctorCluster(t *testing.T) {
	t.Parallel()
	c := cluster.Run(t, 3)
	url := c.URL()
	made(t, url)
	var d *diagnosis
	eventually(t, "cluster in order", func() bool { // the last replica may be catching up
		d = examine(t, url)
		return d.code == 0 && len(d.find("peers")) == 2
	})
	d.exits(0)
	d.has("replicas", doctor.OK, "-locks", "3")
	d.has("peers", doctor.OK, "-locks", "3 of 3")
	d.has("peers", doctor.OK, "-leases", "3 of 3")
	d.has("server", doctor.OK, "in cluster lockfabric")
	d.has("writes", doctor.OK)
	d.only("sync")
	if d.Cluster.Name != "lockfabric" || d.Fabric.Buckets[0].Leader == "" || d.Fabric.Buckets[0].Replicas != 3 {
		t.Errorf("%+v, %+v", d.Cluster, d.Fabric)
	}

	// A fabric of one replica on the cluster.
	t.Run("one replica", func(t *testing.T) {
		made(t, url, fabric.WithReplicas(1))
		d := examine(t, url)
		d.exits(0)
		d.has("replicas", doctor.Warning, "-locks", "1 replica on a cluster", "--replicas=3")
		d.has("replicas", doctor.Warning, "-leases")
		d.only("sync", "replicas")
		examine(t, url, "--strict").exits(78)
	})

	// Its URLs name all servers, and the client goes to one that answers.
	down := 2
	name := c.Node(down).Name()
	c.StopNode(down)
	eventually(t, "replica missed", func() bool {
		d = examine(t, url, "--no-probe")
		return len(d.find("peers")) > 0 && slices.ContainsFunc(d.find("peers"), func(f doctor.Finding) bool {
			return f.Status == doctor.Problem && strings.Contains(f.Detail, "offline")
		})
	})
	d.exits(78)
	d.has("peers", doctor.Problem, name, "offline", "start that server")

	c.StopNode(1)
	d = examine(t, url)
	d.exits(78)
	if f := d.find("writes"); f[0].Status == doctor.OK {
		t.Errorf("%+v", f)
	}
	for _, f := range d.Findings { // which of them depends on whether a leader has noticed yet
		if f.Status == doctor.Problem && !slices.Contains([]string{"jetstream", "bucket", "peers", "writes"}, f.Check) || strings.Contains(f.Remedy, "grant") && f.Check != "jetstream" {
			t.Errorf("%+v", f)
		}
	}
}
