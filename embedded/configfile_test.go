package embedded_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/test/testca"
)

// confFile writes a configuration; $STORE in it is a fresh directory.
func confFile(t *testing.T, text string) (path, store string) {
	t.Helper()
	dir := t.TempDir()
	path, store = filepath.Join(dir, "nats.conf"), filepath.Join(dir, "store")
	writeFile(t, path, strings.ReplaceAll(text, "$STORE", fmt.Sprintf("%q", store)))
	return path, store
}

const plainConf = `
server_name: one
listen: "127.0.0.1:-1"
jetstream { store_dir: $STORE }
`

func TestConfigFile(t *testing.T) {
	path, store := confFile(t, plainConf)
	s := start(t, embedded.WithConfigFile(path))
	if s.Name() != "one" || s.StoreDir() != store || s.Auth() || s.TLS() {
		t.Errorf("name %q, store %q, auth %v, tls %v", s.Name(), s.StoreDir(), s.Auth(), s.TLS())
	}
	if !s.SyncsAlways() {
		t.Error("writes are not synced, and the file does not say so")
	}
	allowed(t, s, "anybody")
	put(t, createBucket(t, connect(t, s.Connect), 1), "k")
	// The store is one server's, by whatever way it is named.
	for _, o := range []embedded.Option{embedded.WithStoreDir(store), embedded.WithConfigFile(path)} {
		var inUse *embedded.StoreInUseError
		if _, err := embedded.Start(testContext(t), o); !errors.As(err, &inUse) || inUse.URL != s.ClientURL() {
			t.Errorf("second server on the store: %v", err)
		}
	}
}

func TestConfigFileSync(t *testing.T) {
	const noStore = `listen: "127.0.0.1:-1"`
	for name, tt := range map[string]struct {
		text   string
		opts   []embedded.Option
		always bool
		warned bool
	}{
		"says nothing":       {noStore, nil, true, false},
		"with interval":      {noStore + "\njetstream { sync_interval: \"1m\" }", nil, false, true},
		"with always":        {noStore + "\njetstream { sync_interval: always }", nil, true, false},
		"interval by option": {noStore, []embedded.Option{embedded.WithSync(embedded.SyncInterval(testTimeout))}, false, false},
		"always by option":   {noStore, []embedded.Option{embedded.WithSync(embedded.SyncAlways)}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := confFile(t, tt.text)
			var out syncBuffer
			s := start(t, append(tt.opts, embedded.WithConfigFile(path), embedded.WithTempStore(), embedded.WithLogger(slog.New(slog.NewTextHandler(&out, nil))))...)
			if s.SyncsAlways() != tt.always {
				t.Errorf("synced always: %v", s.SyncsAlways())
			}
			if strings.Contains(out.String(), "sync_interval=1m0s") != tt.warned || strings.Contains(out.String(), "level=WARN") != tt.warned {
				t.Errorf("log:\n%s", out.String())
			}
		})
	}
}

func TestConfigFileAuthentication(t *testing.T) {
	public, alice := newKey(t)
	for name, tt := range map[string]struct {
		text string
		good nats.Option
		bad  []nats.Option
	}{
		"token":        {`authorization { token: "s3cret" }`, nats.Token("s3cret"), []nats.Option{nats.Token("x"), nats.UserInfo("a", "s3cret")}},
		"hashed token": {`authorization { token: "` + bcryptHash + `" }`, nats.Token("hashed"), []nats.Option{nats.Token("x")}},
		"one user":     {`authorization { user: a, password: b }`, nats.UserInfo("a", "b"), []nats.Option{nats.UserInfo("a", "x")}},
		"users":        {`authorization { users: [ { user: a, password: b }, { nkey: ` + public + ` } ] }`, nats.UserInfo("a", "b"), []nats.Option{nats.UserInfo("a", "x")}},
		"nkey":         {`authorization { users: [ { nkey: ` + public + ` } ] }`, alice, []nats.Option{nats.UserInfo("a", "x")}},
		"system":       {`accounts { SYS { users: [ { user: a, password: b } ] } }` + "\nsystem_account: SYS\nauthorization { users: [ { user: c, password: d } ] }", nats.UserInfo("c", "d"), []nats.Option{nats.UserInfo("a", "x")}},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := confFile(t, plainConf+tt.text)
			s := start(t, embedded.WithConfigFile(path))
			if !s.Auth() {
				t.Error("it does not say that it needs credentials")
			}
			allowed(t, s, "who has credentials", tt.good)
			refused(t, s, "nobody")
			for _, o := range tt.bad {
				refused(t, s, "a stranger", o)
			}
			createBucket(t, connect(t, s.Connect), 1)
		})
	}
}

