package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// drainTime is how long a local server whose address was removed waits for clients that have just read the address.
const drainTime = time.Second

// serveLocal runs the local server in its own process. If several are started at the same time, the guard admits one; the
// others end without a message, because their starters use any server.
func (v *serveCmd) serveLocal(ctx context.Context, c *cli, s *streams) error {
	// Files of the first user's shell, such as a lock file or a pipe, must not stay open as long as this server runs.
	closeInherited()
	freeOfStarter(s.log)
	dir, err := filepath.Abs(c.LocalDir)
	if err == nil {
		err = checkPrivate(dir)
	}
	if err != nil {
		return badDir(err)
	}
	release, err := guard(dir)
	if errors.Is(err, errGuarded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", embedded.ErrStoreInUse, err)
	}
	defer release()
	l := &localServer{dir: dir, idle: max(v.IdleExit, drainTime), log: s.log}
	return l.run(ctx)
}

type localServer struct {
	dir    string
	idle   time.Duration // long enough for the starter to connect
	log    *slog.Logger
	state  localState
	srv    *embedded.Server
	leases *leases
}

func (l *localServer) run(ctx context.Context) error {
	err := l.start(ctx)
	switch {
	case errors.Is(err, embedded.ErrStoreInUse), toldToEnd(ctx, err):
		return nil
	case err != nil:
		return err
	}
	if l.leases, err = followLeases(ctx, l.srv); err == nil {
		err = l.state.write(l.dir)
	}
	if err != nil {
		return end(l.srv, err)
	}
	l.log.Info("local server ready", "url", l.state.URL, "pid", l.state.PID)
	for {
		err := watch(ctx, probe{health: l.look, clients: l.clients, idle: l.idle})
		if errors.Is(err, embedded.ErrStoreGone) {
			return l.abandon(ctx, err)
		}
		if err != nil {
			return end(l.srv, err)
		}
		if ctx.Err() != nil {
			break
		}
		// A client may have just read the address. If it connects in time, the server continues. Later clients find no
		// address, and start a server that waits for the guard.
		removeState(l.dir)
		if !l.waitClient(ctx) {
			break
		}
		if err := l.state.write(l.dir); err != nil {
			return end(l.srv, err)
		}
	}
	// If the server is told to end while it is in use, the address stays for the next server; see start.
	if l.clients() == 0 {
		removeState(l.dir)
	}
	l.log.Info("local server ends")
	return end(l.srv, nil)
}

func (l *localServer) clients() int {
	n := l.srv.NumClients()
	if l.leases.nc.IsConnected() {
		n--
	}
	return n
}

// look checks what users may remove: it writes the address again if necessary, and fails if the store is damaged.
func (l *localServer) look() error {
	if err := l.srv.Health(); err != nil {
		return err
	}
	l.leases.last(time.Now())
	if now, err := readState(l.dir); err == nil && now == l.state {
		return nil
	}
	l.log.Warn("the address was removed or changed by somebody else, writing it again")
	return l.state.write(l.dir)
}

// abandon ends a server whose store was removed or replaced. It keeps the guard until no lease of its holders can be
// valid any more: they learn of the loss by their clocks before another server starts with an empty store. The address
// stays for that server.
func (l *localServer) abandon(ctx context.Context, cause error) error {
	err := end(l.srv, fmt.Errorf("local server: %w", cause))
	closed := time.Now()
	until := l.leases.last(closed)
	l.log.Error("the local server's files were removed or replaced, its locks are lost", "error", cause, "wait", until.Sub(closed))
	// The rest of the store no longer contains everything that was promised.
	store := filepath.Join(l.dir, storeDir)
	_ = os.Rename(store, store+closed.Format(".damaged-20060102T150405"))
	l.state.ClosedUntil = until
	l.leave()
	if pause.For(ctx, until.Sub(closed)) {
		l.state.ClosedUntil = time.Time{}
		l.leave()
	}
	return err
}

// leave writes the address for the next server, if this is possible.
func (l *localServer) leave() {
	err := os.MkdirAll(l.dir, dirMode)
	if err == nil {
		err = checkPrivate(l.dir)
	}
	if err == nil {
		err = l.state.write(l.dir)
	}
	if err != nil {
		l.log.Warn("the address can't be left to the next server", "error", err)
	}
}

