package embedded

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// Option configures Start.
type Option func(*config) error

type config struct {
	own           natsserver.Options // what can be said in the server's own options
	tempStore     bool
	sync          SyncMode
	syncSet       bool // set by WithSync
	allowExternal bool
	tls           tlsFiles
	routeAuth     routeAuth
	configFile    string
	logger        *slog.Logger
}

// WithStoreDir stores JetStream's data in dir, which is created if it does not exist. One server at a time can use a
// directory. Either this option or WithTempStore is required.
func WithStoreDir(dir string) Option {
	return func(c *config) error {
		return set(&c.own.StoreDir, dir, dir != "", "WithStoreDir: the directory is empty; name one, or use WithTempStore")
	}
}

// WithTempStore stores JetStream's data in a new temporary directory, which Shutdown removes.
func WithTempStore() Option { return func(c *config) error { c.tempStore = true; return nil } }

// WithSync sets when writes are synced to disk. The default is SyncAlways.
func WithSync(mode SyncMode) Option {
	return func(c *config) error {
		c.syncSet = true
		return set(&c.sync, mode, mode >= 0, "WithSync: the interval must be at least %v; use SyncAlways to sync each write", minSyncInterval)
	}
}

// WithListen opens a TCP listener for clients on addr, "host:port". Port 0 selects a free port; see Server.ClientURL.
// Without this option there is no listener, and only Server.Connect reaches the server. An address that other hosts can
// reach needs authentication: WithUser, WithToken, WithNKey or WithClientCA; or WithAllowNonLoopback.
func WithListen(addr string) Option {
	return func(c *config) (err error) {
		if addr == "" {
			return invalid("WithListen: the address is empty; give host:port such as 127.0.0.1:0, or leave the option out")
		}
		c.own.Host, c.own.Port, err = splitAddr("WithListen", addr)
		return err
	}
}

// WithAllowNonLoopback allows listeners, for clients and for other servers, that other hosts can reach without
// authentication. Use it only on a network where everybody may acquire and break every lock. A listener with
// authentication does not need it.
func WithAllowNonLoopback() Option {
	return func(c *config) error { c.allowExternal = true; return nil }
}

// WithMaxStore limits JetStream's files to n bytes. The default is the server's: three quarters of the free disk space.
func WithMaxStore(n int64) Option {
	return func(c *config) error {
		return set(&c.own.JetStreamMaxStore, n, n > 0, "WithMaxStore(%d): give a positive number of bytes", n)
	}
}

// WithMaxMemory limits JetStream's memory streams to n bytes. The default is the server's: three quarters of the
// memory. Lock data is in files, so this limits only other uses of the server.
func WithMaxMemory(n int64) Option {
	return func(c *config) error {
		return set(&c.own.JetStreamMaxMemory, n, n > 0, "WithMaxMemory(%d): give a positive number of bytes", n)
	}
}

// WithServerName sets the server's name. The default is a new random name. A server in a cluster needs a unique name
// that stays the same across restarts.
func WithServerName(name string) Option {
	return func(c *config) error {
		return set(&c.own.ServerName, name, isName(name), "WithServerName(%q): give a name without spaces", name)
	}
}

// WithLogger sends the server's log to l. Without it, or with nil, the server logs nothing.
func WithLogger(l *slog.Logger) Option { return func(c *config) error { c.logger = l; return nil } }

// WithCluster makes the server a member of the cluster with the given name. It accepts other servers on listenAddr
// ("host:port"; port 0 selects a free port). It connects to routes, which are the cluster addresses ("host:port" or
// "nats-route://host:port") of all servers, this one included. When the cluster forms for the first time, the number of
// routes defines its size. With too few routes, two parts could each form a cluster.
//
// Needs WithServerName and WithListen. Start returns before the cluster has agreed on anything: JetStream answers when
// a majority of the servers have found each other.
func WithCluster(name, listenAddr string, routes ...string) Option {
	return func(c *config) (err error) {
		o := &c.own.Cluster
		if o.Host, o.Port, err = splitAddr("WithCluster", listenAddr); err != nil {
			return err
		}
		// Clients use only the addresses that they were given; those of other nodes may be unreachable for them.
		o.NoAdvertise = true
		c.own.Routes = nil
		for _, r := range routes {
			u, err := parseRoute(r)
			if err != nil {
				return err
			}
			c.own.Routes = append(c.own.Routes, u)
		}
		return set(&o.Name, name, isName(name), "WithCluster: cluster name %q: give a name without spaces", name)
	}
}