func TestConfigFileAccounts(t *testing.T) {
	const accounts = `
accounts {
  APP { jetstream: enabled, users: [ { user: app, password: secret } ] }
  OTHER { users: [ { user: other, password: secret } ] }
}
`
	path, _ := confFile(t, plainConf+accounts)
	s := start(t, embedded.WithConfigFile(path))
	if nc, err := s.Connect(); !errors.Is(err, embedded.ErrCredentials) || !strings.Contains(err.Error(), "nats.UserInfo") {
		t.Errorf("without credentials: %v", err)
		nc.Close()
	}
	if nc, err := s.Connect(nats.UserInfo("app", "guess")); !errors.Is(err, nats.ErrAuthorization) || errors.Is(err, embedded.ErrCredentials) {
		t.Errorf("wrong password: %v", err)
		nc.Close()
	}
	put(t, createBucket(t, connect(t, s.Connect, nats.UserInfo("app", "secret")), 1), "k")

	path, _ = confFile(t, plainConf+accounts+"no_auth_user: app\n")
	s = start(t, embedded.WithConfigFile(path))
	if s.Auth() {
		t.Error("everybody is let in, and it says otherwise")
	}
	createBucket(t, connect(t, s.Connect), 1)
}

func TestConfigFileReload(t *testing.T) {
	path, _ := confFile(t, plainConf)
	conf := readFile(t, path)
	writeFile(t, path, conf+`authorization { users: [ { user: a, password: b } ] }`)
	s := start(t, embedded.WithConfigFile(path))
	allowed(t, s, "a", nats.UserInfo("a", "b"))
	writeFile(t, path, conf+`authorization { users: [ { user: c, password: d } ] }`)
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	allowed(t, s, "c", nats.UserInfo("c", "d"))
	refused(t, s, "a, who is gone", nats.UserInfo("a", "b"))
	createBucket(t, connect(t, s.Connect), 1)
	if !s.SyncsAlways() {
		t.Error("writes are not synced any more")
	}
	writeFile(t, path, "nonsense {")
	if err := s.Reload(); !errors.Is(err, embedded.ErrInvalidOption) {
		t.Errorf("reload of nonsense: %v", err)
	}
	writeFile(t, path, strings.Replace(conf, "127.0.0.1:-1", "0.0.0.0:4222", 1))
	var open *embedded.OpenListenerError
	if err := s.Reload(); !errors.As(err, &open) {
		t.Errorf("reload that opens the server: %v", err)
	}
	writeFile(t, path, strings.Replace(conf, "store_dir: ", "sync_interval: \"1m\", store_dir: ", 1))
	if err := s.Reload(); !errors.Is(err, embedded.ErrReload) {
		t.Errorf("reload of what needs a restart: %v", err)
	}
	writeFile(t, path, conf+`authorization { users: [ { user: c, password: d } ] }
websocket { listen: "127.0.0.1:-1", no_tls: true, authorization { user: w, password: hushhush } }`)
	if err := s.Reload(); !errors.Is(err, embedded.ErrReload) || strings.Contains(err.Error(), "hushhush") {
		t.Errorf("reload with another listener: %v", err)
	}
	allowed(t, s, "c", nats.UserInfo("c", "d"))
}

