package embedded

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// listener is an address that the server opens, and how it authenticates clients there.
type listener struct {
	name     string // as in the configuration file
	addr     string
	loopback bool
	tls      bool
	demand
}

// demand is what a listener demands of its clients.
type demand struct {
	auth bool   // every client must authenticate
	why  string // why auth is false although there are users
}

// listeners returns all listeners that give access to locks, and profiling, which gives access to the process.
func listeners(o *natsserver.Options) []listener {
	var ls []listener
	add := func(name, host string, port int, tls *tls.Config, d demand) {
		if port == 0 {
			return
		}
		if verifies(tls) {
			d = demand{auth: true}
		}
		l := newListener(name, host, port)
		l.tls, l.demand = tls != nil, d
		ls = append(ls, l)
	}
	if !o.DontListen {
		t := o.TLSConfig
		if o.AllowNonTLS {
			t = nil // if TLS is optional, a certificate is optional, too
		}
		add("client", o.Host, cmp.Or(o.Port, natsserver.DEFAULT_PORT), t, asksClients(o))
	}
	c, w, m, l, g := &o.Cluster, &o.Websocket, &o.MQTT, &o.LeafNode, &o.Gateway
	add("cluster", c.Host, c.Port, c.TLSConfig, asksOne(c.Username, c.Password))
	add("websocket", w.Host, w.Port, w.TLSConfig, asksWebsocket(o))
	add("mqtt", m.Host, m.Port, m.TLSConfig, asksWith(o, m.Username, m.Password, m.Token, m.NoAuthUser))
	add("leafnodes", l.Host, l.Port, l.TLSConfig, asksLeaves(o))
	add("gateway", g.Host, g.Port, g.TLSConfig, asksOne(g.Username, g.Password))
	add("profiling", o.Host, o.ProfPort, nil, demand{why: "prof_port asks nobody"})
	return ls
}

func newListener(name, host string, port int) listener {
	host = cmp.Or(host, natsserver.DEFAULT_HOST)
	return listener{name: name, addr: net.JoinHostPort(host, strconv.Itoa(max(port, 0))), loopback: isLoopback(host)}
}

// asksClients returns what is demanded of every client. A user for clients without credentials admits everybody; a user
// without a password admits everybody who knows the name; and if all users are in the system account, the default
// account is open.
func asksClients(o *natsserver.Options) demand {
	switch {
	case !needsCredentials(o):
		return demand{}
	case o.NoAuthUser != "":
		return demand{why: "no_auth_user"}
	case o.DefaultSentinel != "":
		return demand{why: "default_sentinel"}
	case operated(o):
		return demand{auth: true}
	}
	// With a mapping, the certificate replaces the password.
	mapped := o.TLSMap || o.Websocket.TLSMap || o.MQTT.TLSMap || o.LeafNode.TLSMap
	if why := bareName(o.Users); why != "" && !mapped {
		return demand{why: why}
	}
	switch {
	case o.Authorization != "":
		return demand{auth: true}
	case o.Username != "":
		return asksOne(o.Username, o.Password)
	case slices.ContainsFunc(o.Users, func(u *natsserver.User) bool { return !isSystemAccount(o, u.Account) }),
		slices.ContainsFunc(o.Nkeys, func(n *natsserver.NkeyUser) bool { return !isSystemAccount(o, n.Account) }):
		return demand{auth: true}
	}
	return demand{why: "only the system account has users"}
}

// asksWith is for listeners whose own block can define users that replace the general ones.
func asksWith(o *natsserver.Options, user, password, token, noAuthUser string) demand {
	switch {
	case noAuthUser != "":
		return demand{why: "no_auth_user"}
	case token != "":
		return demand{auth: true}
	case user != "":
		return asksOne(user, password)
	}
	return asksClients(o)
}

func asksLeaves(o *natsserver.Options) demand {
	l := &o.LeafNode
	switch {
	case l.Username != "":
		return asksOne(l.Username, l.Password)
	case l.Nkey != "", len(l.Users) > 0 && l.TLSMap:
		return demand{auth: true}
	case len(l.Users) > 0:
		why := bareName(l.Users)
		return demand{why == "", why}
	}
	return asksClients(o)
}

