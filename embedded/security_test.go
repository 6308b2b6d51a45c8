package embedded_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/test/testca"
)

// The hash of "hashed", at the least cost there is.
const bcryptHash = "$2a$04$s9h5caN1Du61mMq0Xs.lpO5BTRujwjXNhPFRXV8xBlzl2snr5mroO"

const loopback = "127.0.0.1:0"

// allowed opens a connection over the listener.
func allowed(t *testing.T, s *embedded.Server, who string, opts ...nats.Option) {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), opts...)
	if err != nil {
		t.Errorf("%s: %v", who, err)
		return
	}
	nc.Close()
}

func refused(t *testing.T, s *embedded.Server, who string, opts ...nats.Option) {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), opts...)
	if err == nil {
		nc.Close()
		t.Errorf("%s was let in", who)
	}
}

func newKey(t *testing.T) (public string, opt nats.Option) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return public, nats.Nkey(public, pair.Sign)
}

func TestUsersAndNKeys(t *testing.T) {
	public, alice := newKey(t)
	_, mallory := newKey(t)
	s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback),
		embedded.WithUser("bob", "secret"), embedded.WithUser("carol", bcryptHash), embedded.WithNKey(public))
	if !s.Auth() || s.TLS() {
		t.Errorf("auth %v, tls %v", s.Auth(), s.TLS())
	}
	allowed(t, s, "bob", nats.UserInfo("bob", "secret"))
	allowed(t, s, "carol, whose password is a hash", nats.UserInfo("carol", "hashed"))
	allowed(t, s, "a known key", alice)
	refused(t, s, "nobody")
	refused(t, s, "a wrong password", nats.UserInfo("bob", "guess"))
	refused(t, s, "another's password", nats.UserInfo("carol", "secret"))
	refused(t, s, "the hash as password", nats.UserInfo("carol", bcryptHash))
	refused(t, s, "an unknown user", nats.UserInfo("dave", "secret"))
	refused(t, s, "an unknown key", mallory)
	createBucket(t, connect(t, s.Connect), 1)
	// A caller's own credentials count, right or wrong.
	connect(t, s.Connect, nats.UserInfo("bob", "secret"))
	if nc, err := s.Connect(nats.UserInfo("bob", "guess")); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("wrong password in the process: %v", err)
		nc.Close()
	}
}

// sees reports whether these credentials see the servers of the system account, and
// whether they see JetStream.
func sees(t *testing.T, s *embedded.Server, who nats.Option) (servers, locks bool) {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), who)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, serr := nc.Request("$SYS.REQ.SERVER.PING.JSZ", nil, testTimeout)
	reply, lerr := nc.Request("$JS.API.INFO", nil, 500*time.Millisecond) // not allowed is not answered
	return serr == nil, lerr == nil && !strings.Contains(string(reply.Data), `"error"`)
}

// forbidden wants that these credentials may neither publish nor subscribe there.
func forbidden(t *testing.T, s *embedded.Server, subject string, who nats.Option) {
	t.Helper()
	errs := make(chan error, 2)
	nc, err := nats.Connect(s.ClientURL(), who, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { errs <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, err = nc.SubscribeSync(subject)
	if err = errors.Join(err, nc.Publish(strings.ReplaceAll(subject, ">", "x"), nil), nc.Flush()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case err := <-errs:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", subject, err)
			}
		case <-testContext(t).Done():
			t.Fatalf("%s is allowed", subject)
		}
	}
}

