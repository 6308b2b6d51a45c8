package main

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/lockfabric/lockfabric/embedded"
)

// drainTime is how long a local server that nobody can find any more waits for
// those who have just found it.
const drainTime = time.Second

// serveLocal is the local server in its own process. Of several that are started
// at once the store's lock lets one run; the others leave without a word, as
// whoever started them looks for any server.
func (v *serveCmd) serveLocal(ctx context.Context, c *cli, s *streams) error {
	// What the first user's shell had open, a lock file or a pipe, is not to
	// stay open as long as this server runs.
	closeInherited()
	dir, err := c.localDir()
	if err != nil {
		return err
	}
	srv, state, err := startLocal(ctx, dir, s)
	switch {
	case errors.Is(err, embedded.ErrStoreInUse), toldToEnd(ctx, err):
		return nil
	case err != nil:
		return err
	}
	if err := state.write(dir); err != nil {
		return end(srv, err)
	}
	s.log.Info("local server ready", "url", state.URL, "pid", state.PID)
	// Whoever started it gets time to find it.
	idle := max(v.IdleExit, drainTime)
	for {
		if err := watch(ctx, srv, idle); err != nil {
			return end(srv, err)
		}
		if ctx.Err() != nil {
			break
		}
		// Nobody is connected, but somebody may have read the address just now.
		// They get time to connect, and if they do, all goes on. Later ones find
		// no address, and start a server that waits for the store's lock.
		removeState(dir)
		if !waitClient(ctx, srv, drainTime) {
			break
		}
		if err := state.write(dir); err != nil {
			return end(srv, err)
		}
	}
	// Told to end while in use: the address stays, so that the server which the
	// users start next can take it over; see startLocal.
	if srv.NumClients() == 0 {
		removeState(dir)
	}
	s.log.Info("local server ends")
	return end(srv, nil)
}

// waitClient reports whether a client connects within d.
func waitClient(ctx context.Context, srv *embedded.Server, d time.Duration) bool {
	end := time.After(d)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for srv.NumClients() == 0 {
		select {
		case <-tick.C:
		case <-end:
			return srv.NumClients() > 0
		case <-ctx.Done():
			return srv.NumClients() > 0
		}
	}
	return true
}

// startLocal starts the server at a free port with a fresh token. When the one
// before crashed, or was told to end under its users' hands, they are trying to
// reach it again at the old port: then it is taken over, and the token with it,
// so that they keep their locks. If somebody else has the port by now, who may
// have been told the token by them, neither is used.
func startLocal(ctx context.Context, dir string, s *streams) (*embedded.Server, localState, error) {
	state := localState{PID: os.Getpid(), Host: hostname()}
	start := func(addr, name, token string) (*embedded.Server, error) {
		state.Name, state.Token = name, token
		return embedded.Start(ctx, embedded.WithStoreDir(filepath.Join(dir, "store")), embedded.WithListen(addr),
			embedded.WithServerName(name), embedded.WithToken(token), embedded.WithLogger(s.log))
	}
	var srv *embedded.Server
	err := embedded.ErrStartFailed
	if old, rerr := readState(dir); rerr == nil {
		if u, perr := url.Parse(old.URL); perr == nil {
			srv, err = start(u.Host, old.Name, old.Token)
		}
	}
	if errors.Is(err, embedded.ErrStartFailed) && ctx.Err() == nil {
		srv, err = start("127.0.0.1:0", "local-"+rand.Text(), rand.Text()+rand.Text())
	}
	if err != nil {
		return nil, state, err
	}
	state.URL = srv.ClientURL()
	return srv, state, nil
}
