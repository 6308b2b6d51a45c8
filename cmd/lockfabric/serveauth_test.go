//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/testca"
)

// tempFile writes a file of the test and returns its path.
func tempFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startServe starts a server, in a fresh store unless a file names one, and returns
// what it says when it is ready.
func startServe(t *testing.T, env []string, args ...string) (*proc, serving) {
	t.Helper()
	cmd := bare(t, append([]string{"--output", "json", "--log-level", "warn", "serve"}, args...)...)
	cmd.Env = append(cmd.Env, env...)
	p := start(t, cmd)
	got := p.serving()
	return p, got
}

// object returns the lines up to one that ends a JSON object.
func (p *proc) object() string {
	p.t.Helper()
	var out strings.Builder
	for l := p.line(); l != ""; l = p.line() {
		out.WriteString(l)
		if l == "}" {
			break
		}
	}
	return out.String()
}

// serving reads what serve --output json says when it is ready.
func (p *proc) serving() (ready serving) {
	p.t.Helper()
	if err := json.Unmarshal([]byte(p.object()), &ready); err != nil {
		p.t.Fatalf("%v: %s", err, p.err)
	}
	return ready
}

// lockAt takes a lock there, or reports why that can't be.
func lockAt(t *testing.T, url string, opts ...nats.Option) error {
	t.Helper()
	m, err := fabric.Connect(t.Context(), url, fabric.WithNATS(opts...))
	if err != nil {
		return err
	}
	defer m.Close()
	l, err := m.Acquire(t.Context(), "k")
	if err != nil {
		return err
	}
	return l.Release(t.Context())
}

// admitsOnly wants one of the clients let in and all others not.
func admitsOnly(t *testing.T, url string, good []nats.Option, bad map[string][]nats.Option) {
	t.Helper()
	if err := lockAt(t, url, good...); err != nil {
		t.Errorf("right credentials: %v", err)
	}
	for name, opts := range bad {
		nc, err := nats.Connect(url, opts...)
		if err == nil {
			nc.Close()
			t.Errorf("%s was let in", name)
		}
	}
}

func TestServeUser(t *testing.T) {
	t.Parallel()
	bad := map[string][]nats.Option{
		"nobody":           nil,
		"a wrong password": {nats.UserInfo("bob", "guess")},
		"an unknown user":  {nats.UserInfo("eve", "open sesame")},
	}
	_, s := startServe(t, nil, "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--allow-user", "bob", "--password-file", tempFile(t, "open sesame\n"))
	if !s.Auth || s.TLS || !strings.HasPrefix(s.URL, "nats://") {
		t.Errorf("%+v", s)
	}
	admitsOnly(t, s.URL, []nats.Option{nats.UserInfo("bob", "open sesame")}, bad)
	_, s = startServe(t, []string{passwordEnv + "=open sesame"}, "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--allow-user", "bob")
	admitsOnly(t, s.URL, []nats.Option{nats.UserInfo("bob", "open sesame")}, bad)
}

func TestServeToken(t *testing.T) {
	t.Parallel()
	_, s := startServe(t, nil, "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--token-file", tempFile(t, "open sesame"))
	admitsOnly(t, s.URL, []nats.Option{nats.Token("open sesame")}, map[string][]nats.Option{"nobody": nil, "a wrong token": {nats.Token("guess")}})
}

// userKey returns a public key and the way to prove to have the private one.
func userKey(t *testing.T) (string, nats.Option) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return public, nats.Nkey(public, pair.Sign)
}

func TestServeNkeys(t *testing.T) {
	t.Parallel()
	alice, asAlice := userKey(t)
	bob, asBob := userKey(t)
	_, asEve := userKey(t)
	_, s := startServe(t, nil, "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--allow-nkey", alice, "--allow-nkey", bob)
	for _, o := range []nats.Option{asAlice, asBob} {
		admitsOnly(t, s.URL, []nats.Option{o}, map[string][]nats.Option{"nobody": nil, "an unknown key": {asEve}})
	}
}