// A server that is given users of the system account, and others besides, lets in
// strangers unless it is told that these others were meant.
func TestSystemUser(t *testing.T) {
	public, alice := newKey(t)
	for name, tt := range map[string]struct {
		opt embedded.Option
		who nats.Option
	}{
		"user": {embedded.WithUser("bob", "secret"), nats.UserInfo("bob", "secret")},
		"key":  {embedded.WithNKey(public), alice},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback), tt.opt, embedded.WithSystemUser("sys", "hushhush"))
			for range 2 {
				refused(t, s, "nobody")
				refused(t, s, "a wrong password", nats.UserInfo("sys", "secret"))
				if servers, locks := sees(t, s, nats.UserInfo("sys", "hushhush")); !servers || locks {
					t.Errorf("the system user sees servers: %v, locks: %v", servers, locks)
				}
				for _, subject := range []string{"$JS.API.ACCOUNT.PURGE.$G", "$NRG.>", "$SYS.REQ.SERVER." + s.Name() + ".KICK"} {
					forbidden(t, s, subject, nats.UserInfo("sys", "hushhush"))
				}
				if servers, locks := sees(t, s, tt.who); servers || !locks {
					t.Errorf("another one sees servers: %v, locks: %v", servers, locks)
				}
				connect(t, s.Connect)
				if err := s.Reload(); err != nil {
					t.Fatal(err)
				}
			}
			if !s.Auth() {
				t.Error("it does not say that it needs credentials")
			}
		})
	}
	s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback), embedded.WithSystemUser("sys", "hushhush"))
	if s.Auth() {
		t.Error("it says that it needs credentials")
	}
	if servers, locks := sees(t, s, func(*nats.Options) error { return nil }); servers || !locks {
		t.Errorf("a stranger sees servers: %v, locks: %v", servers, locks)
	}
	createBucket(t, connect(t, s.Connect), 1)
	if _, err := embedded.Start(testContext(t), embedded.WithTempStore(), embedded.WithListen("0.0.0.0:0"), embedded.WithSystemUser("sys", "hushhush")); !errors.Is(err, embedded.ErrInvalidOption) {
		t.Errorf("with a system user alone it is open to other hosts: %v", err)
	}
}

func TestOnlyNKeys(t *testing.T) {
	public, alice := newKey(t)
	s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback), embedded.WithNKey(public))
	allowed(t, s, "a known key", alice)
	refused(t, s, "nobody")
	refused(t, s, "a user", nats.UserInfo("a", "b"))
	createBucket(t, connect(t, s.Connect), 1)
}

// The key of Connect opens nothing from outside, should it ever get there.
func TestInternalKey(t *testing.T) {
	s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback), embedded.WithToken("t"))
	refused(t, s, "the internal key", s.InternalKey())
	connect(t, s.Connect, s.InternalKey())
}

func TestTLS(t *testing.T) {
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback), embedded.WithTLS(cert, key), embedded.WithUser("bob", "secret"))
	if !strings.HasPrefix(s.ClientURL(), "tls://127.0.0.1:") || !s.TLS() || !s.Auth() {
		t.Errorf("url %s, tls %v, auth %v", s.ClientURL(), s.TLS(), s.Auth())
	}
	allowed(t, s, "bob", nats.RootCAs(ca.File), nats.UserInfo("bob", "secret"))
	refused(t, s, "a wrong password", nats.RootCAs(ca.File), nats.UserInfo("bob", "guess"))
	refused(t, s, "a client that trusts others", nats.RootCAs(testca.New(t).File), nats.UserInfo("bob", "secret"))
	createBucket(t, connect(t, s.Connect), 1) // needs neither
}

func TestMutualTLS(t *testing.T) {
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback), embedded.WithTLS(cert, key), embedded.WithClientCA(ca.File))
	if !s.TLS() || !s.Auth() {
		t.Errorf("tls %v, auth %v", s.TLS(), s.Auth())
	}
	allowed(t, s, "a client with a certificate", nats.RootCAs(ca.File), nats.ClientCert(ca.Issue(t, "client")))
	refused(t, s, "a client without", nats.RootCAs(ca.File))
	refused(t, s, "a client of another authority", nats.RootCAs(ca.File), nats.ClientCert(testca.New(t).Issue(t, "client")))
	createBucket(t, connect(t, s.Connect), 1)
}

