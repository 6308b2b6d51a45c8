package embedded

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// listener is an address that the server opens, and how it authenticates clients there.
type listener struct {
	name      string // as in the configuration file
	addr      string
	loopback  bool
	auth, tls bool
	why       string // why auth is false although there are users
}

// listeners returns all listeners that give access to locks, and profiling, which gives access to the process.
func listeners(o *natsserver.Options) []listener {
	var ls []listener
	add := func(name, host string, port int, tls *tls.Config, asked bool, why string) {
		if port == 0 {
			return
		}
		l := newListener(name, host, port)
		l.auth, l.tls = asked || verifies(tls), tls != nil
		if !l.auth {
			l.why = why
		}
		ls = append(ls, l)
	}
	asked, why := asksClients(o)
	if !o.DontListen {
		t := o.TLSConfig
		if o.AllowNonTLS {
			t = nil // if TLS is optional, a certificate is optional, too
		}
		add("client", o.Host, cmp.Or(o.Port, natsserver.DEFAULT_PORT), t, asked, why)
	}
	c := &o.Cluster
	asked, why = asksOne(c.Username, c.Password)
	add("cluster", c.Host, c.Port, c.TLSConfig, asked, why)
	w := &o.Websocket
	asked, why = asksWebsocket(o)
	add("websocket", w.Host, w.Port, w.TLSConfig, asked, why)
	m := &o.MQTT
	asked, why = asksWith(o, m.Username, m.Password, m.Token, m.NoAuthUser)
	add("mqtt", m.Host, m.Port, m.TLSConfig, asked, why)
	l := &o.LeafNode
	asked, why = asksLeaves(o)
	add("leafnodes", l.Host, l.Port, l.TLSConfig, asked, why)
	g := &o.Gateway
	asked, why = asksOne(g.Username, g.Password)
	add("gateway", g.Host, g.Port, g.TLSConfig, asked, why)
	add("profiling", o.Host, o.ProfPort, nil, false, "prof_port asks nobody")
	return ls
}

func newListener(name, host string, port int) listener {
	host = cmp.Or(host, natsserver.DEFAULT_HOST)
	return listener{name: name, addr: net.JoinHostPort(host, strconv.Itoa(max(port, 0))), loopback: isLoopback(host)}
}

// asksClients reports whether every client needs credentials. If not although there are users, why names the reason: a
// user for clients without credentials admits everybody; a user without a password admits everybody who knows the name;
// and if all users are in the system account, the default account is open.
func asksClients(o *natsserver.Options) (asked bool, why string) {
	switch {
	case !needsCredentials(o):
		return false, ""
	case o.NoAuthUser != "":
		return false, "no_auth_user"
	case o.DefaultSentinel != "":
		return false, "default_sentinel"
	case operated(o):
		return true, ""
	}
	// With a mapping, the certificate replaces the password.
	if !o.TLSMap && !o.Websocket.TLSMap && !o.MQTT.TLSMap && !o.LeafNode.TLSMap {
		if why := bareName(o.Users); why != "" {
			return false, why
		}
	}
	if o.Authorization != "" {
		return true, ""
	}
	if o.Username != "" {
		return asksOne(o.Username, o.Password)
	}
	if slices.ContainsFunc(o.Users, func(u *natsserver.User) bool { return !isSystemAccount(o, u.Account) }) ||
		slices.ContainsFunc(o.Nkeys, func(n *natsserver.NkeyUser) bool { return !isSystemAccount(o, n.Account) }) {
		return true, ""
	}
	return false, "only the system account has users"
}

// asksWith is for listeners whose own block can define users that replace the general ones.
func asksWith(o *natsserver.Options, user, password, token, noAuthUser string) (bool, string) {
	switch {
	case noAuthUser != "":
		return false, "no_auth_user"
	case token != "":
		return true, ""
	case user != "":
		return asksOne(user, password)
	}
	return asksClients(o)
}

func asksLeaves(o *natsserver.Options) (bool, string) {
	l := &o.LeafNode
	switch {
	case l.Username != "":
		return asksOne(l.Username, l.Password)
	case l.Nkey != "":
		return true, ""
	case len(l.Users) > 0:
		why := bareName(l.Users)
		return why == "" || l.TLSMap, why
	}
	return asksClients(o)
}