func TestServeTLS(t *testing.T) {
	t.Parallel()
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	p, s := startServe(t, nil, "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key)
	if s.Auth || !s.TLS || !strings.HasPrefix(s.URL, "tls://") {
		t.Errorf("%+v", s)
	}
	admitsOnly(t, s.URL, []nats.Option{nats.RootCAs(ca.File)}, map[string][]nats.Option{"who trusts others": {nats.RootCAs(testca.New(t).File)}})

	// A new certificate counts after a SIGHUP.
	next := testca.New(t)
	newCert, newKey := next.Issue(t, "server")
	for from, to := range map[string]string{newCert: cert, newKey: key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	p.signal(syscall.SIGHUP)
	eventually(t, "server with the new certificate", func() bool {
		nc, err := nats.Connect(s.URL, nats.RootCAs(next.File))
		if err != nil {
			return false
		}
		nc.Close()
		return true
	})
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	eventually(t, "word of a reload that failed", func() bool { return strings.Contains(p.err.String(), cert) })
	if text := p.err.String(); !strings.Contains(text, "--tls-cert") || strings.Contains(text, "WithTLS") {
		t.Errorf("word of a reload that failed: %s", text)
	}
	if err := lockAt(t, s.URL, nats.RootCAs(next.File)); err != nil {
		t.Errorf("after a reload that failed: %v", err)
	}
	p.signal(killable)
	p.exits(0)
}

func TestServeMutualTLS(t *testing.T) {
	t.Parallel()
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	_, s := startServe(t, nil, "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--tls-ca", ca.File, "--tls-verify")
	if !s.Auth || !s.TLS {
		t.Errorf("%+v", s)
	}
	admitsOnly(t, s.URL, []nats.Option{nats.RootCAs(ca.File), nats.ClientCert(ca.Issue(t, "client"))}, map[string][]nats.Option{
		"a client without a certificate":    {nats.RootCAs(ca.File)},
		"a client with one of other people": {nats.RootCAs(ca.File), nats.ClientCert(testca.New(t).Issue(t, "client"))},
	})
}

func TestServeConfig(t *testing.T) {
	t.Parallel()
	store := filepath.Join(t.TempDir(), "store")
	conf := tempFile(t, fmt.Sprintf(`
listen: "127.0.0.1:-1"
jetstream { store_dir: %q, sync_interval: "1m" }
accounts { APP { jetstream: enabled, users: [ { user: app, password: secret } ] } }
`, store))
	p, s := startServe(t, nil, "--config", conf)
	if !s.Auth || s.TLS || s.Store != store {
		t.Errorf("%+v", s)
	}
	admitsOnly(t, s.URL, []nats.Option{nats.UserInfo("app", "secret")}, map[string][]nats.Option{"nobody": nil, "a wrong password": {nats.UserInfo("app", "guess")}})
	if log := p.err.String(); strings.Count(log, "sync_interval") != 2 || !strings.Contains(log, `"1m0s"`) {
		t.Errorf("not one warning about sync_interval:\n%s", log)
	}
	if code, _, stderr := run(t, bare(t, "serve", "--config", conf)); code != 69 || !strings.Contains(stderr, "in use") {
		t.Errorf("second server: exit code %d, %s", code, stderr)
	}
	p.signal(killable)
	p.exits(0)

	// With a store and a name from the command line, and nothing said of sync.
	plain := tempFile(t, `listen: "127.0.0.1:-1"`)
	p, s = startServe(t, nil, "--config", plain, "--store", store, "--name", "n", "--idle-exit", "1h")
	if s.Auth || s.Store != store || p.err.String() != "" {
		t.Errorf("%+v, %s", s, p.err)
	}
	if err := lockAt(t, s.URL); err != nil {
		t.Error(err)
	}
}

func TestServeSecurityUsage(t *testing.T) {
	t.Parallel()
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	public, _ := userKey(t)
	store := t.TempDir()
	secret := tempFile(t, "hushhush")
	conf := tempFile(t, fmt.Sprintf("listen: \"127.0.0.1:-1\"\njetstream { store_dir: %q }\n", store))
	none := filepath.Join(t.TempDir(), "none")
	own := []string{"--store", store, "--listen", "127.0.0.1:0"}
	cluster := slices.Concat(own, []string{"--name", "n", "--cluster-listen", "127.0.0.1:0", "--routes", "127.0.0.1:1"})
	for name, tt := range map[string]struct {
		env  string
		args []string
		want string
	}{
		"user, no password":       {"", append(own, "--allow-user", "bob"), "--password-file"},
		"password, no user":       {"", append(own, "--password-file", secret), "--allow-user"},
		"password in the air":     {passwordEnv + "=hushhush", own, "--allow-user"},
		"password missing":        {"", append(own, "--allow-user", "bob", "--password-file", none), none},
		"password empty":          {"", append(own, "--allow-user", "bob", "--password-file", tempFile(t, "\n")), "empty"},
		"two passwords":           {"", append(own, "--allow-user", "bob", "--password-file", tempFile(t, "hushhush\nb\n")), "more than one line"},
		"bad name":                {"", append(own, "--allow-user", "b b", "--password-file", secret), "name"},
		"token missing":           {"", append(own, "--token-file", none), none},
		"token and user":          {"", append(own, "--token-file", secret, "--allow-user", "bob", "--password-file", secret), "choose one"},
		"token and key":           {"", append(own, "--token-file", secret, "--allow-nkey", public), "choose one"},
		"no key":                  {"", append(own, "--allow-nkey", "bob"), "public key"},
		"certificate alone":       {"", append(own, "--tls-cert", cert), "--tls-key"},
		"certificate missing":     {"", append(own, "--tls-cert", none, "--tls-key", key), none},
		"CA alone":                {"", append(own, "--tls-cert", cert, "--tls-key", key, "--tls-ca", ca.File), "--tls-verify"},
		"verify alone":            {"", append(own, "--tls-cert", cert, "--tls-key", key, "--tls-verify"), "--tls-ca"},
		"verify without TLS":      {"", append(own, "--tls-verify", "--tls-ca", ca.File), "--tls-cert"},
		"CA is none":              {"", append(own, "--tls-cert", cert, "--tls-key", key, "--tls-verify", "--tls-ca", secret), secret},
		"TLS, open":               {"", []string{"--store", store, "--listen", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key}, "--allow-remote"},
		"cluster open":            {"", append(own, "--name", "n", "--cluster-listen", "0.0.0.0:0", "--routes", "127.0.0.1:1"), "--cluster-user or --cluster-tls-cert"},
		"no cluster":              {"", append(own, "--cluster-user", "c"), "--cluster-listen"},
		"cluster, no password":    {"", slices.Concat(cluster, []string{"--cluster-user", "c"}), "--cluster-password-file"},
		"cluster, no user":        {"", slices.Concat(cluster, []string{"--cluster-password-file", secret}), "--cluster-user"},
		"cluster, password in":    {clusterPasswordEnv + "=hushhush", cluster, "--cluster-user"},
		"cluster, missing":        {"", slices.Concat(cluster, []string{"--cluster-user", "c", "--cluster-password-file", none}), none},
		"password in a route":     {"", append(own, "--name", "n", "--cluster-listen", "127.0.0.1:0", "--routes", "127.0.0.1:1,nats-route://a:hushhush@127.0.0.1:2"), "--cluster-password-file"},
		"cluster, half of TLS":    {"", slices.Concat(cluster, []string{"--cluster-tls-cert", cert, "--cluster-tls-key", key}), "--cluster-tls-ca"},
		"cluster, broken TLS":     {"", slices.Concat(cluster, []string{"--cluster-tls-cert", cert, "--cluster-tls-key", key, "--cluster-tls-ca", secret}), secret},
		"config missing":          {"", []string{"--config", none}, none},
		"config broken":           {"", []string{"--config", tempFile(t, "jetstream {\n")}, "line 2"},
		"config, bad field":       {"", []string{"--config", tempFile(t, "\n\nnonsense: 1\n"), "--store", store}, ":3:"},
		"config, no JetStream":    {"", []string{"--config", tempFile(t, `listen: "127.0.0.1:-1"`)}, "JetStream"},
		"config, open":            {"", []string{"--config", tempFile(t, "port: 4222"), "--store", store}, "--allow-remote"},
		"config and store":        {"", []string{"--config", conf, "--store", store}, "both its store_dir and --store"},
		"config and listen":       {"", []string{"--config", conf, "--listen", "127.0.0.1:0"}, "--listen"},
		"config and user":         {"", []string{"--config", conf, "--allow-user", "bob"}, "--allow-user"},
		"config and system user":  {"", []string{"--config", conf, "--system-user", "sys"}, "--system-user"},
		"token and system user":   {"", []string{"--store", store, "--token-file", secret, "--system-user", "sys", "--system-password-file", secret}, "--system-user"},
		"system user, nothing":    {"", []string{"--store", store, "--system-user", "sys"}, systemPasswordEnv},
		"config and token":        {"", []string{"--config", conf, "--token-file", secret}, "--token-file"},
		"config and key":          {"", []string{"--config", conf, "--allow-nkey", public}, "--allow-nkey"},
		"config and TLS":          {"", []string{"--config", conf, "--tls-cert", cert}, "--tls-cert"},
		"config and routes":       {"", []string{"--config", conf, "--routes", "127.0.0.1:1"}, "--routes"},
		"config and cluster":      {"", []string{"--config", conf, "--cluster-user", "c"}, "--cluster-user"},
		"config and a password":   {passwordEnv + "=hushhush", []string{"--config", conf}, passwordEnv},
		"config and bad interval": {"", []string{"--config", conf, "--sync", "sometimes"}, "--sync"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := bare(t, append([]string{"serve"}, tt.args...)...)
			cmd.Env = append(cmd.Env, tt.env)
			code, stdout, stderr := run(t, cmd)
			if code != 64 || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit code %d, %q, %q, want %q", code, stdout, stderr, tt.want)
			}
			if strings.Contains(stderr, "With") {
				t.Errorf("the message is about the library: %s", stderr)
			}
			if strings.Contains(stderr, "hushhush") {
				t.Errorf("the message tells a secret: %s", stderr)
			}
		})
	}
}

