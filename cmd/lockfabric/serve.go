package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/kv"
)

const shutdownTimeout = 30 * time.Second

// These are not the defaults of the flags, so that it is known whether a flag was given beside a configuration file.
const (
	defaultListen  = "127.0.0.1:4222"
	defaultCluster = "lockfabric"
)

type serveCmd struct {
	Store         string        `placeholder:"DIR" env:"LOCKFABRIC_STORE" help:"Directory for the locks; one server at a time can use it. Required, unless --config contains one."`
	Config        string        `placeholder:"FILE" help:"Configuration file of nats-server, for all other settings. Can be combined with --store, --sync, --name, --allow-remote, --shards, --no-coalesce, --health, --ui and --idle-exit."`
	Listen        string        `placeholder:"HOST:PORT" help:"Address for clients. Default: 127.0.0.1:4222. Port 0 selects a free port."`
	AllowRemote   bool          `help:"Allow addresses that other hosts can reach without authentication: everybody there can acquire and break every lock."`
	Sync          string        `placeholder:"always|INTERVAL" help:"When writes are synced to disk: always (the default), before they are acknowledged; or an interval, and a power failure can then lose granted locks."`
	Name          string        `help:"Name of this server, required in a cluster; it must stay the same across restarts."`
	ClusterName   string        `placeholder:"NAME" help:"Name of the cluster. Default: lockfabric."`
	ClusterListen string        `placeholder:"HOST:PORT" help:"Address for the other servers of the cluster."`
	Routes        []string      `placeholder:"HOST:PORT" help:"Cluster addresses of all servers, including this one, separated by commas."`
	Security      serveAuth     `embed:""`
	Shards        int           `placeholder:"N" help:"Create the fabric with this number of streams for its locks, 1 to 64; see docs/coalescing.md. An existing fabric must have the same number."`
	NoCoalesce    bool          `help:"Don't serve as a coalescer."`
	Health        string        `placeholder:"HOST:PORT" help:"HTTP address for probes, open to everybody who can reach it: /livez (this process runs), /readyz (locks can be acquired and released), and /metrics for Prometheus."`
	UI            string        `name:"ui" placeholder:"HOST:PORT" help:"Loopback address for the page of 'lockfabric ui', read-only. The page's address with its token is printed, unless LOCKFABRIC_UI_TOKEN sets the token."`
	IdleExit      time.Duration `from:"0" give:"a time, or 0 for never" help:"End if no client was connected for this time; 0 means never."`
	Local         bool          `hidden:"" help:"Run as the local server of --local-dir."`
}

// serving is the JSON that serve prints when it is ready.
type serving struct {
	URL     string `json:"url"`
	Store   string `json:"store"`
	Auth    bool   `json:"auth"`              // clients must authenticate
	TLS     bool   `json:"tls"`               // clients must use TLS
	Cluster string `json:"cluster,omitempty"` // address for other servers
	Health  string `json:"health,omitempty"`  // address for probes
	UI      string `json:"ui,omitempty"`      // address of the page, as printed by ui
	PID     int    `json:"pid"`
}

// Run serves until SIGINT or SIGTERM, or until the server is idle.
func (v *serveCmd) Run(ctx context.Context, c *cli, s *streams) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if c.given["shards"] && !kv.ValidShards(v.Shards) {
		return usageError("serve --shards=%d: give 1 to %d", v.Shards, kv.MaxShards)
	}
	if v.Local {
		return v.serveLocal(ctx, c, s)
	}
	if i := slices.IndexFunc(connectingFlags, func(name string) bool { return c.given[name] }); i >= 0 {
		return usageError("serve --%s: that is for commands that connect to a server; see 'lockfabric serve --help' for whom to let in", connectingFlags[i])
	}
	// From the start, so that no signal ends a server that is still recovering its store.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	opts, err := v.options(c)
	if err != nil {
		return err
	}
	counted := newMetrics()
	probes := health{metrics: promhttp.HandlerFor(counted, promhttp.HandlerOpts{})}
	at, stopProbes, err := probes.listen(v.Health)
	if err != nil {
		return err
	}
	defer stopProbes()
	var page *pageListener
	if v.UI != "" {
		if page, err = (&uiCmd{Listen: v.UI}).listen("serve --ui"); err != nil {
			return err
		}
		defer func() { _ = page.Close() }()
	}
	srv, err := embedded.Start(ctx, append(opts, embedded.WithLogger(s.log))...)
	switch {
	case toldToEnd(ctx, err):
		return nil
	case err != nil:
		return advise(err)
	}
	if v.Shards != 0 {
		if err := v.divide(ctx, srv, c.Fabric, s); err != nil {
			return end(srv, err)
		}
	}
	ready := serving{URL: srv.ClientURL(), Store: srv.StoreDir(), Auth: srv.Auth(), TLS: srv.TLS(), Health: at, PID: os.Getpid()}
	if a := srv.ClusterAddr(); a != nil {
		ready.Cluster = a.String()
	}
	if page != nil {
		ready.UI = page.at.URL
	}
	probes.ready(srv.Health)
	counted.MustRegister(serverStats{srv})
	notify("READY=1")
	err = s.print(c.Output, ready, func(w io.Writer) {
		fmt.Fprintf(w, "serving %s from %s\n", ready.URL, printable(ready.Store))
		if page != nil {
			fmt.Fprintf(w, "open %s\n", ready.UI)
		}
	})
	if err == nil {
		err = v.attend(ctx, srv, page, hangup, c.Fabric, counted, s)
	}
	notify("STOPPING=1")
	return end(srv, err)
}

