package embedded

import (
	"fmt"
	"regexp"
	"strings"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// WithConfigFile takes everything from a configuration file of nats-server:
// listeners, users, accounts and permissions, TLS, cluster. Some options can be
// given besides, and no others:
//
//   - WithStoreDir or WithTempStore, which enable JetStream, if the file names no
//     store_dir. One of the three is needed: the server's own default is below
//     the system's directory for temporary files.
//   - WithSync, if the file has no sync_interval. Without either every write is
//     synced, which is not the default of nats-server.
//   - WithServerName, if the file has no server_name.
//   - WithAllowNonLoopback and WithLogger.
//
// The server reads the file at Start and by [Server.Reload] only, not for a user of
// the system account who asks it to (nats server config reload).
//
// The file's rules for logging (log_file, syslog, debug, trace) have no effect, see
// WithLogger. The store is kept to one server as with WithStoreDir, but a stock
// nats-server on the same directory knows nothing of that.
func WithConfigFile(path string) Option {
	return func(c *config) error {
		return set(&c.configFile, path, path != "", "WithConfigFile: the path is empty; name a configuration file of nats-server")
	}
}

// checkAlone refuses options whose place is in the file.
func (c *config) checkAlone() error {
	for _, o := range []struct {
		name  string
		given bool
	}{
		{"WithListen", c.listen != ""},
		{"WithToken", c.auth.token != ""},
		{"WithUser or WithSystemUser", len(c.auth.users) > 0},
		{"WithNKey", len(c.auth.nkeys) > 0},
		{"WithTLS", c.tls.cert != ""},
		{"WithClientCA", c.tls.ca != ""},
		{"WithMaxStore", c.maxStore != 0},
		{"WithMaxMemory", c.maxMemory != 0},
		{"WithCluster", c.cluster != nil},
		{"WithClusterAuth", c.routeAuth.user != ""},
		{"WithClusterTLS", c.routeAuth.tls.cert != ""},
	} {
		if o.given {
			return invalid("%s and WithConfigFile; leave the option out and say it in %s", o.name, c.configFile)
		}
	}
	return nil
}

// fileOptions reads the file, and adds what is safe where it says nothing.
func (c *config) fileOptions() (*natsserver.Options, error) {
	o, err := natsserver.ProcessConfigFile(c.configFile)
	if err != nil {
		return nil, c.fileError("%s", strings.TrimSpace(err.Error()))
	}
	switch {
	case o.StoreDir != "" && !o.JetStream:
		return nil, c.fileError("it names a store_dir but does not enable JetStream; write jetstream { store_dir: ... }")
	case o.StoreDir != "" && c.storeDir != "":
		return nil, c.fileError("both its store_dir and WithStoreDir name a store; leave one out")
	case o.StoreDir != "" && c.tempStore:
		return nil, c.fileError("both its store_dir and WithTempStore name a store; leave one out")
	case o.StoreDir == "" && c.storeDir == "" && !c.tempStore && o.JetStream:
		return nil, c.fileError("its jetstream has no store_dir, and the default is lost at a restart of the host; name one there, or give WithStoreDir")
	case o.StoreDir == "" && c.storeDir == "" && !c.tempStore:
		return nil, c.fileError("it does not enable JetStream; write jetstream { store_dir: ... }, or give WithStoreDir")
	case o.ServerName != "" && c.name != "":
		return nil, c.fileError("both its server_name and WithServerName name the server; leave one out")
	case c.syncSet && (o.SyncAlways || o.SyncInterval != 0):
		return nil, c.fileError("both its sync_interval and WithSync say when to sync; leave one out")
	}
	// Who has a login of the system account could else have the server read the
	// file by itself, past all that is checked and added here.
	o.ConfigFile = ""
	o.JetStream = true
	if o.StoreDir == "" {
		o.StoreDir = c.storeDir
	}
	if c.name != "" {
		o.ServerName = c.name
	}
	if !o.SyncAlways && o.SyncInterval == 0 {
		c.applySync(o)
	}
	return o, nil
}

// Where the server quotes a URL or a seed that it can't read.
var (
	login = regexp.MustCompile(`://[^"\n]*@`)
	seed  = regexp.MustCompile(`\bS[AUONCX][A-Za-z0-9]{16,}`)
)

// fileError names the file, unless the text begins with the place in it.
func (c *config) fileError(format string, args ...any) error {
	text := seed.ReplaceAllString(login.ReplaceAllString(fmt.Sprintf(format, args...), "://xxxxx@"), "xxxxx")
	if !strings.HasPrefix(text, c.configFile+":") {
		text = c.configFile + ": " + text
	}
	return invalid("WithConfigFile: %s", text)
}
