//go:build unix

package main

import (
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/lockfabric/lockfabric/internal/test/testca"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

func TestUserAndPassword(t *testing.T) {
	t.Parallel()
	at := address(testserver.Start(t, &natsserver.Options{JetStream: true, Username: "alice", Password: password}))
	u := newCaller(t)
	u.context("right", map[string]any{"url": at, "user": "alice", "password": password})
	u.context("wrong", map[string]any{"url": at, "user": "alice", "password": wrong})
	u.context("url", map[string]any{"url": "nats://" + url.UserPassword("alice", wrong).String() + "@" + at})
	u.context("two", map[string]any{"url": at, "user": "alice", "password": password, "token": token})
	u.context("none", map[string]any{"url": at})
	u.context("env", map[string]any{"url": at, "user": "alice", "password": "env://LOCKFABRIC_X"})
	with := func(secret string) string { return "nats://" + url.UserPassword("alice", secret).String() + "@" + at }

	u.with("PASSWORD="+password).gets(0, "", "--server", at, "--user", "alice")
	u.with("PASSWORD="+wrong).gets(77, `check --user`, "--server", at, "--user", "alice")
	u.gets(0, "", "--server", at, "--user", "alice", "--password", password)
	u.gets(0, "", "--server", with(password))
	u.gets(77, "check the credentials in --server", "--server", with(wrong))
	u.gets(77, "no credentials were given", "--server", at)
	u.gets(0, "", "--context", "right")
	u.gets(77, `check the credentials of context "wrong"`, "--context", "wrong")
	u.gets(77, `check the credentials of context "url"`, "--context", "url")
	u.with("X="+password).gets(0, "", "--context", "env")
	u.gets(64, `"LOCKFABRIC_X" is not set`, "--context", "env")

	// What wins over what.
	u.with("PASSWORD="+password).gets(0, "", "--context", "wrong", "--user", "alice")
	u.with("PASSWORD="+password).gets(0, "", "--context", "url", "--user", "alice")
	u.with("PASSWORD="+password).gets(0, "", "--context", "two", "--user", "alice")
	u.with("PASSWORD="+password).gets(0, "", "--context", "none", "--user", "alice")
	u.gets(0, "", "--context", "wrong", "--server", with(password))
	u.gets(0, "", "--context", "right", "--server", at)
	u.gets(69, "check --server", "--context", "right", "--server", "127.0.0.1:1")
	u.with("SERVER=127.0.0.1:1").gets(0, "", "--context", "right")
	u.with("CONTEXT=right", "SERVER=127.0.0.1:1").gets(69, "check --server")
	u.with("CONTEXT=right").gets(0, "")
	u.with("CONTEXT=right").gets(77, "no credentials were given", "--server", at)
	u.with("PASSWORD="+password, "AUTH_TOKEN="+token).gets(0, "", "--server", at, "--user", "alice")
	u.with("USER=alice", "PASSWORD="+password, "AUTH_TOKEN="+token).gets(64, "--user and --token contradict", "--server", at)

	// The fencing token of a run is no secret for the server of a command in it.
	u.with("SERVER="+at, "USER=alice", "PASSWORD="+password).start("run", "outer", "--", self(t), "run", "inner", "--", "true").exits(0)

	// What makes no sense.
	u.gets(64, "several kinds of credentials, user and token", "--context", "two")
	u.gets(64, "--user given, but no server", "--user", "alice", "--password", password)
	u.with("AUTH_TOKEN="+token).gets(64, "--token given, but no server")
	u.gets(64, "--tlsfirst given, but no server", "--tlsfirst")
	u.gets(64, "without a password", "--server", at, "--user", "alice")
	u.gets(64, "without --user", "--server", at, "--password", password)
	u.gets(64, "contradict", "--server", with(password), "--token", token)
	u.gets(64, "URL 2 can't be read", "--server", at+",nats://alice:%hush-hush-token-hush-hush-2@"+at)
	u.gets(64, "URL 1 can't be read", "--server", "nats://alice:"+password+"@"+at)
	u.gets(64, "URL 1 can't be read", "--server", "nats://"+token+"#@"+at)
	for _, flag := range []string{"--password", "--token"} {
		u.gets(64, flag+": give a value, after a = if it begins with a dash", "--server", at, flag, "-"+password)
	}
	u.gets(64, "names no server", "--server", " , ")
}

func TestToken(t *testing.T) {
	t.Parallel()
	at := address(testserver.Start(t, &natsserver.Options{JetStream: true, Authorization: token}))
	u := newCaller(t)
	u.context("right", map[string]any{"url": at, "token": token})
	u.context("data", map[string]any{"url": at, "token": "data:;base64," + base64.StdEncoding.EncodeToString([]byte(token+"\n"))})
	u.context("file", map[string]any{"url": at, "token": "file://" + file(t, "token", token+"\n")})
	u.context("wrong", map[string]any{"url": at, "token": wrong})
	u.with("AUTH_TOKEN="+token).gets(0, "", "--server", at)
	u.with("AUTH_TOKEN="+wrong).gets(77, "check --token", "--server", at)
	u.gets(0, "", "--server", at, "--token", token)
	u.gets(0, "", "--server", token+"@"+at)
	u.gets(77, "check the credentials in --server", "--server", wrong+"@"+at)
	for _, name := range []string{"right", "data", "file"} {
		u.gets(0, "", "--context", name)
	}
	u.gets(77, `context "wrong"`, "--context", "wrong")
}

func TestNKey(t *testing.T) {
	t.Parallel()
	_, public, seed := keyPair(t, nkeys.CreateUser)
	_, _, other := keyPair(t, nkeys.CreateUser)
	_, _, account := keyPair(t, nkeys.CreateAccount)
	at := address(testserver.Start(t, &natsserver.Options{JetStream: true, Nkeys: []*natsserver.NkeyUser{{Nkey: public}}}))
	u := newCaller(t)
	u.secrets = append(u.secrets, seed, other, account)
	good, bad := file(t, "good.nk", seed), file(t, "bad.nk", other)
	u.context("right", map[string]any{"url": at, "nkey": good})
	u.context("data", map[string]any{"url": at, "nkey": "data:;base64," + base64.StdEncoding.EncodeToString([]byte(seed))})
	u.context("wrong", map[string]any{"url": at, "nkey": bad})
	u.context("missing", map[string]any{"url": at, "nkey": good + "x"})
	u.gets(0, "", "--server", at, "--nkey", good)
	u.with("NKEY="+good).gets(0, "", "--server", at)
	u.gets(77, "check --nkey", "--server", at, "--nkey", bad)
	u.gets(64, "--nkey: open "+good+"x", "--server", at, "--nkey", good+"x")
	u.gets(64, "not what is in it", "--server", at, "--nkey", seed)
	no := file(t, "no.nk", account)
	u.gets(64, no, "--server", at, "--nkey", no)
	u.gets(0, "", "--context", "right")
	u.gets(0, "", "--context", "data")
	u.gets(77, `context "wrong"`, "--context", "wrong")
	u.gets(64, `context "missing": nkey: open `+good+"x", "--context", "missing")
}

func TestCreds(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	at := address(o.srv)
	good, token, seed, _ := o.user(nil)
	expired, _, _, _ := o.user(func(c *jwt.UserClaims) { c.Expires = time.Now().Add(-time.Minute).Unix() })
	bearer, bearerToken, _, _ := o.user(func(c *jwt.UserClaims) { c.BearerToken = true })
	stranger, _, _, _ := newOperator(t).user(nil)
	u := newCaller(t)
	u.secrets = append(u.secrets, token, seed, bearerToken)
	path := file(t, "good.creds", good)
	u.context("right", map[string]any{"url": at, "creds": path, "description": "d", "color_scheme": "cyan"})
	u.context("home", map[string]any{"url": at, "creds": "$LOCKFABRIC_X/good.creds"})
	u.context("data", map[string]any{"url": at, "creds": "data:;base64," + base64.StdEncoding.EncodeToString([]byte(good))})
	u.context("jwt", map[string]any{"url": at, "user_jwt": token, "user_seed": seed})
	u.context("bearer", map[string]any{"url": at, "user_jwt": bearerToken})
	u.context("wrong", map[string]any{"url": at, "creds": file(t, "x.creds", stranger)})
	u.context("seed", map[string]any{"url": at, "user_seed": seed})
	u.gets(0, "", "--server", at, "--creds", path)
	u.with("CREDS="+path).gets(0, "", "--server", at)
	u.gets(0, "", "--server", at, "--creds", file(t, "bearer.creds", bearer))
	u.gets(77, "check --creds", "--server", at, "--creds", file(t, "x.creds", stranger))
	u.gets(77, "check --creds", "--server", at, "--creds", file(t, "old.creds", expired))
	u.gets(77, "no credentials were given", "--server", at)
	u.gets(64, "--creds: open "+path+"x", "--server", at, "--creds", path+"x")
	u.gets(64, "--creds: give a value, after a = if it begins with a dash", "--server", at, "--creds", good)
	for _, text := range []string{"", "hello", seed, token} {
		no := file(t, "no.creds", text)
		u.gets(64, "credentials "+no, "--server", at, "--creds", no)
	}
	for _, name := range []string{"right", "data", "jwt", "bearer"} {
		u.gets(0, "", "--context", name)
	}
	u.with("X="+filepath.Dir(path)).gets(0, "", "--context", "home")
	u.gets(77, `context "wrong"`, "--context", "wrong")
	u.gets(77, "check --creds", "--context", "right", "--creds", file(t, "x.creds", stranger))
	u.gets(64, `"user_seed" needs "user_jwt"`, "--context", "seed")
}

func TestContextFiles(t *testing.T) {
	t.Parallel()
	at := server.ClientURL()
	u := newCaller(t)
	u.gets(64, `no context "x": there are none in`, "--context", "x")
	u.context("open", map[string]any{"url": at})
	u.context("plain", map[string]any{})
	u.gets(0, "", "--context", "open")
	u.gets(0, "", "--context", filepath.Join(u.env["XDG_CONFIG_HOME"], "nats", "context", "open.json"))
	u.gets(64, `no context "x": there are open, plain`, "--context", "x")
	u.gets(64, `no context "x"`, "--context", "x", "--server", at)
	u.gets(64, "neither a name nor a .json file", "--context", "../context/open")
	for field, value := range map[string]string{
		"jetstream_domain": "hub", "jetstream_api_prefix": "$JS.x.API", "jetstream_event_prefix": "x", "socks_proxy": "socks5://u:" + token + "@127.0.0.1:1",
		"nsc": "nsc://a/b/c", "windows_cert_store": "user", "brand_new": token,
	} {
		u.context("odd", map[string]any{"url": at, field: value})
		u.gets(64, `"`+field+`"`, "--context", "odd")
	}
	u.context("odd", map[string]any{"url": at, "brand_new": ""})
	u.gets(0, "", "--context", "odd")
	u.context("odd", map[string]any{"url": at, "token": "op://vault/" + token})
	u.gets(64, "op:// references", "--context", "odd")
	u.context("odd", map[string]any{"url": at, "cert": "x"})
	u.gets(64, `"cert" and "key" belong together`, "--context", "odd")
	u.rawContext("odd", `{"url": "`+token)
	u.gets(64, "no JSON object", "--context", "odd")
	u.rawContext("odd", `{"token": 5}`)
	u.gets(64, `"token" is no string`, "--context", "odd")
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca, foreign := testca.New(t), testca.New(t)
	plain := func(*natsserver.Options) {}
	at := address(tlsServer(t, ca, "127.0.0.1", plain))
	misnamed := address(tlsServer(t, ca, "elsewhere.example", plain))
	u := newCaller(t)
	u.context("right", map[string]any{"url": at, "ca": ca.File})
	u.context("wrong", map[string]any{"url": at, "ca": foreign.File})
	u.gets(0, "", "--server", at, "--tlsca", ca.File)
	u.with("TLSCA="+ca.File).gets(0, "", "--server", "tls://"+at)
	u.gets(69, "name the certificate of that authority with --tlsca", "--server", at)
	u.gets(69, "is not signed by those in "+foreign.File, "--server", at, "--tlsca", foreign.File)
	u.gets(69, "the certificate is for other names", "--server", misnamed, "--tlsca", ca.File)
	u.gets(69, "the server offers no TLS", "--server", server.ClientURL(), "--tlsca", ca.File)
	u.gets(69, "leave out --tlsfirst", "--server", at, "--tlsca", ca.File, "--tlsfirst")
	u.gets(64, ca.File+"x", "--server", at, "--tlsca", ca.File+"x")
	no := file(t, "no.pem", "hello")
	u.gets(64, no, "--server", at, "--tlsca", no)
	u.gets(0, "", "--context", "right")
	u.gets(69, foreign.File, "--context", "wrong")
	u.gets(0, "", "--context", "wrong", "--tlsca", ca.File)

	first := address(tlsServer(t, ca, "127.0.0.1", func(o *natsserver.Options) { o.TLSHandshakeFirst = true }))
	u.context("first", map[string]any{"url": first, "ca": ca.File, "tls_first": true})
	u.gets(0, "", "--server", first, "--tlsca", ca.File, "--tlsfirst")
	u.with("TLSFIRST=true").gets(0, "", "--server", first, "--tlsca", ca.File)
	u.gets(0, "", "--context", "first")
	u.gets(69, "a server that begins with TLS needs --tlsfirst", "--server", first, "--tlsca", ca.File, "--timeout", "1s")
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	ca, foreign := testca.New(t), testca.New(t)
	at := address(tlsServer(t, ca, "127.0.0.1", func(o *natsserver.Options) {
		o.TLSVerify = true
		o.TLSConfig.ClientAuth = tls.RequireAndVerifyClientCert
	}))
	cert, key := ca.Issue(t, "alice")
	otherCert, otherKey := foreign.Issue(t, "alice")
	u := newCaller(t)
	u.context("right", map[string]any{"url": at, "ca": ca.File, "cert": cert, "key": key})
	u.context("wrong", map[string]any{"url": at, "ca": ca.File, "cert": otherCert, "key": otherKey})
	u.context("mixed", map[string]any{"url": at, "ca": ca.File, "cert": cert, "key": otherKey})
	u.gets(0, "", "--server", at, "--tlsca", ca.File, "--tlscert", cert, "--tlskey", key)
	u.with("TLSCA="+ca.File, "TLSCERT="+cert, "TLSKEY="+key).gets(0, "", "--server", at)
	u.gets(69, "give one with --tlscert and --tlskey", "--server", at, "--tlsca", ca.File)
	u.gets(69, "the server may refuse the certificate "+otherCert, "--server", at, "--tlsca", ca.File, "--tlscert", otherCert, "--tlskey", otherKey)
	u.gets(64, "--tlscert and --tlskey belong together", "--server", at, "--tlscert", cert)
	u.gets(64, cert+"x", "--server", at, "--tlscert", cert+"x", "--tlskey", key)
	u.gets(64, otherKey, "--server", at, "--tlscert", cert, "--tlskey", otherKey)
	u.gets(0, "", "--context", "right")
	u.gets(69, otherCert, "--context", "wrong")
	u.gets(64, otherKey, "--context", "mixed")
}

func TestServersThatCannotLock(t *testing.T) {
	t.Parallel()
	u := newCaller(t)
	u.gets(69, "JetStream is not enabled", "--server", address(testserver.Start(t, &natsserver.Options{})))
	mute := testserver.Start(t, &natsserver.Options{})
	nc, err := nats.Connect(mute.ClientURL())
	if err == nil {
		t.Cleanup(nc.Close)
		_, err = nc.Subscribe("$JS.API.>", func(*nats.Msg) {})
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	u.gets(69, "JetStream did not answer within --timeout=2s", "--server", address(mute), "--timeout", "2s")
	silent := silentServer(t)
	u.gets(69, "no answer within --timeout=300ms", "--server", silent, "--timeout", "300ms")
	u.gets(69, "check --server", "--server", "127.0.0.1:1,"+silent, "--timeout", "300ms")
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	u.gets(69, "an HTTP server answers at nats://127.0.0.1:", "--server", web.Listener.Addr().String(), "--timeout", "1m")
	u.gets(69, "no NATS server", "--server", greetingServer(t), "--timeout", "1m")
}

// The user of docs/inspecting.md takes locks; with less than that the server's
// word is told at once, and not taken for silence.
func TestPermissions(t *testing.T) {
	t.Parallel()
	both := func(subject string) []string {
		return []string{strings.ReplaceAll(subject, "*", "locks"), strings.ReplaceAll(subject, "*", "leases")}
	}
	var publish []string
	for _, s := range []string{"$KV.lockfabric-*.>", "$JS.API.STREAM.INFO.KV_lockfabric-*", "$JS.API.STREAM.MSG.GET.KV_lockfabric-*",
		"$JS.API.CONSUMER.CREATE.KV_lockfabric-*.>", "$JS.API.CONSUMER.DELETE.KV_lockfabric-*.>", "$JS.FC.KV_lockfabric-*.>"} {
		publish = append(publish, both(s)...)
	}
	may := func(publish []string, subscribe ...string) *natsserver.Permissions {
		return &natsserver.Permissions{Publish: &natsserver.SubjectPermission{Allow: publish}, Subscribe: &natsserver.SubjectPermission{Allow: subscribe}}
	}
	without := func(part string) (left []string) {
		for _, s := range publish {
			if !strings.Contains(s, part) {
				left = append(left, s)
			}
		}
		return left
	}
	account := natsserver.NewAccount("locks")
	var users []*natsserver.User
	for name, p := range map[string]*natsserver.Permissions{
		"admin": nil, "user": may(publish, "_INBOX.>"), "private": may(publish, "_mine.>"),
		"deaf": may(publish, "x"), "nothing": may([]string{"x"}, "_INBOX.>"),
		"reader": may(without("$KV.lockfabric-locks"), "_INBOX.>"), "blind": may(without("MSG.GET"), "_INBOX.>"), "unwatched": may(without("CONSUMER.CREATE"), "_INBOX.>"),
		"quiet": may(without("$JS.FC"), "_INBOX.>"),
	} {
		users = append(users, &natsserver.User{Username: name, Password: password, Permissions: p, Account: account})
	}
	srv := testserver.Start(t, &natsserver.Options{JetStream: true, Accounts: []*natsserver.Account{account}, Users: users})
	account, err := srv.LookupAccount("locks")
	if err == nil {
		err = account.EnableJetStream(nil, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	at := address(srv)
	u := newCaller(t)
	as := func(name string) *caller {
		return u.with("SERVER="+at, "USER="+name, "PASSWORD="+password, "INBOX_PREFIX=")
	}
	// The time is long, so that a test that depends on it fails by its own.
	const slow = "--timeout=50s"
	as("user").gets(77, "have them created once", slow)
	as("admin").gets(0, "")
	as("user").gets(0, "")
	as("user").start("run", "k", "--", "true").exits(0)
	as("quiet").start("run", "k", "--", "true").exits(0)
	as("private").gets(77, `Subscription to "_INBOX.`, slow)
	as("private").with("INBOX_PREFIX=_mine").gets(0, "")
	as("private").gets(0, "", "--inbox-prefix", "_mine")
	as("private").gets(64, "inbox prefix", "--inbox-prefix", "a.*")
	u.context("inbox", map[string]any{"url": at, "user": "private", "password": password, "inbox_prefix": "_mine"})
	u.gets(0, "", "--context", "inbox")
	for _, name := range []string{"deaf", "nothing", "blind", "unwatched"} {
		as(name).gets(77, "give this user the permissions", slow)
	}
	p := as("reader").start("run", "k", "--", "true")
	p.exits(77)
	if text := p.err.String(); !strings.Contains(text, "$KV.lockfabric-locks.k") {
		t.Errorf("%s", text)
	}
}