// attend does the additional tasks of a running server, until it must end.
func (v *serveCmd) attend(ctx context.Context, srv *embedded.Server, l *pageListener, hangup chan os.Signal, name string, counted *metrics, s *streams) error {
	page, err := showPage(srv, l, name, s)
	if err != nil {
		return err
	}
	defer page.end()
	var own *selfClient
	if !v.NoCoalesce {
		own = coalesceFor(srv, s.log, counted.coalescer)
	}
	defer own.end()
	// Only now, because nats-server 2.15.2 has a data race between a reload and a client that connects.
	defer reloadOn(hangup, srv, s)()
	clients := func() int { return srv.NumClients() - own.clients() - page.clients() }
	return watch(ctx, probe{health: srv.Health, clients: clients, idle: v.IdleExit})
}

// toldToEnd reports whether a server did not start only because of a signal.
func toldToEnd(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Cause(ctx))
}

func (v *serveCmd) options(c *cli) ([]embedded.Option, error) {
	if v.Store == "" && v.Config == "" {
		return nil, usageError("serve: name a directory for the locks with --store, or a configuration file with --config")
	}
	if v.Config != "" {
		if err := v.checkConfig(c); err != nil {
			return nil, err
		}
	}
	opts, err := v.Security.options()
	if err != nil {
		return nil, err
	}
	mode := embedded.SyncAlways
	if v.Sync != "" && v.Sync != "always" {
		d, err := time.ParseDuration(v.Sync)
		if err != nil {
			return nil, usageError("serve --sync=%s: give 'always', or an interval such as 100ms", v.Sync)
		}
		mode = embedded.SyncInterval(d)
	}
	opts = opts.add(v.Sync != "", embedded.WithSync(mode)).
		add(v.Store != "", embedded.WithStoreDir(v.Store)).
		add(v.AllowRemote, embedded.WithAllowNonLoopback()).
		add(v.Name != "", embedded.WithServerName(v.Name)).
		add(v.Config != "", embedded.WithConfigFile(v.Config)).
		add(v.Config == "", embedded.WithListen(cmp.Or(v.Listen, defaultListen)))
	a := &v.Security
	onlyForCluster := a.ClusterUser + a.ClusterPasswordFile + a.ClusterTLSCert + a.ClusterTLSKey + a.ClusterTLSCA
	switch {
	case v.ClusterListen == "" && len(v.Routes) == 0 && v.ClusterName+onlyForCluster == "":
		return opts, nil
	case v.ClusterListen == "" || len(v.Routes) == 0 || v.Name == "":
		return nil, usageError("serve: a cluster needs --cluster-listen, --routes and --name")
	}
	for _, r := range v.Routes {
		if strings.Contains(r, "@") {
			return nil, usageError("serve --routes: name and password on the command line can be read by all users of this host: give --cluster-user and --cluster-password-file")
		}
	}
	more, err := login(embedded.WithClusterAuth, "--cluster-user", a.ClusterUser, "--cluster-password-file", a.ClusterPasswordFile, clusterPasswordEnv)
	opts = append(opts, more...).
		add(a.ClusterTLSCert+a.ClusterTLSKey+a.ClusterTLSCA != "", embedded.WithClusterTLS(a.ClusterTLSCert, a.ClusterTLSKey, a.ClusterTLSCA))
	return append(opts, embedded.WithCluster(cmp.Or(v.ClusterName, defaultCluster), v.ClusterListen, v.Routes...)), err
}

type options []embedded.Option

