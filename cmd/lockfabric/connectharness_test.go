//go:build unix

package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/lockfabric/lockfabric/internal/test/testca"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

// Secrets that no output may show.
const (
	password = "pass-word/hush:1"
	token    = "token-hush-hush-2"
	wrong    = "wrong-hush-hush-3"
)

// address is that of a server without anything before it.
func address(srv *natsserver.Server) string { return srv.Addr().String() }

// caller is what one command line has around it.
type caller struct {
	t       *testing.T
	env     map[string]string
	secrets []string
}

func newCaller(t *testing.T) *caller {
	return &caller{t, map[string]string{"XDG_CONFIG_HOME": t.TempDir()}, []string{password, token, wrong}}
}

// with returns the same user with more variables, "NAME=value" under LOCKFABRIC_.
func (u *caller) with(vars ...string) *caller {
	more := &caller{u.t, maps.Clone(u.env), u.secrets}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		more.env["LOCKFABRIC_"+name] = value
	}
	return more
}

// context writes a context of the nats command.
func (u *caller) context(name string, settings map[string]any) {
	u.t.Helper()
	data, err := json.Marshal(settings)
	if err != nil {
		u.t.Fatal(err)
	}
	u.rawContext(name, string(data))
}

func (u *caller) rawContext(name, text string) {
	u.t.Helper()
	dir := filepath.Join(u.env["XDG_CONFIG_HOME"], "nats", "context")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		u.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), []byte(text), 0o600); err != nil {
		u.t.Fatal(err)
	}
}

// start starts a command line of this user.
func (u *caller) start(args ...string) *proc {
	u.t.Helper()
	cmd := bare(u.t, args...)
	for _, name := range []string{"CONTEXT", "CREDS", "NKEY", "USER", "PASSWORD", "AUTH_TOKEN", "TLSCERT", "TLSKEY", "TLSCA", "TLSFIRST", "INBOX_PREFIX"} {
		cmd.Env = append(cmd.Env, "LOCKFABRIC_"+name+"=")
	}
	for _, name := range slices.Sorted(maps.Keys(u.env)) {
		cmd.Env = append(cmd.Env, name+"="+u.env[name])
	}
	return start(u.t, cmd)
}

// gets runs a command line and checks its end: the exit code, the one line, and,
// logging all there is, that no secret gets out.
func (u *caller) gets(code int, want string, args ...string) {
	u.t.Helper()
	for _, more := range [][]string{nil, {"--log-level", "debug", "--output", "json"}} {
		p := u.start(append(append(more[:len(more):len(more)], args...), "ls")...)
		var out strings.Builder
		for p.lines.Scan() {
			out.WriteString(p.lines.Text())
		}
		got, stderr := p.wait(), p.err.String()
		if got != code || !strings.Contains(stderr, want) {
			u.t.Errorf("%q: exit code %d, want %d and %q: %s", args, got, code, want, stderr)
		}
		if more == nil && strings.Count(stderr, "\n") != min(code, 1) {
			u.t.Errorf("%q: not one line: %s", args, stderr)
		}
		for _, s := range u.secrets {
			if strings.Contains(stderr+out.String(), s) {
				u.t.Errorf("%q: the secret %q is in the output: %s", args, s, stderr)
			}
		}
	}
}

// file writes a file of the test.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// keyPair returns an nkey, its public key and its seed.
func keyPair(t *testing.T, create func() (nkeys.KeyPair, error)) (kp nkeys.KeyPair, public, seed string) {
	t.Helper()
	kp, err := create()
	if err != nil {
		t.Fatal(err)
	}
	public, err = kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	text, err := kp.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return kp, public, string(text)
}

// operator is a server whose users come with JWTs.
type operator struct {
	t       *testing.T
	srv     *natsserver.Server
	account nkeys.KeyPair
	system  nkeys.KeyPair // of the system account
	claims  *jwt.AccountClaims
	key     nkeys.KeyPair
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	key, public, _ := keyPair(t, nkeys.CreateOperator)
	oc := jwt.NewOperatorClaims(public)
	if _, err := oc.Encode(key); err != nil {
		t.Fatal(err)
	}
	systemKey, system, _ := keyPair(t, nkeys.CreateAccount)
	o := &operator{t: t, key: key, system: systemKey}
	var own string
	o.account, own, _ = keyPair(t, nkeys.CreateAccount)
	o.claims = jwt.NewAccountClaims(own)
	o.claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	resolver := &natsserver.MemAccResolver{}
	for name, c := range map[string]*jwt.AccountClaims{system: jwt.NewAccountClaims(system), own: o.claims} {
		text, err := c.Encode(key)
		if err == nil {
			err = resolver.Store(name, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	o.srv = testserver.Start(t, &natsserver.Options{JetStream: true, TrustedOperators: []*jwt.OperatorClaims{oc}, AccountResolver: resolver, SystemAccount: system})
	return o
}

// user returns the credentials of a new user, as a file has them, and their parts.
func (o *operator) user(edit func(*jwt.UserClaims)) (creds, token, seed, public string) {
	o.t.Helper()
	return o.userOf(o.account, edit)
}

func (o *operator) userOf(account nkeys.KeyPair, edit func(*jwt.UserClaims)) (creds, token, seed, public string) {
	o.t.Helper()
	_, public, seed = keyPair(o.t, nkeys.CreateUser)
	uc := jwt.NewUserClaims(public)
	if edit != nil {
		edit(uc)
	}
	token, err := uc.Encode(account)
	if err != nil {
		o.t.Fatal(err)
	}
	data, err := jwt.FormatUserConfig(token, []byte(seed))
	if err != nil {
		o.t.Fatal(err)
	}
	return string(data), token, seed, public
}

// revoke makes the server refuse a user from now on.
func (o *operator) revoke(public string) {
	o.t.Helper()
	o.claims.RevokeAt(public, time.Now().Add(time.Second))
	text, err := o.claims.Encode(o.key)
	if err != nil {
		o.t.Fatal(err)
	}
	claims, err := jwt.DecodeAccountClaims(text)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := o.srv.AccountResolver().Store(o.claims.Subject, text); err != nil {
		o.t.Fatal(err)
	}
	account, err := o.srv.LookupAccount(o.claims.Subject)
	if err != nil {
		o.t.Fatal(err)
	}
	o.srv.UpdateAccountClaims(account, claims)
}

// tlsServer runs a server with a certificate of ca for a host.
func tlsServer(t *testing.T, ca *testca.CA, host string, edit func(*natsserver.Options)) *natsserver.Server {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(ca.Issue(t, "server", host))
	if err != nil {
		t.Fatal(err)
	}
	authorities, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authorities)
	opts := &natsserver.Options{
		JetStream: true, TLSTimeout: 5,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, MinVersion: tls.VersionTLS12},
	}
	edit(opts)
	return testserver.Start(t, opts)
}
