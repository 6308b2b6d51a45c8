package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/nats-io/nats.go"
)

// Connect opens a connection inside the process; no listener is needed, nor TLS. Where clients need credentials it
// brings its own, unless opts have some. The caller has to give some only in the accounts of a configuration file or
// of an operator, or where that file has other users for websocket or mqtt: ErrCredentials. It fails with ErrStopped
// after Shutdown. The caller closes the connection.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	if s.stopping.Load() {
		return nil, ErrStopped
	}
	// Last, so that no option of the caller leads to another server.
	opts = append(opts[:len(opts):len(opts)], nats.InProcessServer(s))
	given, err := credentialsGiven(opts)
	if err != nil {
		return nil, err
	}
	a := s.access.Load()
	if !given && a.internal {
		opts = append(opts, s.identity.option())
	}
	nc, err := nats.Connect("", opts...)
	switch {
	case err == nil:
		return nc, nil
	case !given && a.accounts && errors.Is(err, nats.ErrAuthorization):
		return nil, fmt.Errorf("%w: the configuration file says whom to let in; pass nats options with credentials of one, such as nats.UserInfo: %w", ErrCredentials, err)
	default:
		return nil, fmt.Errorf("embedded: connect: %w", err)
	}
}

// InProcessConn opens a raw connection inside the process. With it a Server can be given to nats.InProcessServer;
// where clients need credentials, the caller has to give them then.
func (s *Server) InProcessConn() (net.Conn, error) {
	conn, err := s.srv.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStopped, err)
	}
	return &greeting{Conn: conn}, nil
}

// ClientURL returns the URL for clients in other processes of this host, without credentials: "nats://...", or
// "tls://..." where TLS is needed. It is empty when the server has no listener.
func (s *Server) ClientURL() string {
	a, ok := s.addr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "127.0.0.1" // listening everywhere is no address to dial
	}
	scheme := "nats://"
	if s.TLS() {
		scheme = "tls://"
	}
	return scheme + net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// TLS reports whether clients from outside the process have to use TLS.
func (s *Server) TLS() bool { return s.access.Load().tls }

// Auth reports whether clients from outside the process have to say who they are, by credentials or by a certificate.
func (s *Server) Auth() bool { return s.access.Load().auth }

// greeting is the client's end of a connection inside the process. Such a connection has no buffer: a server that
// refuses the client's CONNECT has something to say while the client still writes the PING that comes after it, and
// each would wait for the other until the server gives up, ten seconds later. So the two go out in one piece. A
// client writes them in turn, before it reads or anything else writes.
type greeting struct {
	net.Conn
	held []byte
	done bool
}

func (g *greeting) Write(p []byte) (int, error) {
	switch {
	case g.done:
		return g.Conn.Write(p)
	case g.held == nil && bytes.HasPrefix(p, []byte("CONNECT ")):
		g.held = bytes.Clone(p)
		return len(p), nil
	}
	g.done = true
	if g.held == nil {
		return g.Conn.Write(p)
	}
	n, err := g.Conn.Write(append(g.held, p...))
	return max(n-len(g.held), 0), err
}