// add adds the option if given is true.
func (o options) add(given bool, option embedded.Option) options {
	if given {
		o = append(o, option)
	}
	return o
}

// goWithConfig are the flags of serve that can be combined with a configuration file.
var goWithConfig = []string{"config", "store", "sync", "name", "allow-remote", "shards", "no-coalesce", "idle-exit", "health", "ui"}

// checkConfig refuses flags and passwords that belong in the configuration file.
func (v *serveCmd) checkConfig(c *cli) error {
	const leaveOut = "serve: %s and --config: leave it out and say it in %s"
	for _, flag := range c.flags {
		if c.given[flag.Name] && !slices.Contains(goWithConfig, flag.Name) {
			return usageError(leaveOut, "--"+flag.Name, v.Config)
		}
	}
	for _, env := range []string{passwordEnv, systemPasswordEnv, clusterPasswordEnv} {
		if os.Getenv(env) != "" {
			return usageError(leaveOut, env, v.Config)
		}
	}
	return nil
}

// reloadOn reads certificates and configuration again at every signal, until stop is called, which waits.
func reloadOn(hangup chan os.Signal, srv *embedded.Server, s *streams) (stop func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for range hangup {
			if err := srv.Reload(); err != nil {
				s.log.Error("not reloaded, all goes on as before", "error", message(advise(err)))
			} else {
				s.log.Info("reloaded")
			}
		}
	})
	return func() {
		signal.Stop(hangup)
		close(hangup)
		wg.Wait()
	}
}

// How often a server checks its store, and how many checks in a row must fail before it ends. A single check can fail
// while a bucket is created or deleted.
const (
	lookAtStore   = time.Second
	storeFailures = 3
)

// probe contains the checks of watch.
type probe struct {
	health  func() error
	clients func() int
	idle    time.Duration // 0 = no limit
}

// watch waits until ctx ends, or until the server was idle for the given time. Its error is that of a store that is gone
// or can't be written any more, so that only a new start can help.
func watch(ctx context.Context, srv probe) error {
	clients := make(<-chan time.Time) // never
	if srv.idle > 0 {
		tick := time.NewTicker(min(max(srv.idle/10, 10*time.Millisecond), time.Second))
		defer tick.Stop()
		clients = tick.C
	}
	store := time.NewTicker(lookAtStore)
	defer store.Stop()
	used, failures := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-clients:
			if srv.clients() > 0 {
				used = time.Now()
			}
			if time.Since(used) >= srv.idle {
				return nil
			}
		case <-store.C:
			err := srv.health()
			if err == nil {
				failures = 0
			} else if failures++; failures == storeFailures {
				return fmt.Errorf("serve: %w: see to the disk and start the server again", err)
			}
		}
	}
}

// end shuts the server down, whatever happened before.
func end(srv *embedded.Server, err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	return cmp.Or(err, srv.Shutdown(ctx))
}

// Variables for passwords that are not in a file. A server must not use the variables of client credentials for its users.
const (
	passwordEnv        = "LOCKFABRIC_SERVE_PASSWORD"
	systemPasswordEnv  = "LOCKFABRIC_SERVE_SYSTEM_PASSWORD"
	clusterPasswordEnv = "LOCKFABRIC_SERVE_CLUSTER_PASSWORD"
)

// serveAuth contains the flags for authentication. Other users can read command lines, so these contain no secrets.
type serveAuth struct {
	AllowUser          string   `placeholder:"NAME" help:"Admit clients with this name and the password in --password-file or LOCKFABRIC_SERVE_PASSWORD. For more users, use --config."`
	PasswordFile       string   `placeholder:"FILE" help:"Password of --allow-user, or its bcrypt hash."`
	TokenFile          string   `placeholder:"FILE" help:"Admit clients with the token in this file."`
	AllowNkey          []string `placeholder:"PUBLICKEY" help:"Admit clients with the private key of this user key (U...). Can be repeated."`
	SystemUser         string   `placeholder:"NAME" help:"Admit clients with this name and the password in --system-password-file or LOCKFABRIC_SERVE_SYSTEM_PASSWORD to the system account. They can read the settings of all servers, for doctor, but no locks."`
	SystemPasswordFile string   `placeholder:"FILE" help:"Password of --system-user, or its bcrypt hash."`

	TLSCert   string `name:"tls-cert" placeholder:"FILE" help:"Require TLS from clients, with this certificate."`
	TLSKey    string `name:"tls-key" placeholder:"FILE" help:"Private key of --tls-cert."`
	TLSCA     string `name:"tls-ca" placeholder:"FILE" help:"Certificate authorities for clients' certificates; with --tls-verify."`
	TLSVerify bool   `name:"tls-verify" help:"Admit only clients with a certificate signed by --tls-ca."`

	ClusterUser         string `placeholder:"NAME" help:"User name with which the servers of the cluster authenticate."`
	ClusterPasswordFile string `placeholder:"FILE" help:"Password of --cluster-user; or in LOCKFABRIC_SERVE_CLUSTER_PASSWORD."`
	ClusterTLSCert      string `name:"cluster-tls-cert" placeholder:"FILE" help:"Use TLS between the servers of the cluster, with this certificate for both ends."`
	ClusterTLSKey       string `name:"cluster-tls-key" placeholder:"FILE" help:"Private key of --cluster-tls-cert."`
	ClusterTLSCA        string `name:"cluster-tls-ca" placeholder:"FILE" help:"Certificate authorities for the servers' certificates."`
}

