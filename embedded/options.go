package embedded

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// Option configures Start.
type Option func(*config) error

type config struct {
	storeDir      string
	tempStore     bool
	sync          SyncMode
	listen        string
	allowExternal bool
	maxStore      int64
	maxMemory     int64
	name          string
	auth          clientAuth
	tls           tlsFiles
	logger        *slog.Logger
	cluster       *clusterOptions
	routeAuth     routeAuth
	configFile    string
	syncSet       bool // by WithSync
}

// clusterOptions is what WithCluster fills in.
type clusterOptions struct {
	name   string
	listen string
	routes []string
}

// WithStoreDir keeps JetStream's data in dir, which is made when it doesn't
// exist. One server at a time can use a directory. Either this or WithTempStore
// is required.
func WithStoreDir(dir string) Option {
	return func(c *config) error {
		if dir == "" {
			return fmt.Errorf("%w: WithStoreDir: the directory is empty; name one, or use WithTempStore", ErrInvalidOption)
		}
		c.storeDir = dir
		return nil
	}
}

// WithTempStore keeps JetStream's data in a fresh temporary directory that
// Shutdown removes.
func WithTempStore() Option {
	return func(c *config) error {
		c.tempStore = true
		return nil
	}
}

// WithSync says when writes reach the disk. The default is SyncAlways.
func WithSync(mode SyncMode) Option {
	return func(c *config) error {
		c.sync, c.syncSet = mode, true
		return mode.validate("WithSync")
	}
}

// WithListen opens a TCP listener for clients on addr, "host:port"; port 0
// picks a free one, see Server.ClientURL. Without this option there is no
// listener and only Server.Connect reaches the server. An address that other
// hosts reach needs authentication: WithUser, WithToken, WithNKey or
// WithClientCA; or WithAllowNonLoopback.
func WithListen(addr string) Option {
	return func(c *config) error {
		if addr == "" {
			return fmt.Errorf("%w: WithListen: the address is empty; give host:port such as 127.0.0.1:0, or leave the option out", ErrInvalidOption)
		}
		c.listen = addr
		return nil
	}
}

// WithAllowNonLoopback allows listeners for clients and for other servers that
// other hosts can reach and that ask nobody who they are: do this only on a
// network where everybody may take and break every lock. A listener with
// authentication needs no such permission.
func WithAllowNonLoopback() Option {
	return func(c *config) error {
		c.allowExternal = true
		return nil
	}
}

// WithMaxStore limits JetStream's files to n bytes. The default is the server's:
// three quarters of the free disk space.
func WithMaxStore(n int64) Option {
	return func(c *config) error {
		if n <= 0 {
			return fmt.Errorf("%w: WithMaxStore(%d): give a positive number of bytes", ErrInvalidOption, n)
		}
		c.maxStore = n
		return nil
	}
}

// WithMaxMemory limits JetStream's memory streams to n bytes. The default is the
// server's: three quarters of the memory. Lock data is in files, so this only
// bounds other users of the server.
func WithMaxMemory(n int64) Option {
	return func(c *config) error {
		if n <= 0 {
			return fmt.Errorf("%w: WithMaxMemory(%d): give a positive number of bytes", ErrInvalidOption, n)
		}
		c.maxMemory = n
		return nil
	}
}

// WithServerName names the server. The default is a fresh random name. A server
// in a cluster needs a name of its own that stays the same across restarts.
func WithServerName(name string) Option {
	return func(c *config) error {
		if name == "" || strings.ContainsAny(name, " \t\r\n") {
			return fmt.Errorf("%w: WithServerName(%q): give a name without spaces", ErrInvalidOption, name)
		}
		c.name = name
		return nil
	}
}

// WithLogger sends the server's log to l. Without it, or with nil, the server
// is silent.
func WithLogger(l *slog.Logger) Option {
	return func(c *config) error {
		c.logger = l
		return nil
	}
}

// WithCluster makes the server one of a cluster with the given name. It accepts
// other servers on listenAddr ("host:port", port 0 picks a free one) and
// connects to routes, the cluster addresses ("host:port" or
// "nats-route://host:port") of all servers, its own included: while the cluster
// forms for the first time, the number of routes is taken for its size, and with
// too few of them two parts could each go their own way.
//
// Needs WithServerName and WithListen. Start returns before the cluster has
// agreed on anything: JetStream answers once a majority of the servers has
// found each other.
func WithCluster(name, listenAddr string, routes ...string) Option {
	return func(c *config) error {
		if name == "" || strings.ContainsAny(name, " \t\r\n") {
			return fmt.Errorf("%w: WithCluster: cluster name %q: give a name without spaces", ErrInvalidOption, name)
		}
		c.cluster = &clusterOptions{name: name, listen: listenAddr, routes: routes}
		return nil
	}
}