func TestReloadCertificates(t *testing.T) {
	ca, other := testca.New(t), testca.New(t)
	cert, key := ca.Issue(t, "server")
	s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback), embedded.WithTLS(cert, key), embedded.WithUser("bob", "secret"))
	inside, err := s.Connect(nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	bob := nats.UserInfo("bob", "secret")
	allowed(t, s, "bob", nats.RootCAs(ca.File), bob)

	newCert, newKey := other.Issue(t, "server")
	for from, to := range map[string]string{newCert: cert, newKey: key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	allowed(t, s, "bob before the reload", nats.RootCAs(ca.File), bob)
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	allowed(t, s, "bob", nats.RootCAs(other.File), bob)
	refused(t, s, "bob, who knows the old one", nats.RootCAs(ca.File), bob)
	refused(t, s, "a wrong password", nats.RootCAs(other.File), nats.UserInfo("bob", "guess"))
	createBucket(t, connect(t, s.Connect), 1)
	if inside.IsClosed() {
		t.Error("the reload closed a connection inside the process")
	}

	writeFile(t, cert, "no certificate")
	if err := s.Reload(); !errors.Is(err, embedded.ErrInvalidOption) || !strings.Contains(err.Error(), cert) {
		t.Errorf("reload of a broken certificate: %v", err)
	}
	allowed(t, s, "bob after a failed reload", nats.RootCAs(other.File), bob)
	shutdown(t, s)
	if err := s.Reload(); !errors.Is(err, embedded.ErrStopped) {
		t.Errorf("reload of a stopped server: %v", err)
	}
}

// All that a server in a cluster has stays as it was, and is read again.
func TestReloadInCluster(t *testing.T) {
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	s := start(t, embedded.WithTempStore(), embedded.WithListen(loopback), embedded.WithServerName("n"), embedded.WithMaxStore(1<<20),
		embedded.WithCluster("c", loopback, "127.0.0.1:1", "nats-route://x:y@127.0.0.1:2"), embedded.WithClusterAuth("a", "b"), embedded.WithClusterTLS(cert, key, ca.File))
	for range 2 {
		if err := s.Reload(); err != nil {
			t.Error(err)
		}
	}
}

func TestSecurityOptions(t *testing.T) {
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	_, otherKey := ca.Issue(t, "other")
	text := filepath.Join(t.TempDir(), "text")
	writeFile(t, text, "text")
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := newKey(t)
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	accountKey, _ := account.PublicKey()
	listen := embedded.WithListen(loopback)
	cluster := []embedded.Option{listen, embedded.WithServerName("n"), embedded.WithCluster("c", loopback, "127.0.0.1:1")}
	for name, tt := range map[string]struct {
		opts []embedded.Option
		want string
	}{
		"no name":             {[]embedded.Option{embedded.WithUser("", "p")}, "WithUser"},
		"name with spaces":    {[]embedded.Option{embedded.WithUser("a b", "p")}, "WithUser"},
		"no password":         {[]embedded.Option{embedded.WithUser("a", "")}, "password"},
		"user twice":          {[]embedded.Option{embedded.WithUser("a", "p"), embedded.WithUser("a", "q")}, "twice"},
		"half a hash":         {[]embedded.Option{embedded.WithUser("a", bcryptHash[:30])}, "bcrypt"},
		"token, half a hash":  {[]embedded.Option{embedded.WithToken(bcryptHash[:30])}, "bcrypt"},
		"token and user":      {[]embedded.Option{embedded.WithToken("t"), embedded.WithUser("a", "p")}, "choose one"},
		"system user twice":   {[]embedded.Option{embedded.WithUser("a", "p"), embedded.WithSystemUser("a", "q")}, "twice"},
		"token and system":    {[]embedded.Option{embedded.WithToken("t"), embedded.WithSystemUser("a", "p")}, "choose one"},
		"token and key":       {[]embedded.Option{embedded.WithToken("t"), embedded.WithNKey(public)}, "choose one"},
		"no key":              {[]embedded.Option{embedded.WithNKey()}, "WithNKey"},
		"a seed":              {[]embedded.Option{embedded.WithNKey(string(seed))}, "seed"},
		"an account's key":    {[]embedded.Option{embedded.WithNKey(accountKey)}, "not the public key of a user"},
		"key twice":           {[]embedded.Option{embedded.WithNKey(public, public)}, "twice"},
		"no key file":         {[]embedded.Option{listen, embedded.WithTLS(cert, "")}, "WithTLS"},
		"certificate missing": {[]embedded.Option{listen, embedded.WithTLS(cert+".none", key)}, cert + ".none"},
		"no certificate":      {[]embedded.Option{listen, embedded.WithTLS(text, key)}, text},
		"another's key":       {[]embedded.Option{listen, embedded.WithTLS(cert, otherKey)}, otherKey},
		"TLS, no listener":    {[]embedded.Option{embedded.WithTLS(cert, key)}, "WithListen"},
		"CA alone":            {[]embedded.Option{listen, embedded.WithClientCA(ca.File)}, "WithTLS"},
		"CA empty":            {[]embedded.Option{listen, embedded.WithClientCA("")}, "WithClientCA"},
		"CA missing":          {[]embedded.Option{listen, embedded.WithTLS(cert, key), embedded.WithClientCA(ca.File + ".none")}, ca.File + ".none"},
		"CA is text":          {[]embedded.Option{listen, embedded.WithTLS(cert, key), embedded.WithClientCA(text)}, text},
		"no cluster":          {[]embedded.Option{embedded.WithClusterAuth("a", "p")}, "WithCluster"},
		"no cluster, TLS":     {[]embedded.Option{embedded.WithClusterTLS(cert, key, ca.File)}, "WithCluster"},
		"cluster, no user":    {append(cluster, embedded.WithClusterAuth("", "p")), "WithClusterAuth"},
		"cluster, no pass":    {append(cluster, embedded.WithClusterAuth("a", "")), "WithClusterAuth"},
		"cluster, hash":       {append(cluster, embedded.WithClusterAuth("a", bcryptHash)), "bcrypt"},
		"cluster, no CA":      {append(cluster, embedded.WithClusterTLS(cert, key, "")), "WithClusterTLS"},
		"cluster, bad CA":     {append(cluster, embedded.WithClusterTLS(cert, key, text)), text},
		"routes, no password": {append(cluster, embedded.WithCluster("c", loopback, "nats-route://a@127.0.0.1:1")), "WithClusterAuth"},
		"routes, two users":   {append(cluster, embedded.WithCluster("c", loopback, "nats-route://a:hushhush@127.0.0.1:1", "nats-route://b:hushhush@127.0.0.1:2")), "WithClusterAuth"},
		"bad route":           {append(cluster, embedded.WithCluster("c", loopback, "nats-route://a:hushhush@127.0.0.1")), "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			s, err := embedded.Start(testContext(t), append([]embedded.Option{embedded.WithStoreDir(dir)}, tt.opts...)...)
			if !errors.Is(err, embedded.ErrInvalidOption) || s != nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, %v, want %q", s, err, tt.want)
			}
			for _, secret := range []string{string(seed), "hushhush", bcryptHash[:30]} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the message tells a secret: %v", err)
				}
			}
			if exists(dir) {
				t.Error("something was made on disk")
			}
		})
	}
}