func TestServeSecureCluster(t *testing.T) {
	t.Parallel()
	ca, others := testca.New(t), testca.New(t)
	cert, key := ca.Issue(t, "server")
	otherCert, otherKey := others.Issue(t, "server")
	routes := freeAddrs(t, 4)
	dir := t.TempDir()
	node := func(i int, auth ...string) (*proc, serving) {
		return startServe(t, nil, append(auth, "--store", filepath.Join(dir, fmt.Sprint(i)), "--listen", "127.0.0.1:0", "--name", fmt.Sprintf("node%d", i),
			"--cluster-listen", routes[i], "--routes", strings.Join(routes[:3], ","), "--allow-user", "bob", "--password-file", tempFile(t, "open sesame"), "--system-user", "sys", "--system-password-file", tempFile(t, "hushhush"))...)
	}
	login := []string{"--cluster-user", "fabric", "--cluster-password-file", tempFile(t, "rosebud")}
	tls := []string{"--cluster-tls-cert", cert, "--cluster-tls-key", key, "--cluster-tls-ca", ca.File}
	var urls []string
	var nodes []*proc
	for i := range 3 {
		p, s := node(i, append(login, tls...)...)
		nodes, urls = append(nodes, p), append(urls, s.URL)
	}
	bob := nats.UserInfo("bob", "open sesame")
	eventually(t, "lock from the cluster", func() bool { return lockAt(t, strings.Join(urls, ","), bob) == nil })

	// It has all that doctor looks at, and doctor can see that.
	var code int
	var stdout, stderr string
	eventually(t, "no finding of doctor", func() bool { // the last replica may be catching up
		cmd := bare(t, "--server", strings.Join(urls, ","), "--user", "bob", "doctor", "--strict")
		cmd.Env = append(cmd.Env, "LOCKFABRIC_PASSWORD=open sesame", "LOCKFABRIC_SYSTEM_SERVER="+strings.Replace(urls[0], "://", "://sys:hushhush@", 1))
		code, stdout, stderr = run(t, cmd)
		return code == 0
	})
	if strings.Count(stdout, ", sync always\n") != 3 || stderr != "" {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}

	// Each stranger knows where the others are. They say that they refuse it, and
	// it stays alone: without a majority it has no JetStream.
	for name, tt := range map[string]struct {
		auth []string
		word string
	}{
		"wrong password":              {append([]string{"--cluster-user", "fabric", "--cluster-password-file", tempFile(t, "guess")}, tls...), "authentication error"},
		"no password":                 {tls, "authentication error"},
		"no TLS":                      {login, "handshake error"},
		"certificate of other people": {append(login[:4:4], "--cluster-tls-cert", otherCert, "--cluster-tls-key", otherKey, "--cluster-tls-ca", ca.File), "handshake error"},
	} {
		before := make([]int, len(nodes))
		for i, p := range nodes {
			before[i] = strings.Count(p.err.String(), tt.word)
		}
		p, s := node(3, tt.auth...)
		eventually(t, name+": word of a refusal", func() bool {
			for i, p := range nodes {
				if strings.Count(p.err.String(), tt.word) > before[i] {
					return true
				}
			}
			return false
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		_, err := fabric.Connect(ctx, s.URL, fabric.WithNATS(bob))
		cancel()
		if err == nil {
			t.Errorf("%s: it serves locks", name)
		}
		p.signal(killable)
		p.exits(0)
	}
	if err := lockAt(t, strings.Join(urls, ","), bob); err != nil {
		t.Error(err)
	}
	for _, p := range nodes {
		if strings.Contains(p.err.String(), "rosebud") {
			t.Error("the password is in the log")
		}
	}
}
