package chaos

import (
	"bytes"
	"net"
	"time"

	"github.com/nats-io/nats.go"
)

// WithoutCAS breaks a connection on purpose: the expected revision of every
// write is made unreadable on its way to the server, which then stores
// every write. It works on TCP without TLS.
func WithoutCAS() nats.Option {
	return nats.SetCustomDialer(blindDialer{})
}

type blindDialer struct{}

func (blindDialer) Dial(network, address string) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return blindConn{conn}, nil
}

// Of the same length, so that the sizes in the protocol stay right. The client
// hands over whole messages, so the name is never cut in two.
var (
	expectedRevision = []byte("\r\nNats-Expected-Last-Subject-Sequence:")
	ignoredHeader    = []byte("\r\nXats-Expected-Last-Subject-Sequence:")
)

type blindConn struct{ net.Conn }

func (c blindConn) Write(b []byte) (int, error) {
	return c.Conn.Write(bytes.ReplaceAll(b, expectedRevision, ignoredHeader))
}