// The server is not started: the store is a file. What counts is how far it gets.
func TestNonLoopbackWithAuthentication(t *testing.T) {
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	public, _ := newKey(t)
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, "")
	everywhere := embedded.WithListen("0.0.0.0:0")
	name := embedded.WithServerName("n")
	for what, opts := range map[string][]embedded.Option{
		"user":        {everywhere, embedded.WithUser("a", "p")},
		"token":       {everywhere, embedded.WithToken("t")},
		"key":         {everywhere, embedded.WithNKey(public)},
		"certificate": {everywhere, embedded.WithTLS(cert, key), embedded.WithClientCA(ca.File)},
		"told to":     {everywhere, embedded.WithAllowNonLoopback()},
		"cluster":     {embedded.WithListen(loopback), name, embedded.WithCluster("c", "0.0.0.0:0", "127.0.0.1:1"), embedded.WithClusterAuth("a", "p")},
		"routes":      {embedded.WithListen(loopback), name, embedded.WithCluster("c", "0.0.0.0:0", "nats-route://a:p@127.0.0.1:1")},
		"cluster TLS": {embedded.WithListen(loopback), name, embedded.WithCluster("c", "0.0.0.0:0", "127.0.0.1:1"), embedded.WithClusterTLS(cert, key, ca.File)},
	} {
		if _, err := embedded.Start(testContext(t), append(opts, embedded.WithStoreDir(file))...); !errors.Is(err, embedded.ErrStartFailed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, tt := range map[string]struct {
		opts []embedded.Option
		want embedded.OpenListenerError
	}{
		"TLS alone":         {[]embedded.Option{embedded.WithListen("192.0.2.1:4222"), embedded.WithTLS(cert, key)}, embedded.OpenListenerError{Listener: "client", Addr: "192.0.2.1:4222"}},
		"only clients auth": {[]embedded.Option{everywhere, name, embedded.WithUser("a", "p"), embedded.WithCluster("c", "192.0.2.1:6222", "127.0.0.1:1")}, embedded.OpenListenerError{Listener: "cluster", Addr: "192.0.2.1:6222"}},
		"only cluster auth": {[]embedded.Option{everywhere, name, embedded.WithCluster("c", loopback, "127.0.0.1:1"), embedded.WithClusterAuth("a", "p")}, embedded.OpenListenerError{Listener: "client", Addr: "0.0.0.0:0"}},
	} {
		_, err := embedded.Start(testContext(t), append(tt.opts, embedded.WithStoreDir(file))...)
		var open *embedded.OpenListenerError
		if !errors.Is(err, embedded.ErrInvalidOption) || !errors.As(err, &open) || *open != tt.want {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