func newConfig(opts []Option) (*config, error) {
	c := &config{}
	for i, o := range opts {
		if o == nil {
			return nil, fmt.Errorf("%w: option %d is nil; leave it out", ErrInvalidOption, i)
		}
		if err := o(c); err != nil {
			return nil, err
		}
	}
	return c, c.validate()
}

// validate looks at how the options fit together.
func (c *config) validate() error {
	switch {
	case c.storeDir != "" && c.tempStore:
		return fmt.Errorf("%w: both WithStoreDir and WithTempStore; choose one", ErrInvalidOption)
	case c.configFile != "":
		return c.checkAlone()
	case c.storeDir == "" && !c.tempStore:
		return fmt.Errorf("%w: no store; give WithStoreDir, or WithTempStore for one that is thrown away", ErrInvalidOption)
	case c.cluster != nil && c.name == "":
		return fmt.Errorf("%w: WithCluster needs WithServerName, a name that stays the same across restarts", ErrInvalidOption)
	case c.cluster != nil && len(c.cluster.routes) == 0:
		return fmt.Errorf("%w: WithCluster needs routes, the cluster addresses of all servers", ErrInvalidOption)
	case c.cluster != nil && c.listen == "":
		// The server opens its cluster port only after its client port.
		return fmt.Errorf("%w: WithCluster needs WithListen, 127.0.0.1:0 will do", ErrInvalidOption)
	case c.cluster == nil && c.routeAuth != routeAuth{}:
		return fmt.Errorf("%w: WithClusterAuth or WithClusterTLS without WithCluster", ErrInvalidOption)
	case c.tls.cert != "" && c.listen == "":
		return fmt.Errorf("%w: WithTLS needs WithListen; without a listener there is nothing to encrypt", ErrInvalidOption)
	case c.tls.ca != "" && c.tls.cert == "":
		return fmt.Errorf("%w: WithClientCA needs WithTLS, the server's own certificate", ErrInvalidOption)
	}
	return c.auth.validate()
}

// serverOptions translates into the server's own options. What it returns was not
// used yet, so that it can be called again for a reload.
func (c *config) serverOptions() (*natsserver.Options, error) {
	if c.configFile != "" {
		return c.fileOptions()
	}
	o := &natsserver.Options{
		ServerName:         c.name,
		JetStream:          true,
		StoreDir:           c.storeDir,
		JetStreamMaxStore:  c.maxStore,
		JetStreamMaxMemory: c.maxMemory,
		DontListen:         c.listen == "",
	}
	c.applySync(o)
	if err := c.auth.apply(o); err != nil {
		return nil, err
	}
	var err error
	if c.listen != "" {
		if o.Host, o.Port, err = splitAddr("WithListen", c.listen); err != nil {
			return nil, err
		}
	}
	if c.tls.cert != "" {
		option := "WithTLS"
		if c.tls.ca != "" {
			option = "WithTLS and WithClientCA"
		}
		if o.TLSConfig, err = c.tls.load(option); err != nil {
			return nil, err
		}
		o.TLS, o.TLSVerify, o.TLSTimeout = true, c.tls.ca != "", tlsTimeout
	}
	if c.cluster == nil {
		return o, nil
	}
	if o.Cluster.Host, o.Cluster.Port, err = splitAddr("WithCluster", c.cluster.listen); err != nil {
		return nil, err
	}
	o.Cluster.Name = c.cluster.name
	// Clients keep to the addresses they were given; those of other nodes, as
	// this server sees them, may not be reachable from where a client is.
	o.Cluster.NoAdvertise = true
	for _, r := range c.cluster.routes {
		u, err := parseRoute(r)
		if err != nil {
			return nil, err
		}
		o.Routes = append(o.Routes, u)
	}
	return o, c.routeAuth.apply(o)
}

func (c *config) applySync(o *natsserver.Options) {
	if c.sync == SyncAlways {
		o.SyncAlways = true
	} else {
		o.SyncInterval = time.Duration(c.sync)
	}
}

// splitAddr checks addr and returns host and port as the server wants them:
// its 0 means "the default port", -1 means "any free one".
func splitAddr(option, addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("%w: %s(%q): give host:port such as 127.0.0.1:0", ErrInvalidOption, option, addr)
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%w: %s(%q): the port must be a number from 0 to 65535", ErrInvalidOption, option, addr)
	}
	if host == "" {
		host = natsserver.DEFAULT_HOST
	}
	if port == 0 {
		port = natsserver.RANDOM_PORT
	}
	return host, port, nil
}

func parseRoute(r string) (*url.URL, error) {
	s := r
	if !strings.Contains(s, "://") {
		s = "nats-route://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.Port() == "" || (u.Scheme != "nats-route" && u.Scheme != "nats") {
		if i := strings.LastIndexByte(r, '@'); i >= 0 {
			r = r[i+1:] // what is before may be a password
		}
		return nil, fmt.Errorf("%w: WithCluster: route %q: give host:port or nats-route://host:port", ErrInvalidOption, r)
	}
	return u, nil
}
