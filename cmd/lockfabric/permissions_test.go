//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

var roles = []string{"observer", "client", "coalescer", "admin"}

// roleServer is a server whose users have the names of the roles, and what the command
// prints for these.
func roleServer(t *testing.T) string {
	t.Helper()
	var users strings.Builder
	for _, role := range roles {
		code, stdout, stderr := run(t, bare(t, "permissions", "--role", role))
		if code != 0 || stderr != "" {
			t.Fatalf("%s: exit code %d, %s", role, code, stderr)
		}
		fmt.Fprintf(&users, "{ user: %s, password: x\n%s}\n", role, stdout)
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte("jetstream: {}\nauthorization: { users: [\n"+users.String()+"] }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := natsserver.ProcessConfigFile(path)
	if err != nil {
		t.Fatalf("%v in\n%s", err, users.String())
	}
	return testserver.Start(t, opts).ClientURL()
}

// Each role does its job with exactly what is printed for it.
func TestRolesDoTheirJob(t *testing.T) {
	t.Parallel()
	url := roleServer(t)
	as := func(role string, code int, args ...string) string {
		t.Helper()
		cmd := bare(t, append([]string{"--server", url, "--user", role, "--log-level", "info"}, args...)...)
		cmd.Env = append(cmd.Env, "LOCKFABRIC_PASSWORD=x")
		got, stdout, stderr := run(t, cmd)
		if got != code || code == 0 && strings.Contains(strings.ToLower(stderr), "permission") {
			t.Errorf("%s %v: exit code %d, want %d; %s", role, args, got, code, stderr)
		}
		return stdout
	}
	as("client", 77, "--timeout", "50s", "ls") // there is nothing yet
	as("admin", 0, "ls")
	as("admin", 0, "run", "k", "--", "true")
	as("admin", 0, "doctor")
	for _, role := range []string{"client", "coalescer"} {
		as(role, 0, "run", "k", "--", "true")
		as(role, 0, "run", "k", "--semaphore", "2", "--", "true")
		as(role, 0, "gc", "--dry-run")
		as(role, 0, "run", "p/a/b", "--path", "--", "true")
		as(role, 0, "run", "k", "--also", "j=S", "--", "true")
		as(role, 0, "deadlocks")
	}
	// One holds and another one waits, seen by the observer.
	holder := bare(t, "--server", url, "--user", "client", "lock", "k", "--stdin")
	holder.Env = append(holder.Env, "LOCKFABRIC_PASSWORD=x")
	h, stdin := withStdin(t, holder)
	h.line()
	waiter := bare(t, "--server", url, "--user", "coalescer", "run", "k", "--", "echo", "in")
	waiter.Env = append(waiter.Env, "LOCKFABRIC_PASSWORD=x")
	w := start(t, waiter)
	eventually(t, "waiter that the observer sees", func() bool { return strings.Contains(as("observer", 0, "inspect", "k"), "WAITER") })
	if got := as("observer", 0, "ls", "--long"); !strings.Contains(got, hostname()) {
		t.Errorf("%s", got)
	}
	if got := as("observer", 0, "top", "--once", "--every", "10ms"); !strings.Contains(got, " 1 hold, 1 wait,") { // by a watch
		t.Errorf("%s", got)
	}
	as("observer", 0, "tree", "k")
	as("observer", 0, "deadlocks")
	as("observer", 77, "--timeout", "5s", "run", "other", "--", "true")
	as("observer", 77, "--timeout", "5s", "release", "--force", "k")
	_ = stdin.Close()
	h.exits(0)
	w.expect("in")
	w.exits(0)
}

// No role may do more: each is tried on what is next to its job.
func TestRolesDoNoMore(t *testing.T) {
	t.Parallel()
	url := roleServer(t)
	all := []string{"observer", "client", "coalescer", "admin"}
	writers, owners, admin := all[1:], all[2:], all[3:]
	for _, tt := range []struct {
		subject   string
		subscribe bool
		may       []string
	}{
		{"$KV.lockfabric-locks.k", false, writers},
		{"$KV.lockfabric-leases.k", false, writers},
		{"$KV.other-locks.k", false, nil},
		{"$JS.API.STREAM.MSG.GET.KV_lockfabric-locks", false, all},
		{"$JS.API.STREAM.MSG.GET.KV_other-locks", false, nil},
		{"$JS.API.STREAM.MSG.DELETE.KV_lockfabric-locks", false, nil},
		{"$JS.API.STREAM.DELETE.KV_lockfabric-locks", false, nil},
		{"$JS.API.STREAM.CREATE.KV_lockfabric-locks", false, admin},
		{"$JS.API.STREAM.UPDATE.KV_lockfabric-locks", false, admin},
		{"$JS.API.STREAM.PURGE.KV_lockfabric-leases", false, admin},
		{"$JS.API.STREAM.CREATE.mine", false, nil},
		{"$JS.API.CONSUMER.CREATE.mine.x", false, nil},
		{"$JS.API.INFO", false, admin},
		{"lf.lockfabric.p.M", false, writers},
		{"lf.lockfabric.0.7.op", false, writers},
		{"lf.lockfabric.0.hello", false, writers},
		{"lf.lockfabric.n.M.r", false, owners}, // grants
		{"lf.lockfabric.0.beat", false, owners},
		{"lf.other.0.7.op", false, nil},
		{"other", false, nil},
		{"lf.lockfabric.0.7.op", true, owners}, // what others ask for
		{"lf.lockfabric.0.hello", true, owners},
		{"lf.lockfabric.0.beat", true, writers},
		{"lf.lockfabric.n.M.>", true, writers},
		{"lf.lockfabric.p.M", true, writers},
		{"$KV.lockfabric-locks.>", true, nil},
		{"$JS.API.>", true, nil},
		{"_INBOX.x", true, all},
		{">", true, nil},
	} {
		for _, role := range all {
			if got := allowed(t, url, role, tt.subject, tt.subscribe); got != slices.Contains(tt.may, role) {
				t.Errorf("%s, %s, to subscribe %v: allowed is %v", role, tt.subject, tt.subscribe, got)
			}
		}
	}
}

// allowed says whether a server lets a user do it: an error comes before the answer to Flush.
func allowed(t *testing.T, url, user, subject string, subscribe bool) bool {
	t.Helper()
	nc, err := nats.Connect(url, nats.UserInfo(user, "x"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if subscribe {
		_, err = nc.SubscribeSync(subject)
	} else {
		err = nc.Publish(subject, nil)
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
		t.Fatal(err)
	}
	return err == nil && !errors.Is(nc.LastError(), nats.ErrPermissionViolation)
}

func TestPermissionsForms(t *testing.T) {
	t.Parallel()
	_, text, _ := run(t, bare(t, "--fabric", "prod", "--output", "json", "permissions", "--role", "client", "--inbox-prefix", "_mine"))
	tb := outputTable(t, outputDoc(t), "permissions")
	tb.check(t, "permissions", text)
	tb.complete(t, permissions{})
	var v permissions
	if err := json.Unmarshal([]byte(text), &v); err != nil || !slices.Contains(v.Subscribe, "_mine.>") || !slices.Contains(v.Publish, "$KV.prod-locks.>") {
		t.Errorf("%v: %s", err, text)
	}
	want := "--allow-pub '" + strings.Join(v.Publish, ",") + "' --allow-sub '" + strings.Join(v.Subscribe, ",") + "'\n"
	if code, stdout, _ := run(t, bare(t, "--fabric", "prod", "permissions", "--role", "client", "--as", "nsc", "--inbox-prefix", "_mine")); code != 0 || stdout != want {
		t.Errorf("exit code %d, %q, want %q", code, stdout, want)
	}
	_, text, _ = run(t, bare(t, "--fabric", "prod", "--output", "json", "permissions", "--role", "client", "--shards", "2"))
	for _, subject := range []string{"$KV.prod-locks-0.>", "$KV.prod-locks-1.>"} {
		if !strings.Contains(text, `"`+subject+`"`) {
			t.Errorf("two shards: no %s in %s", subject, text)
		}
	}
	for _, args := range [][]string{{"--fabric", ">", "permissions", "--role", "client"}, {"permissions", "--role", "client", "--shards", "65"}, {"permissions", "--role", "client", "--inbox-prefix", "*"}, {"permissions", "--role", "boss"}, {"permissions"}} {
		if code, stdout, stderr := run(t, bare(t, args...)); code != 64 || stdout != "" || stderr == "" {
			t.Errorf("%v: exit code %d, %s%s", args, code, stdout, stderr)
		}
	}
}
