package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/lockfabric/lockfabric/embedded"
)

// shutdownTimeout bounds an orderly end of a server.
const shutdownTimeout = 30 * time.Second

type serveCmd struct {
	Store         string        `placeholder:"DIR" env:"LOCKFABRIC_STORE" help:"Directory for the locks; one server at a time uses it. Required."`
	Listen        string        `placeholder:"HOST:PORT" default:"127.0.0.1:4222" help:"Address for clients; port 0 takes a free one."`
	AllowRemote   bool          `help:"Allow addresses that other hosts reach. The server asks nobody who they are: everybody there can take and break every lock."`
	Sync          string        `placeholder:"always|INTERVAL" default:"always" help:"When writes reach the disk: always, before they are acknowledged, or every so often, and then a power failure can lose locks that were granted."`
	Name          string        `help:"Name of this server, needed in a cluster; it must stay the same across restarts."`
	ClusterName   string        `default:"lockfabric" help:"Name of the cluster."`
	ClusterListen string        `placeholder:"HOST:PORT" help:"Address for the other servers of the cluster."`
	Routes        []string      `placeholder:"HOST:PORT" help:"Cluster addresses of all servers, this one too, with commas."`
	IdleExit      time.Duration `help:"End when no client was connected for so long; 0 is never."`
	Local         bool          `hidden:"" help:"Be the local server of --local-dir."`
}

// serving is the JSON that serve writes when it is ready.
type serving struct {
	URL     string `json:"url"`
	Store   string `json:"store"`
	Cluster string `json:"cluster,omitempty"` // address for other servers
	PID     int    `json:"pid"`
}

// Run serves until SIGINT or SIGTERM, or until nobody uses the server.
func (v *serveCmd) Run(ctx context.Context, c *cli, s *streams) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if v.IdleExit < 0 {
		return usageError("serve --idle-exit=%v: give a time, or 0 for never", v.IdleExit)
	}
	if v.Local {
		return v.serveLocal(ctx, c, s)
	}
	opts, err := v.options()
	if err != nil {
		return err
	}
	srv, err := embedded.Start(ctx, append(opts, embedded.WithLogger(s.log))...)
	if err != nil {
		return err
	}
	ready := serving{URL: srv.ClientURL(), Store: srv.StoreDir(), PID: os.Getpid()}
	if a := srv.ClusterAddr(); a != nil {
		ready.Cluster = a.String()
	}
	err = s.print(c.Output, ready, func(w io.Writer) {
		fmt.Fprintf(w, "serving %s from %s\n", ready.URL, printable(ready.Store))
	})
	if err == nil {
		watchIdle(ctx, srv, v.IdleExit)
	}
	return end(srv, err)
}

func (v *serveCmd) options() ([]embedded.Option, error) {
	if v.Store == "" {
		return nil, usageError("serve: name a directory for the locks with --store")
	}
	mode, err := v.syncMode()
	if err != nil {
		return nil, err
	}
	opts := []embedded.Option{embedded.WithStoreDir(v.Store), embedded.WithListen(v.Listen), embedded.WithSync(mode)}
	if v.AllowRemote {
		opts = append(opts, embedded.WithAllowNonLoopback())
	}
	if v.Name != "" {
		opts = append(opts, embedded.WithServerName(v.Name))
	}
	switch {
	case v.ClusterListen == "" && len(v.Routes) == 0:
	case v.ClusterListen == "" || len(v.Routes) == 0 || v.Name == "":
		return nil, usageError("serve: a cluster needs --cluster-listen, --routes and --name")
	default:
		opts = append(opts, embedded.WithCluster(v.ClusterName, v.ClusterListen, v.Routes...))
	}
	return opts, nil
}

func (v *serveCmd) syncMode() (embedded.SyncMode, error) {
	if v.Sync == "always" {
		return embedded.SyncAlways, nil
	}
	d, err := time.ParseDuration(v.Sync)
	if err != nil {
		return 0, usageError("serve --sync=%s: give 'always', or an interval such as 100ms", v.Sync)
	}
	return embedded.SyncInterval(d), nil
}

// watchIdle waits until ctx ends, or no client was connected for d; 0 is never.
func watchIdle(ctx context.Context, srv *embedded.Server, d time.Duration) {
	if d == 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(min(max(d/10, 10*time.Millisecond), time.Second))
	defer tick.Stop()
	used := time.Now()
	for time.Since(used) < d {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if srv.NumClients() > 0 {
			used = time.Now()
		}
	}
}

// end shuts the server down in order, whatever happened before.
func end(srv *embedded.Server, err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if serr := srv.Shutdown(ctx); err == nil {
		err = serr
	}
	return err
}
