package embedded

import (
	"bytes"
	"net"
)

// greeting is the client's end of a connection inside the process. Such a
// connection has no buffer: a server that refuses the client's CONNECT has
// something to say while the client still writes the PING that comes after it,
// and each would wait for the other until the server gives up, ten seconds later.
// So the two go out in one piece. A client writes them in turn, before it reads
// or anything else writes.
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