func TestConfigFileErrors(t *testing.T) {
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	const listen = "listen: \"127.0.0.1:-1\"\n"
	for name, tt := range map[string]struct {
		text string
		opts []embedded.Option
		want string
	}{
		"broken":              {"port: 4222\n\njetstream {\n  store_dir: \"x\"\n", nil, "line 5"},
		"unknown field":       {listen + "nonsense: 1\n" + "jetstream { store_dir: $STORE }", nil, "nats.conf:2:"},
		"bad value":           {listen + "jetstream { store_dir: $STORE,\n sync_interval: sometimes }", nil, "nats.conf:3:"},
		"no JetStream":        {listen, nil, "does not enable JetStream"},
		"JetStream disabled":  {listen + "store_dir: $STORE", nil, "does not enable JetStream"},
		"no store":            {listen + "jetstream: enabled", nil, "store_dir"},
		"two stores":          {plainConf, []embedded.Option{embedded.WithStoreDir("x")}, "WithStoreDir"},
		"temporary store":     {plainConf, []embedded.Option{embedded.WithTempStore()}, "WithTempStore"},
		"two names":           {plainConf, []embedded.Option{embedded.WithServerName("two")}, "server_name"},
		"two syncs":           {listen + "jetstream { store_dir: $STORE, sync_interval: \"1m\" }", []embedded.Option{embedded.WithSync(embedded.SyncAlways)}, "sync_interval"},
		"listen":              {plainConf, []embedded.Option{embedded.WithListen(loopback)}, "WithListen"},
		"token":               {plainConf, []embedded.Option{embedded.WithToken("t")}, "WithToken"},
		"user":                {plainConf, []embedded.Option{embedded.WithUser("a", "b")}, "WithUser"},
		"TLS":                 {plainConf, []embedded.Option{embedded.WithTLS(cert, key)}, "WithTLS"},
		"CA":                  {plainConf, []embedded.Option{embedded.WithClientCA(ca.File)}, "WithClientCA"},
		"limit":               {plainConf, []embedded.Option{embedded.WithMaxStore(1)}, "WithMaxStore"},
		"memory limit":        {plainConf, []embedded.Option{embedded.WithMaxMemory(1)}, "WithMaxMemory"},
		"cluster":             {plainConf, []embedded.Option{embedded.WithCluster("c", loopback, "127.0.0.1:1")}, "WithCluster"},
		"cluster auth":        {plainConf, []embedded.Option{embedded.WithClusterAuth("a", "b")}, "WithClusterAuth"},
		"cluster TLS":         {plainConf, []embedded.Option{embedded.WithClusterTLS(cert, key, ca.File)}, "WithClusterTLS"},
		"certificate missing": {plainConf + "tls { cert_file: none, key_file: none }", nil, "nats.conf:"},
	} {
		t.Run(name, func(t *testing.T) {
			path, store := confFile(t, tt.text)
			s, err := embedded.Start(testContext(t), append(tt.opts, embedded.WithConfigFile(path))...)
			if !errors.Is(err, embedded.ErrInvalidOption) || s != nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("got %v, %v, want %q", s, err, tt.want)
			}
			if exists(store) {
				t.Error("something was made on disk")
			}
		})
	}
	for _, path := range []string{"", filepath.Join(t.TempDir(), "none")} {
		if _, err := embedded.Start(testContext(t), embedded.WithConfigFile(path)); !errors.Is(err, embedded.ErrInvalidOption) {
			t.Errorf("file %q: %v", path, err)
		}
	}
	for word, text := range map[string]string{
		"route":   `cluster { routes: [ "nats-route://a:hushhush@host:port" ] }`,
		"gateway": `gateway { name: g, listen: "127.0.0.1:-1", gateways: [ { name: h, url: "nats://a:hush hushhush@host" } ] }`,
		"seed":    `leafnodes { remotes: [ { url: "nats-leaf://host", nkey: "SUAhushhushHUSHHUSHHUSHHUSHHUSH" } ] }`,
	} {
		path, _ := confFile(t, plainConf+text)
		if _, err := embedded.Start(testContext(t), embedded.WithConfigFile(path)); !errors.Is(err, embedded.ErrInvalidOption) || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "hush") {
			t.Errorf("a %s that can't be read: %v", word, err)
		}
	}
	// What only the server finds is an error of the file, too.
	path, _ := confFile(t, strings.Replace(plainConf, "server_name: one", "cluster { name: c, listen: \"127.0.0.1:-1\" }", 1))
	if _, err := embedded.Start(testContext(t), embedded.WithConfigFile(path)); !errors.Is(err, embedded.ErrInvalidOption) {
		t.Errorf("cluster without a name: %v", err)
	}
}

