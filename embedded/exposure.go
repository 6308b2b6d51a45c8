package embedded

import (
	"crypto/tls"
	"net"
	"strconv"
	"strings"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// listener is an address that the server opens, and what it asks of those who
// come there.
type listener struct {
	name      string // in the words of the configuration file
	addr      string
	loopback  bool
	auth, tls bool
}

// listeners returns all that give access to locks. Monitoring is not among them:
// it shows the server's state, and changes nothing.
func listeners(o *natsserver.Options) []listener {
	var ls []listener
	add := func(name, host string, port int, auth, tls bool) {
		if port == 0 {
			return
		}
		if host == "" {
			host = natsserver.DEFAULT_HOST
		}
		ls = append(ls, listener{name: name, addr: net.JoinHostPort(host, strconv.Itoa(max(port, 0))), loopback: isLoopback(host), auth: auth, tls: tls})
	}
	asked := asksClients(o)
	if !o.DontListen {
		port := o.Port
		if port == 0 {
			port = natsserver.DEFAULT_PORT
		}
		// Where TLS is optional, a certificate is too.
		tls := o.TLSConfig != nil && !o.AllowNonTLS
		add("client", o.Host, port, asked || tls && verifies(o.TLSConfig), tls)
	}
	c := &o.Cluster
	add("cluster", c.Host, c.Port, c.Username != "" || verifies(c.TLSConfig), c.TLSConfig != nil)
	w := &o.Websocket
	add("websocket", w.Host, w.Port, w.NoAuthUser == "" && (asked || w.Username != "" || w.Token != "") || verifies(w.TLSConfig), w.TLSConfig != nil)
	m := &o.MQTT
	add("mqtt", m.Host, m.Port, m.NoAuthUser == "" && (asked || m.Username != "" || m.Token != "") || verifies(m.TLSConfig), m.TLSConfig != nil)
	l := &o.LeafNode
	add("leafnodes", l.Host, l.Port, asked || l.Username != "" || l.Nkey != "" || len(l.Users) > 0 || verifies(l.TLSConfig), l.TLSConfig != nil)
	g := &o.Gateway
	add("gateway", g.Host, g.Port, g.Username != "" || verifies(g.TLSConfig), g.TLSConfig != nil)
	return ls
}

// asksClients reports whether nobody gets in without credentials. A user for
// those who have none means that everybody does; and users of the system account
// alone leave the default account open.
func asksClients(o *natsserver.Options) bool {
	if !needsCredentials(o) || o.NoAuthUser != "" || o.DefaultSentinel != "" {
		return false
	}
	if operated(o) || o.Username != "" || o.Authorization != "" {
		return true
	}
	for _, u := range o.Users {
		if !isSystemAccount(o, u.Account) {
			return true
		}
	}
	for _, n := range o.Nkeys {
		if !isSystemAccount(o, n.Account) {
			return true
		}
	}
	return false
}

// verifies reports whether a client needs a certificate of certain authorities.
// Without their names it would be any that the host trusts, which are open to
// everybody.
func verifies(t *tls.Config) bool {
	return t != nil && t.ClientAuth == tls.RequireAndVerifyClientCert && t.ClientCAs != nil
}

// isLoopback takes only what is certain without a resolver.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
