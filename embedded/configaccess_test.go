package embedded_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

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