// asksWebsocket checks all clients of the websocket listener, which leaf nodes and MQTT clients can use, too.
func asksWebsocket(o *natsserver.Options) demand {
	w, m := &o.Websocket, &o.MQTT
	if d := asksWith(o, w.Username, w.Password, w.Token, w.NoAuthUser); !d.auth {
		return d
	}
	if d := asksLeaves(o); o.LeafNode.Port != 0 && !d.auth {
		return demand{why: cmp.Or(d.why, "leafnodes come in there, too, and have no authorization")}
	}
	if d := asksWith(o, m.Username, m.Password, m.Token, m.NoAuthUser); m.Port != 0 && !d.auth {
		return demand{why: cmp.Or(d.why, "mqtt clients come in there, too, and have no authorization")}
	}
	return demand{auth: true}
}

func asksOne(user, password string) demand {
	why := bareName([]*natsserver.User{{Username: user, Password: password}})
	return demand{user != "" && why == "", why}
}

// bareName returns a user that needs no password.
func bareName(users []*natsserver.User) string {
	for _, u := range users {
		if u.Username != "" && u.Password == "" {
			return fmt.Sprintf("user %q has no password", u.Username)
		}
	}
	return ""
}

// verifies reports whether a client needs a certificate of given authorities, not only of one that the host trusts.
func verifies(t *tls.Config) bool {
	return t != nil && t.ClientAuth == tls.RequireAndVerifyClientCert && t.ClientCAs != nil
}

// isLoopback accepts only what is certain without a resolver.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// plan contains the checked options with which a server is started or reloaded.
type plan struct {
	options   *natsserver.Options
	listeners []listener
	logFile   string // log settings of the file, which have no effect
	syslog    bool
	auth, tls bool // what the client listener requires
	internal  bool // Connect has its own user
	accounts  bool // Connect can't have its own user
}

// plan refuses addresses that other hosts can reach without authentication.
func (c *config) plan(id *identity) (*plan, error) {
	o, err := c.serverOptions()
	if err != nil {
		return nil, err
	}
	tls := o.TLSConfig != nil && !o.AllowNonTLS
	p := &plan{
		options: o, listeners: listeners(o), logFile: o.LogFile, syslog: o.Syslog || o.RemoteSyslog != "",
		auth: asksClients(o).auth || tls && verifies(o.TLSConfig), tls: tls,
		internal: needsCredentials(o) && ownLogin(o), accounts: !ownLogin(o),
	}
	for _, l := range p.listeners {
		if !l.loopback && !l.auth && !c.allowExternal {
			return nil, &OpenListenerError{Listener: l.name, Addr: l.addr, File: c.configFile, Reason: l.why}
		}
	}
	if p.internal {
		o.Nkeys = append(o.Nkeys, &natsserver.NkeyUser{Nkey: id.public, AllowedConnectionTypes: map[string]struct{}{inProcessOnly: {}}})
	}
	// Signals are the program's task. So is the log, which a reload would also replace.
	o.NoSigs, o.NoLog, o.DisableJetStreamBanner = true, true, true
	o.LogFile, o.Syslog, o.RemoteSyslog = "", false, ""
	o.Debug, o.Trace, o.TraceVerbose = false, false, false
	o.Logtime, o.LogtimeUTC = false, false
	return p, nil
}

// warn logs what is allowed but risky.
func (p *plan) warn(c *config) {
	log, o := c.logger, p.options
	if log == nil {
		return
	}
	for _, l := range p.listeners {
		if !l.loopback && l.auth && !l.tls {
			log.Warn("no TLS: passwords, and all that servers and clients say, can be read on the network", "listener", l.name, "url", l.addr)
		}
	}
	if c.configFile == "" {
		return
	}
	for _, port := range []int{o.HTTPPort, o.HTTPSPort} { // they are read-only and have no authentication
		if l := newListener("monitoring", cmp.Or(o.HTTPHost, o.Host), port); port != 0 && !l.loopback && !c.allowExternal {
			log.Warn("monitoring asks nobody: who reaches it sees clients, buckets and names of locks; keep strangers from it, or write http: \"127.0.0.1:8222\"", "listener", l.name, "url", l.addr)
		}
	}
	if !o.SyncAlways && !c.syncSet {
		log.Warn("a power failure can lose locks that were granted; take sync_interval out of the file to sync every write", "sync_interval", o.SyncInterval.Round(time.Millisecond).String())
	}
	if p.logFile != "" {
		log.Warn("log_file has no effect", "log_file", p.logFile)
	}
	if p.syslog {
		log.Warn("syslog and remote_syslog have no effect")
	}
}

// refused converts the server's error about its options.
func (c *config) refused(err error) error {
	if c.configFile != "" {
		return c.fileError("%v", err)
	}
	return fmt.Errorf("%w: %w", ErrStartFailed, err)
}