// set assigns value to field if ok; otherwise it returns ErrInvalidOption.
func set[T any](field *T, value T, ok bool, format string, args ...any) error {
	if !ok {
		return invalid(format, args...)
	}
	*field = value
	return nil
}

func isName(name string) bool { return name != "" && !strings.ContainsAny(name, " \t\r\n") }

func newConfig(opts []Option) (*config, error) {
	c := &config{}
	for i, o := range opts {
		if o == nil {
			return nil, invalid("option %d is nil; leave it out", i)
		}
		if err := o(c); err != nil {
			return nil, err
		}
	}
	return c, c.validate()
}

// validate checks combinations of options.
func (c *config) validate() error {
	o := &c.own
	cluster, listens := o.Cluster.Name != "", o.Port != 0
	switch {
	case o.StoreDir != "" && c.tempStore:
		return invalid("both WithStoreDir and WithTempStore; choose one")
	case c.configFile != "":
		return c.checkAlone()
	case o.StoreDir == "" && !c.tempStore:
		return invalid("no store; give WithStoreDir, or WithTempStore for one that is thrown away")
	case cluster && o.ServerName == "":
		return invalid("WithCluster needs WithServerName, a name that stays the same across restarts")
	case cluster && len(o.Routes) == 0:
		return invalid("WithCluster needs routes, the cluster addresses of all servers")
	case cluster && !listens:
		// The server opens its cluster port only after its client port.
		return invalid("WithCluster needs WithListen, 127.0.0.1:0 will do")
	case !cluster && c.routeAuth != routeAuth{}:
		return invalid("WithClusterAuth or WithClusterTLS without WithCluster")
	case c.tls.cert != "" && !listens:
		return invalid("WithTLS needs WithListen; without a listener there is nothing to encrypt")
	case c.tls.ca != "" && c.tls.cert == "":
		return invalid("WithClientCA needs WithTLS, the server's own certificate")
	case o.Authorization != "" && len(o.Users)+len(o.Nkeys) > 0:
		return invalid("WithToken together with WithUser, WithNKey or WithSystemUser; choose one, a token has no user")
	}
	return nil
}

// serverOptions returns the server's own options. They are new objects, because the server changes them, and a reload
// compares.
func (c *config) serverOptions() (o *natsserver.Options, err error) {
	if c.configFile != "" {
		return c.fileOptions()
	}
	o = c.own.Clone()
	o.JetStream, o.DontListen = true, o.Port == 0
	c.applySync(o)
	if err := addSystemAccount(o); err != nil {
		return nil, err
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
	return o, c.routeAuth.apply(o)
}

func (c *config) applySync(o *natsserver.Options) {
	if c.sync == SyncAlways {
		o.SyncAlways = true
	} else {
		o.SyncInterval = time.Duration(c.sync)
	}
}

// splitAddr checks addr and returns it for the server, where port 0 is the default one, and -1 any free one.
func splitAddr(option, addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, invalid("%s(%q): give host:port such as 127.0.0.1:0", option, addr)
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, invalid("%s(%q): the port must be a number from 0 to 65535", option, addr)
	}
	host = cmp.Or(host, natsserver.DEFAULT_HOST)
	port = cmp.Or(port, natsserver.RANDOM_PORT)
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
			r = r[i+1:] // the part before may be a password
		}
		return nil, invalid("WithCluster: route %q: give host:port or nats-route://host:port", r)
	}
	return u, nil
}

// SyncMode sets when acknowledged writes are synced to disk. Use SyncAlways or SyncInterval.
type SyncMode time.Duration

// SyncAlways syncs every write to disk before it is acknowledged. It is the default of Start: a granted lock survives a
// power failure. Each write then takes as long as a sync of the disk.
const SyncAlways SyncMode = 0

// minSyncInterval prevents the server's background sync from using a whole processor.
const minSyncInterval = time.Millisecond

// SyncInterval syncs in the background about every d (at least one millisecond), and acknowledges writes before they
// are synced. It is faster, many times so on slow disks. But a power failure or a crash of the operating system may
// lose the acknowledged writes of the last d: a lock can then be held twice, and fencing tokens can repeat. The end of
// the process alone loses nothing.
func SyncInterval(d time.Duration) SyncMode {
	if d < minSyncInterval {
		return SyncMode(-1) // the option that gets it refuses it
	}
	return SyncMode(d)
}

// String returns "always" or "every <d>".
func (m SyncMode) String() string {
	switch {
	case m == SyncAlways:
		return "always"
	case m < 0:
		return "invalid"
	default:
		return "every " + time.Duration(m).String()
	}
}