// What other hosts reach, and who gets in there. Nothing is started: the context
// has ended, or the check comes first.
func TestConfigFileNonLoopback(t *testing.T) {
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	tls := fmt.Sprintf("cert_file: %q, key_file: %q", cert, key)
	verify := tls + fmt.Sprintf(", ca_file: %q, verify: true", ca.File)
	const everywhere, jetstream, sys = "port: 4222\n", "\njetstream { store_dir: $STORE }\n", "accounts { SYS { users: [ { user: a, password: b } ] } }\nsystem_account: SYS\n"
	const users = "authorization { users: [ { user: a, password: b } ] }\n"
	const inner, web = "listen: \"127.0.0.1:4222\"\n", "websocket { port: 8080, no_tls: true, authorization { user: w, password: b } "
	for name, tt := range map[string]struct{ text, open string }{
		"nothing":                    {everywhere, "client"},
		"empty host":                 {"", "client"},
		"TLS without verify":         {everywhere + "tls { " + tls + " }", "client"},
		"verify of any authority":    {everywhere + "tls { " + tls + ", verify: true }", "client"},
		"verify where TLS optional":  {everywhere + "allow_non_tls: true\ntls { " + verify + " }", "client"},
		"verify":                     {everywhere + "tls { " + verify + " }", ""},
		"users":                      {everywhere + users, ""},
		"user":                       {everywhere + "authorization { user: a, password: b }", ""},
		"token":                      {everywhere + "authorization { token: t }", ""},
		"users and no_auth_user":     {everywhere + users + "no_auth_user: a", "client"},
		"accounts":                   {everywhere + "accounts { A { users: [ { user: a, password: b } ] } }", ""},
		"accounts and no_auth_user":  {everywhere + "accounts { A { users: [ { user: a, password: b } ] } }\nno_auth_user: a", "client"},
		"system account only":        {everywhere + sys, "client"},
		"accounts without users":     {everywhere + "accounts { A { jetstream: enabled } }", "client"},
		"cluster":                    {inner + "cluster { name: c, port: 6222 }", "cluster"},
		"cluster, clients asked":     {inner + users + "cluster { name: c, port: 6222 }", "cluster"},
		"cluster with authorization": {inner + "cluster { name: c, port: 6222, authorization { user: a, password: b } }", ""},
		"cluster with TLS":           {inner + "cluster { name: c, port: 6222, tls { " + verify + " } }", ""},
		"cluster, TLS of anybody":    {inner + "cluster { name: c, port: 6222, tls { " + tls + " } }", "cluster"},
		"websocket":                  {inner + "websocket { port: 8080, no_tls: true }", "websocket"},
		"websocket, users":           {inner + users + "websocket { port: 8080, no_tls: true }", ""},
		"websocket, no_auth_user":    {inner + users + "websocket { port: 8080, no_tls: true, no_auth_user: a }", "websocket"},
		"mqtt":                       {inner + "server_name: n\nmqtt { port: 1883 }", "mqtt"},
		"mqtt, users":                {inner + users + "server_name: n\nmqtt { port: 1883 }", ""},
		"leafnodes":                  {inner + "leafnodes { port: 7422 }", "leafnodes"},
		"leafnodes, users":           {inner + "leafnodes { port: 7422, authorization { user: a, password: b } }", ""},
		"gateway":                    {inner + "gateway { name: g, port: 7222 }", "gateway"},
		"gateway, user":              {inner + "gateway { name: g, port: 7222, authorization { user: a, password: b } }", ""},
		"empty list of users":        {everywhere + "authorization { users: [] }", "client"},
		"permissions only":           {everywhere + "authorization { default_permissions { publish: a } }", "client"},
		"profiling":                  {everywhere + users + "prof_port: 6060", "profiling"},
		"profiling on loopback":      {inner + "prof_port: 6060", ""},
		"monitoring":                 {inner + "http_port: 8222", ""},

		// A name is no secret, unless the certificate says it.
		"user, no password":           {everywhere + "authorization { user: a }", "client"},
		"one of users, no password":   {everywhere + "authorization { users: [ { user: a, password: b }, { user: c, password: \"\" } ] }", "client"},
		"system user, no password":    {everywhere + "accounts { SYS { users: [ { user: s } ] } }\nsystem_account: SYS\n" + users, "client"},
		"certificate says the name":   {everywhere + "tls { " + tls + fmt.Sprintf(", ca_file: %q, verify_and_map: true", ca.File) + " }\nauthorization { users: [ { user: a } ] }", ""},
		"cluster, no password":        {inner + "cluster { name: c, port: 6222, authorization { user: a } }", "cluster"},
		"gateway, no password":        {inner + "gateway { name: g, port: 7222, authorization { user: a } }", "gateway"},
		"leafnodes, no password":      {inner + "leafnodes { port: 7422, authorization { user: a } }", "leafnodes"},
		"leafnodes, one no password":  {inner + users + "leafnodes { port: 7422, authorization { users: [ { user: a } ] } }", "leafnodes"},
		"websocket, no password":      {inner + "websocket { port: 8080, no_tls: true, authorization { user: a } }", "websocket"},
		"mqtt, no password":           {inner + "server_name: n\nmqtt { port: 1883, authorization { user: a } }", "mqtt"},
		"websocket, user of its own":  {inner + web + "}", ""},
		"websocket and leafnodes":     {inner + web + "}\nleafnodes { listen: \"127.0.0.1:7422\" }", "websocket"},
		"websocket, leafnodes asked":  {inner + web + "}\nleafnodes { listen: \"127.0.0.1:7422\", authorization { user: a, password: b } }", ""},
		"websocket and mqtt":          {inner + web + "}\nserver_name: n\nmqtt { listen: \"127.0.0.1:1883\" }", "websocket"},
		"websocket, mqtt asked":       {inner + web + "}\nserver_name: n\nmqtt { listen: \"127.0.0.1:1883\", authorization { user: a, password: b } }", ""},
		"websocket, mqtt no_auth":     {inner + users + "websocket { port: 8080, no_tls: true }\nserver_name: n\nmqtt { listen: \"127.0.0.1:1883\", no_auth_user: a }", "websocket"},
		"websocket, own certificates": {inner + "websocket { port: 8080, tls { " + verify + " } }\nleafnodes { listen: \"127.0.0.1:7422\" }", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path, store := confFile(t, tt.text+jetstream)
			// Where it is accepted, the store stops it: it is a file.
			writeFile(t, store, "")
			_, err := embedded.Start(testContext(t), embedded.WithConfigFile(path))
			var open *embedded.OpenListenerError
			switch {
			case tt.open == "" && !errors.Is(err, embedded.ErrStartFailed):
				t.Errorf("refused: %v", err)
			case tt.open != "" && (!errors.As(err, &open) || open.Listener != tt.open || open.File != path):
				t.Errorf("not refused as %s: %v", tt.open, err)
			}
			if _, err := embedded.Start(testContext(t), embedded.WithConfigFile(path), embedded.WithAllowNonLoopback()); !errors.Is(err, embedded.ErrStartFailed) {
				t.Errorf("refused although allowed: %v", err)
			}
		})
	}
}