func (a *serveAuth) options() (options, error) {
	user, err := login(embedded.WithUser, "--allow-user", a.AllowUser, "--password-file", a.PasswordFile, passwordEnv)
	system, serr := login(embedded.WithSystemUser, "--system-user", a.SystemUser, "--system-password-file", a.SystemPasswordFile, systemPasswordEnv)
	token, terr := readSecret("serve --token-file", a.TokenFile, "")
	if err := cmp.Or(err, serr, terr); err != nil {
		return nil, err
	}
	if a.TLSVerify != (a.TLSCA != "") {
		return nil, usageError("serve: to check clients' certificates, give --tls-verify and --tls-ca")
	}
	return append(user, system...).
		add(token != "", embedded.WithToken(token)).
		add(len(a.AllowNkey) > 0, embedded.WithNKey(a.AllowNkey...)).
		add(a.TLSCert+a.TLSKey != "", embedded.WithTLS(a.TLSCert, a.TLSKey)).
		add(a.TLSVerify, embedded.WithClientCA(a.TLSCA)), nil
}

// login returns the option for a name and its password, or none if neither is given.
func login(option func(name, password string) embedded.Option, nameFlag, name, fileFlag, file, env string) (options, error) {
	password, err := readSecret("serve "+fileFlag, file, env)
	switch {
	case err != nil:
		return nil, err
	case name != "" && password == "":
		return nil, usageError("serve: %s needs a password: %s or %s", nameFlag, fileFlag, env)
	case name != "":
		return options{option(name, password)}, nil
	case password != "": // without a name, the password would have no effect
		return nil, usageError("serve: %s and %s need %s", fileFlag, env, nameFlag)
	}
	return nil, nil
}

// readSecret reads the secret of a flag from the file, without a line break at the end, or else from the environment.
func readSecret(flag, file, env string) (string, error) {
	if file == "" {
		return os.Getenv(env), nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", usageError("%s: %w", flag, err)
	}
	text := strings.TrimRight(string(data), "\r\n")
	switch {
	case text == "":
		return "", usageError("%s: %s is empty", flag, file)
	case strings.ContainsAny(text, "\r\n"):
		return "", usageError("%s: %s has more than one line", flag, file)
	}
	return text, nil
}

// flagNames maps names of embedded's options to flags, longer names first.
var flagNames = strings.NewReplacer(
	"WithTLS and WithClientCA", "--tls-cert, --tls-key and --tls-ca", "WithTLS", "--tls-cert and --tls-key", "WithClientCA", "--tls-verify with --tls-ca",
	"WithClusterTLS", "--cluster-tls-cert, --cluster-tls-key and --cluster-tls-ca", "WithClusterAuth", "--cluster-user", "WithCluster", "--cluster-listen and --routes",
	"WithConfigFile", "--config", "WithStoreDir", "--store", "WithServerName", "--name", "WithSync", "--sync", "WithListen", "--listen",
	"WithSystemUser", "--system-user", "WithUser", "--allow-user", "WithToken", "--token-file", "WithNKey", "--allow-nkey", "WithAllowNonLoopback", "--allow-remote",
)

// advise rewrites an error of embedded with the names of the flags.
func advise(err error) error {
	switch {
	case strings.Contains(err.Error(), syscall.EADDRINUSE.Error()): // the server reports it only as a text
		return fmt.Errorf("%w: if a NATS server has this address, use it with 'lockfabric --server'; or choose another one with --listen or --cluster-listen", err)
	case !errors.Is(err, embedded.ErrInvalidOption):
		return err
	}
	return usageError("serve: %s", strings.TrimPrefix(flagNames.Replace(err.Error()), embedded.ErrInvalidOption.Error()+": "))
}
