package embedded_test

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/lockfabric/lockfabric/embedded"
)

// With a user for one listener alone the server takes no others besides, that of
// Connect neither.
func TestConfigFileOwnListener(t *testing.T) {
	const own = "authorization { user: w, password: hushhush }"
	for name, tt := range map[string]struct {
		text string
		good nats.Option
	}{
		"token and websocket": {"authorization { token: t }\nwebsocket { listen: \"127.0.0.1:-1\", no_tls: true, " + own + " }", nats.Token("t")},
		"user and mqtt":       {"authorization { user: a, password: b }\nmqtt { listen: \"127.0.0.1:-1\", " + own + " }", nats.UserInfo("a", "b")},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := confFile(t, plainConf+tt.text)
			s := start(t, embedded.WithConfigFile(path))
			refused(t, s, "nobody")
			allowed(t, s, "who has credentials", tt.good)
			if nc, err := s.Connect(); !errors.Is(err, embedded.ErrCredentials) {
				nc.Close()
				t.Errorf("without credentials: %v", err)
			}
			createBucket(t, connect(t, s.Connect, tt.good), 1)
			if err := s.Reload(); err != nil {
				t.Error(err)
			}
		})
	}
}

// The server's own reload knows nothing of what is checked and added here. Here it
// would let everybody in, and shut Connect out.
func TestConfigFileReloadBySystemAccount(t *testing.T) {
	path, _ := confFile(t, strings.Replace(plainConf, "store_dir", "sync_interval: always, store_dir", 1)+`
accounts { SYS { users: [ { user: sys, password: secret } ] } }
system_account: SYS
`)
	text := readFile(t, path)
	writeFile(t, path, text+"authorization { users: [ { user: a, password: b } ] }")
	s := start(t, embedded.WithConfigFile(path))
	sys, err := nats.Connect(s.ClientURL(), nats.UserInfo("sys", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	writeFile(t, path, text)
	reply, err := sys.Request("$SYS.REQ.SERVER."+sys.ConnectedServerId()+".RELOAD", nil, time.Minute)
	if err != nil || !strings.Contains(string(reply.Data), "when a file is provided") {
		t.Errorf("reload by the system account: %s, %v", reply.Data, err)
	}
	refused(t, s, "nobody")
	connect(t, s.Connect)
}

// operatorConf returns the configuration of an operator with one account, and the
// credentials of a user of it.
func operatorConf(t *testing.T) (conf string, user nats.Option, userJWT string) {
	t.Helper()
	must := func(s string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	pair := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		t.Helper()
		k, err := create()
		if err != nil {
			t.Fatal(err)
		}
		return k, must(k.PublicKey())
	}
	op, opKey := pair(nkeys.CreateOperator)
	acc, accKey := pair(nkeys.CreateAccount)
	_, sysKey := pair(nkeys.CreateAccount)
	usr, usrKey := pair(nkeys.CreateUser)
	account := jwt.NewAccountClaims(accKey)
	account.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: -1, MemoryStorage: -1, Streams: -1, Consumer: -1}
	userJWT = must(jwt.NewUserClaims(usrKey).Encode(acc))
	conf = fmt.Sprintf("operator: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }\nsystem_account: %s\n",
		must(jwt.NewOperatorClaims(opKey).Encode(op)), accKey, must(account.Encode(op)),
		sysKey, must(jwt.NewAccountClaims(sysKey).Encode(op)), sysKey)
	return conf, nats.UserJWT(func() (string, error) { return userJWT, nil }, usr.Sign), userJWT
}

func TestConfigFileOperator(t *testing.T) {
	conf, user, userJWT := operatorConf(t)
	path, _ := confFile(t, plainConf+conf)
	s := start(t, embedded.WithConfigFile(path))
	if !s.Auth() {
		t.Error("it does not say that it needs credentials")
	}
	allowed(t, s, "who has credentials", user)
	refused(t, s, "nobody")
	refused(t, s, "who has the JWT only", nats.UserJWT(func() (string, error) { return userJWT, nil }, func([]byte) ([]byte, error) { return []byte("x"), nil }))
	if nc, err := s.Connect(); !errors.Is(err, embedded.ErrCredentials) {
		nc.Close()
		t.Errorf("inside, without credentials: %v", err)
	}
	createBucket(t, connect(t, s.Connect, user), 1)
	if err := s.Reload(); err != nil {
		t.Error(err)
	}
	allowed(t, s, "who has credentials, after a reload", user)
}

// What the check of addresses sees is what the server sees.
func TestConfigFileNonLoopbackParts(t *testing.T) {
	conf, _, userJWT := operatorConf(t)
	t.Setenv("LOCKFABRIC_TEST_ADDR", "0.0.0.0:4222")
	t.Setenv("LOCKFABRIC_TEST_NOTHING", "")
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	issuer, _ := account.PublicKey()
	for name, tt := range map[string]struct {
		text string
		open bool
	}{
		"operator":             {"port: 4222\n" + conf, false},
		"operator, sentinel":   {"port: 4222\n" + conf + "default_sentinel: " + userJWT, true},
		"variable":             {"listen: $LOCKFABRIC_TEST_ADDR", true},
		"empty password":       {"authorization { user: a, password: $LOCKFABRIC_TEST_NOTHING }", true},
		"empty token":          {"authorization { token: $LOCKFABRIC_TEST_NOTHING }", true},
		"included":             {"include \"more.conf\"", true},
		"included, with users": {"include \"more.conf\"\nauthorization { user: a, password: b }", false},
		"last one counts":      {"listen: \"127.0.0.1:4222\"\ninclude \"more.conf\"", true},
		"callout":              {"authorization { users: [ { user: a, password: b } ], auth_callout { issuer: " + issuer + ", auth_users: [ a ] } }", false},
		"IPv6":                 {"listen: \"[::]:4222\"", true},
		"IPv6 loopback":        {"listen: \"[::1]:4222\"", false},
		"name":                 {"listen: \"example.com:4222\"", true},
		"short form":           {"listen: \"127.1:4222\"", true},
	} {
		t.Run(name, func(t *testing.T) {
			path, store := confFile(t, tt.text+"\njetstream { store_dir: $STORE }\n")
			writeFile(t, filepath.Join(filepath.Dir(path), "more.conf"), "listen: \"0.0.0.0:4222\"\n")
			writeFile(t, store, "") // stops what is accepted
			_, err := embedded.Start(testContext(t), embedded.WithConfigFile(path))
			var open *embedded.OpenListenerError
			if errors.As(err, &open) != tt.open || !tt.open && !errors.Is(err, embedded.ErrStartFailed) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Logs that would go elsewhere with nats-server are missed without a word.
func TestConfigFileLogsElsewhere(t *testing.T) {
	for _, text := range []string{`log_file: "x.log"`, `syslog: true`, `remote_syslog: "udp://127.0.0.1:1"`} {
		path, _ := confFile(t, plainConf+text)
		var out syncBuffer
		start(t, embedded.WithConfigFile(path), embedded.WithLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))))
		if strings.Count(out.String(), "no effect") != 1 {
			t.Errorf("%s: log %q", text, out.String())
		}
	}
}