// asksWebsocket checks all clients of the websocket listener. These include leaf nodes and MQTT clients if the server
// has such listeners; they need the credentials of those listeners.
func asksWebsocket(o *natsserver.Options) (bool, string) {
	w, m := &o.Websocket, &o.MQTT
	if asked, why := asksWith(o, w.Username, w.Password, w.Token, w.NoAuthUser); !asked {
		return false, why
	}
	if asked, why := asksLeaves(o); o.LeafNode.Port != 0 && !asked {
		return false, cmp.Or(why, "leafnodes come in there, too, and have no authorization")
	}
	if asked, why := asksWith(o, m.Username, m.Password, m.Token, m.NoAuthUser); m.Port != 0 && !asked {
		return false, cmp.Or(why, "mqtt clients come in there, too, and have no authorization")
	}
	return true, ""
}

func asksOne(user, password string) (bool, string) {
	why := bareName([]*natsserver.User{{Username: user, Password: password}})
	return user != "" && why == "", why
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

// verifies reports whether a client needs a certificate of given authorities. Without given authorities, every
// certificate that the host trusts would be accepted, and everybody can get one.
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

// plan contains the checked options with which a server is started or reloaded, and the warnings.
type plan struct {
	options  *natsserver.Options
	access   *access
	warnings []func(*slog.Logger)
}

type access struct {
	auth, tls bool
	internal  bool // Connect has its own user
	accounts  bool // Connect can't have its own user
}

func (c *config) plan(id *identity) (*plan, error) {
	o, err := c.serverOptions()
	if err != nil {
		return nil, err
	}
	p := &plan{options: o}
	if err := p.check(c); err != nil {
		return nil, err
	}
	tls := o.TLSConfig != nil && !o.AllowNonTLS
	asked, _ := asksClients(o)
	p.access = &access{
		auth:     asked || tls && verifies(o.TLSConfig),
		tls:      tls,
		internal: needsCredentials(o) && ownLogin(o),
		accounts: !ownLogin(o),
	}
	if p.access.internal {
		o.Nkeys = append(o.Nkeys, &natsserver.NkeyUser{Nkey: id.public, AllowedConnectionTypes: map[string]struct{}{inProcessOnly: {}}})
	}
	// Signals are the program's task. So is the log, which a reload would also replace.
	o.NoSigs, o.NoLog, o.DisableJetStreamBanner = true, true, true
	o.LogFile, o.Syslog, o.RemoteSyslog = "", false, ""
	o.Debug, o.Trace, o.TraceVerbose = false, false, false
	o.Logtime, o.LogtimeUTC = false, false
	return p, nil
}

// check refuses addresses that other hosts can reach without authentication, and adds warnings about what is allowed
// but risky.
func (p *plan) check(c *config) error {
	for _, l := range listeners(p.options) {
		switch {
		case l.loopback:
		case !l.auth && !c.allowExternal:
			return &OpenListenerError{Listener: l.name, Addr: l.addr, File: c.configFile, Reason: l.why}
		case l.auth && !l.tls:
			p.note(func(log *slog.Logger) {
				log.Warn("no TLS: passwords, and all that servers and clients say, can be read on the network", "listener", l.name, "url", l.addr)
			})
		}
	}
	if c.configFile == "" {
		return nil
	}
	for _, port := range []int{p.options.HTTPPort, p.options.HTTPSPort} { // they are read-only and have no authentication
		if l := newListener("monitoring", cmp.Or(p.options.HTTPHost, p.options.Host), port); port != 0 && !l.loopback && !c.allowExternal {
			p.note(func(log *slog.Logger) {
				log.Warn("monitoring asks nobody: who reaches it sees clients, buckets and names of locks; keep strangers from it, or write http: \"127.0.0.1:8222\"", "listener", l.name, "url", l.addr)
			})
		}
	}
	if !p.options.SyncAlways && !c.syncSet {
		interval := p.options.SyncInterval.Round(time.Millisecond)
		p.note(func(log *slog.Logger) {
			log.Warn("a power failure can lose locks that were granted; take sync_interval out of the file to sync every write", "sync_interval", interval.String())
		})
	}
	if f := p.options.LogFile; f != "" {
		p.note(func(log *slog.Logger) { log.Warn("log_file has no effect", "log_file", f) })
	}
	if p.options.Syslog || p.options.RemoteSyslog != "" {
		p.note(func(log *slog.Logger) { log.Warn("syslog and remote_syslog have no effect") })
	}
	return nil
}

func (p *plan) note(warn func(*slog.Logger)) { p.warnings = append(p.warnings, warn) }

func (p *plan) log(l *slog.Logger) {
	if l == nil {
		return
	}
	for _, warn := range p.warnings {
		warn(l)
	}
}

// refused converts the server's error about its options.
func (c *config) refused(err error) error {
	if c.configFile != "" {
		return c.fileError("%v", err)
	}
	return fmt.Errorf("%w: %w", ErrStartFailed, err)
}
