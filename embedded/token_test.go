package embedded_test

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/embedded"
)

func TestToken(t *testing.T) {
	s := start(t, embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"), embedded.WithToken("open sesame"))
	for _, opts := range [][]nats.Option{nil, {nats.Token("guess")}, {nats.UserInfo("open sesame", "")}} {
		nc, err := nats.Connect(s.ClientURL(), opts...)
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("connected without the token: %v", err)
			nc.Close()
		}
	}
	connect(t, func(opts ...nats.Option) (*nats.Conn, error) { return nats.Connect(s.ClientURL(), opts...) }, nats.Token("open sesame"))
	connect(t, s.Connect)
}