// Who has written users, and is refused, is told what is wrong with them.
func TestConfigFileNonLoopbackReason(t *testing.T) {
	const users = "authorization { users: [ { user: a, password: b } ] }\n"
	for reason, text := range map[string]string{
		"":                              "",
		"no_auth_user":                  users + "no_auth_user: a",
		`user "c" has no password`:      "authorization { user: c }",
		"only the system account":       "accounts { SYS { users: [ { user: a, password: b } ] } }\nsystem_account: SYS",
		"leafnodes come in there, too,": "listen: \"127.0.0.1:4222\"\nwebsocket { port: 8080, no_tls: true, authorization { user: w, password: b } }\nleafnodes { listen: \"127.0.0.1:7422\" }",
	} {
		path, _ := confFile(t, text+"\njetstream { store_dir: $STORE }\n")
		_, err := embedded.Start(testContext(t), embedded.WithConfigFile(path))
		var open *embedded.OpenListenerError
		if !errors.As(err, &open) || !strings.Contains(open.Reason, reason) || (open.Reason == "") != (reason == "") || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Monitoring can't ask anybody. The address is of the range for documentation, so
// that the server can't start on it.
func TestConfigFileMonitoring(t *testing.T) {
	for addr, want := range map[string]int{"127.0.0.1:-1": 0, "192.0.2.1:8222": 1} {
		path, _ := confFile(t, plainConf+fmt.Sprintf("http: %q\n", addr))
		for _, o := range [][]embedded.Option{nil, {embedded.WithAllowNonLoopback()}} {
			var out syncBuffer
			s, err := embedded.Start(testContext(t), append(o, embedded.WithConfigFile(path), embedded.WithLogger(slog.New(slog.NewTextHandler(&out, nil))))...)
			if err == nil {
				s.Kill()
			}
			if got := strings.Count(out.String(), "monitoring asks nobody"); got != want {
				t.Errorf("%s: %d warnings, want %d:\n%s", addr, got, want, out.String())
			}
			want = 0 // who is told to let everybody in needs no warning
		}
	}
}

// Without TLS on an address that others reach a warning is due, once. The address
// is of the range for documentation, so that the server can't start on it.
func TestWarnings(t *testing.T) {
	for name, tt := range map[string]struct {
		opts []embedded.Option
		want int
	}{
		"loopback":     {[]embedded.Option{embedded.WithListen("127.0.0.1:0")}, 0},
		"no TLS":       {[]embedded.Option{embedded.WithListen("192.0.2.1:0")}, 1},
		"with TLS":     {[]embedded.Option{embedded.WithListen("192.0.2.1:0"), tlsOption(t)}, 0},
		"cluster, too": {[]embedded.Option{embedded.WithListen("192.0.2.1:0"), embedded.WithServerName("n"), embedded.WithCluster("c", "192.0.2.1:0", "127.0.0.1:1"), embedded.WithClusterAuth("a", "b")}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var out syncBuffer
			s, err := embedded.Start(testContext(t), append(tt.opts, embedded.WithTempStore(), embedded.WithUser("a", bcryptHash),
				embedded.WithLogger(slog.New(slog.NewTextHandler(&out, nil))))...)
			if err == nil {
				s.Kill()
			}
			if got := strings.Count(out.String(), "no TLS"); got != tt.want {
				t.Errorf("%d warnings, want %d:\n%s", got, tt.want, out.String())
			}
			if strings.Contains(out.String(), bcryptHash) {
				t.Error("a secret is in the log")
			}
		})
	}
}

func tlsOption(t *testing.T) embedded.Option {
	cert, key := testca.New(t).Issue(t, "server")
	return embedded.WithTLS(cert, key)
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
