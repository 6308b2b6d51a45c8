//go:build unix

package main

import (
	"net"
	"strings"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

// silentServer accepts connections and says nothing.
func silentServer(t *testing.T) string {
	t.Helper()
	return listener(t).Addr().String()
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// greetingServer is a server that speaks first, as SSH does.
func greetingServer(t *testing.T) string {
	t.Helper()
	l := listener(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("SSH-2.0-x\r\n"))
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	return l.Addr().String()
}

// A user who is no more let in has no lock any more when its TTL is over, and those
// who wait are told, however long they would wait.
func TestRemovedUser(t *testing.T) {
	t.Parallel()
	t.Run("revoked", func(t *testing.T) {
		t.Parallel()
		o := newOperator(t)
		creds, _, _, public := o.user(nil)
		others, _, _, _ := o.user(nil)
		u := newCaller(t).with("SERVER=" + address(o.srv))
		removed(t, u.with("CREDS="+file(t, "u.creds", creds)), u.with("CREDS="+file(t, "o.creds", others)), "check --creds", func() { o.revoke(public) })
	})
	t.Run("of the configuration", func(t *testing.T) {
		t.Parallel()
		alice, bob := &natsserver.User{Username: "alice", Password: password}, &natsserver.User{Username: "bob", Password: password}
		opts := &natsserver.Options{JetStream: true, Users: []*natsserver.User{alice, bob}}
		srv := testserver.Start(t, opts)
		u := newCaller(t).with("SERVER="+address(srv), "PASSWORD="+password)
		removed(t, u.with("USER=alice"), u.with("USER=bob"), "check --user", func() {
			later := opts.Clone()
			later.Users = []*natsserver.User{bob}
			if err := srv.ReloadOptions(later); err != nil {
				t.Fatal(err)
			}
		})
	})
}

func removed(t *testing.T, u, other *caller, advice string, remove func()) {
	holder := u.start("run", "k", "--ttl", "2s", "--", self(t), "child", "TERM")
	holder.ready()
	waiter := u.start("run", "k", "--ttl", "2s", "--", "true")
	eventually(t, "waiter", func() bool {
		p := other.start("--output", "json", "inspect", "k")
		var out strings.Builder
		for p.lines.Scan() {
			out.WriteString(p.lines.Text())
		}
		p.exits(0)
		return strings.Contains(out.String(), `"queued"`)
	})
	remove()
	waiter.exits(77)
	if text := waiter.err.String(); !strings.Contains(text, advice) {
		t.Errorf("the waiter wrote %q", text)
	}
	holder.expect("got TERM")
	holder.exits(76)
	if text := holder.err.String(); !strings.Contains(text, "the server refuses the credentials") || !strings.Contains(text, "lost") {
		t.Errorf("the holder wrote %q", text)
	}
	other.start("run", "k", "--", "true").exits(0)
	for _, s := range u.secrets {
		if strings.Contains(waiter.err.String()+holder.err.String(), s) {
			t.Errorf("the secret %q was written", s)
		}
	}
}