// WithConfigFile takes all settings from a configuration file of nats-server: listeners, users, accounts and
// permissions, TLS, cluster. Only these options can be combined with it:
//
//   - WithStoreDir or WithTempStore, which enable JetStream, if the file has no store_dir. One of the three is
//     required, because the server's default is below the system's directory for temporary files.
//   - WithSync, if the file has no sync_interval. Without both, every write is synced, which is not the default of
//     nats-server.
//   - WithServerName, if the file has no server_name.
//   - WithAllowNonLoopback and WithLogger.
//
// The server reads the file only at Start and in [Server.Reload], not when a user of the system account requests a
// reload (nats server config reload).
//
// The file's log settings (log_file, syslog, debug, trace) have no effect; see WithLogger. The store is locked, as with
// WithStoreDir, but a stock nats-server on the same directory ignores this lock.
func WithConfigFile(path string) Option {
	return func(c *config) error {
		return set(&c.configFile, path, path != "", "WithConfigFile: the path is empty; name a configuration file of nats-server")
	}
}

// checkAlone refuses options that belong in the file.
func (c *config) checkAlone() error {
	o := &c.own
	for _, option := range []struct {
		name  string
		given bool
	}{
		{"WithListen", o.Port != 0},
		{"WithToken", o.Authorization != ""},
		{"WithUser or WithSystemUser", len(o.Users) > 0},
		{"WithNKey", len(o.Nkeys) > 0},
		{"WithTLS", c.tls.cert != ""},
		{"WithClientCA", c.tls.ca != ""},
		{"WithMaxStore", o.JetStreamMaxStore != 0},
		{"WithMaxMemory", o.JetStreamMaxMemory != 0},
		{"WithCluster", o.Cluster.Name != ""},
		{"WithClusterAuth", c.routeAuth.user != ""},
		{"WithClusterTLS", c.routeAuth.tls.cert != ""},
	} {
		if option.given {
			return invalid("%s and WithConfigFile; leave the option out and say it in %s", option.name, c.configFile)
		}
	}
	return nil
}

// fileOptions reads the file, and adds safe values where the file has none.
func (c *config) fileOptions() (*natsserver.Options, error) {
	o, err := natsserver.ProcessConfigFile(c.configFile)
	if err != nil {
		return nil, c.fileError("%s", strings.TrimSpace(err.Error()))
	}
	switch {
	case o.StoreDir != "" && !o.JetStream:
		return nil, c.fileError("it names a store_dir but does not enable JetStream; write jetstream { store_dir: ... }")
	case o.StoreDir != "" && c.own.StoreDir != "":
		return nil, c.fileError("both its store_dir and WithStoreDir name a store; leave one out")
	case o.StoreDir != "" && c.tempStore:
		return nil, c.fileError("both its store_dir and WithTempStore name a store; leave one out")
	case o.StoreDir == "" && c.own.StoreDir == "" && !c.tempStore && o.JetStream:
		return nil, c.fileError("its jetstream has no store_dir, and the default is lost at a restart of the host; name one there, or give WithStoreDir")
	case o.StoreDir == "" && c.own.StoreDir == "" && !c.tempStore:
		return nil, c.fileError("it does not enable JetStream; write jetstream { store_dir: ... }, or give WithStoreDir")
	case o.ServerName != "" && c.own.ServerName != "":
		return nil, c.fileError("both its server_name and WithServerName name the server; leave one out")
	case c.syncSet && (o.SyncAlways || o.SyncInterval != 0):
		return nil, c.fileError("both its sync_interval and WithSync say when to sync; leave one out")
	}
	// Otherwise a user of the system account could make the server read the file without the checks made here.
	o.ConfigFile = ""
	o.JetStream = true
	o.StoreDir = cmp.Or(o.StoreDir, c.own.StoreDir)
	o.ServerName = cmp.Or(c.own.ServerName, o.ServerName)
	if !o.SyncAlways && o.SyncInterval == 0 {
		c.applySync(o)
	}
	return o, nil
}

// Places where the server quotes a URL or a seed that it can't read.
var (
	login = regexp.MustCompile(`://[^"\n]*@`)
	seed  = regexp.MustCompile(`\bS[AUONCX][A-Za-z0-9]{16,}`)
)

// fileError adds the name of the file, unless the text starts with a position in the file.
func (c *config) fileError(format string, args ...any) error {
	text := seed.ReplaceAllString(login.ReplaceAllString(fmt.Sprintf(format, args...), "://xxxxx@"), "xxxxx")
	if !strings.HasPrefix(text, c.configFile+":") {
		text = c.configFile + ": " + text
	}
	return invalid("WithConfigFile: %s", text)
}