// waitClient reports whether a client connects in time.
func (l *localServer) waitClient(ctx context.Context) bool {
	for end := time.Now().Add(drainTime); l.clients() == 0 && time.Now().Before(end) && ctx.Err() == nil; {
		pause.For(ctx, 10*time.Millisecond)
	}
	return l.clients() > 0
}

// start starts the server on a free port with a new token. If the previous server crashed or was told to end while in
// use, start uses the old port and token, so that its users keep their locks. If another program has the port in the
// meantime, it may have received the token from them, and neither is used.
func (l *localServer) start(ctx context.Context) error {
	l.state = localState{PID: os.Getpid(), Host: hostname()}
	start := func(addr, name, token string) (err error) {
		l.state.Name, l.state.Token = name, token
		l.srv, err = embedded.Start(ctx, embedded.WithStoreDir(filepath.Join(l.dir, storeDir)), embedded.WithListen(addr),
			embedded.WithServerName(name), embedded.WithToken(token), embedded.WithLogger(l.log))
		return err
	}
	err := embedded.ErrStartFailed
	if old, rerr := readState(l.dir); rerr == nil {
		// The previous server ended early in abandon.
		if !pause.For(ctx, time.Until(old.ClosedUntil)) {
			return context.Cause(ctx)
		}
		if u, perr := url.Parse(old.URL); perr == nil {
			err = start(u.Host, old.Name, old.Token)
		}
	}
	if errors.Is(err, embedded.ErrStartFailed) && ctx.Err() == nil {
		err = start("127.0.0.1:0", "local-"+rand.Text(), rand.Text()+rand.Text())
	}
	if err != nil {
		return err
	}
	l.state.URL = l.srv.ClientURL()
	return nil
}

// leases follows how long the holders may treat their locks as held. Without the server's files, this can't be read.
type leases struct {
	nc   *nats.Conn
	mu   sync.Mutex
	live map[string]leaseTime
}

// leaseTime is the time of the last seen renewal of a lease, and its TTL.
type leaseTime struct {
	seen  time.Time
	lasts time.Duration
}

// leasesSuffix is the common suffix of the leases buckets of all fabrics.
var leasesSuffix = kv.LeasesBucket("")

// followLeases follows the writes of leases, and reads the earlier ones in the background.
func followLeases(ctx context.Context, srv *embedded.Server) (*leases, error) {
	nc, err := srv.Connect(nats.Name("lockfabric local server"), nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	l := &leases{nc: nc, live: map[string]leaseTime{}}
	_, err = nc.Subscribe("$KV.*.*", func(m *nats.Msg) { l.see(m.Subject, m.Data) })
	if err = cmp.Or(err, nc.Flush()); err != nil {
		nc.Close()
		return nil, err
	}
	go l.readAll(ctx)
	return l, nil
}

// see records a write, even if the server refuses it. A tombstone counts only if the holder has written it.
func (l *leases) see(subject string, value []byte) {
	parts := strings.Split(subject, ".")
	if len(parts) != 3 || !strings.HasSuffix(parts[1], leasesSuffix) {
		return
	}
	info, err := lease.Decode(parts[2], value)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch key := parts[1] + "." + info.ID; {
	case !info.Dead:
		l.live[key] = leaseTime{time.Now(), info.TTL + info.Margin}
	case info.Reason != lease.ReasonExpired:
		delete(l.live, key)
	}
}

// readAll records the leases that are live in the store. For a lease that is recorded twice, the later time counts.
func (l *leases) readAll(ctx context.Context) {
	js, err := jetstream.New(l.nc)
	if err != nil {
		return
	}
	for name := range js.KeyValueStoreNames(ctx).Name() {
		fabric, ours := strings.CutSuffix(name, leasesSuffix)
		x, err := jskv.NewExaminer(l.nc, jskv.Config{Fabric: fabric})
		if !ours || err != nil {
			continue
		}
		if b, err := x.Open(ctx, name); err == nil {
			_ = b.Entries(ctx, ">", func(e jskv.Entry) (more bool) {
				l.see("$KV."+name+"."+e.Key, e.Value)
				return true
			})
		}
	}
}

// last returns when every lease has ended, if none is renewed after now. Without leases it returns now.
func (l *leases) last(now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.live, func(_ string, t leaseTime) bool { return now.Sub(t.seen) > t.lasts })
	var longest time.Duration
	for _, t := range l.live {
		longest = max(longest, t.lasts)
	}
	return now.Add(longest)
}
