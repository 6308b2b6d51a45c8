package fabric_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

// crowd has managers want one lock all the time, each with a connection of its own, until the test ends, or stop.
func crowd(t *testing.T, managers []*fabric.Manager) (stop func()) {
	ctx, cancel := context.WithCancel(waitContext(t))
	var wg sync.WaitGroup
	for _, m := range managers {
		wg.Go(func() {
			for ctx.Err() == nil {
				l, err := m.Acquire(ctx, "crowded")
				if err != nil {
					if ctx.Err() == nil && !errors.Is(err, fabric.ErrClosed) && !errors.Is(err, fabric.ErrConnectionClosed) {
						t.Error(err)
					}
					return
				}
				time.Sleep(5 * time.Millisecond)
				_ = l.Release(ctx)
			}
		})
	}
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// volunteer waits until one of the managers serves, and others send it operations.
func volunteer(t *testing.T, managers []*fabric.Manager, after uint64) (serving *fabric.Manager) {
	t.Helper()
	before := map[*fabric.Manager]uint64{}
	eventually(t, "one of them serves, and the others use it", func() bool {
		var owners, users []*fabric.Manager
		for _, m := range managers {
			st := m.Stats()
			switch _, noted := before[m]; {
			case st.Serving > after:
				owners = append(owners, m)
			case st.CoalescerTerm <= after:
			case !noted:
				before[m] = st.Coalesced
			case st.Coalesced > before[m]+5:
				users = append(users, m)
			}
		}
		if len(owners) != 1 || len(users) < 2 {
			return false
		}
		serving = owners[0]
		return true
	})
	return serving
}

// Who meets others all the time serves itself where nobody does; the next one when it is gone; and lets a better one.
func TestVolunteer(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		conns := map[*fabric.Manager]*nats.Conn{}
		var managers []*fabric.Manager
		for i := range 6 {
			nc := s.conn(t)
			road := []fabric.Road{fabric.RoadAutomatic, fabric.RoadCoalesced}[i%2]
			m := newManager(t, nc, fabric.WithFabric(o.name), fabric.WithRoad(road), fabric.WithTTL(5*time.Second))
			managers, conns[m] = append(managers, m), nc
		}
		crowd(t, managers)
		first := volunteer(t, managers, 0)
		owner, _ := o.owner(t)
		if owner.Meta["rank"] != "1" || owner.Token != first.Stats().Serving {
			t.Errorf("the owner is %+v, and %d serves", owner, first.Stats().Serving)
		}
		conns[first].Close()
		second := volunteer(t, managers, owner.Token)
		if first == second {
			t.Error("whose connection is closed serves")
		}
		better := o.manager(t, fabric.WithCoalescer())
		eventually(t, "the better one serves", func() bool { return better.Stats().Serving > second.Stats().Serving && second.Stats().Serving == 0 })
	})
}

// One client is not enough for a volunteer to go on.
func TestVolunteer_LetsGoOfFewClients(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		o, _ := s.inOffice(t)
		var managers []*fabric.Manager
		for range 5 {
			managers = append(managers, o.manager(t, fabric.WithRoad(fabric.RoadCoalesced), fabric.WithLeisure(time.Second)))
		}
		began := time.Now()
		stop := crowd(t, managers)
		owner := volunteer(t, managers, 0)
		stop()
		if n, took := fabric.Roads(owner).Hellos, time.Since(began); n > 10+uint64(took/time.Second) { // one each second; it is to look while it waits, not when it begins to
			t.Errorf("it looked for an owner %d times in %v before it served", n, took)
		}
		client := managers[0]
		if client == owner {
			client = managers[1]
		}
		eventually(t, "it lets go", func() bool {
			release(t, acquire(t, client, "k"))
			return owner.Stats().Serving == 0
		})
	})
}

// How often others are met is counted over a second at least, however soon one looks again.
func TestVolunteer_LooksAtASecond(t *testing.T) {
	var m fabric.Meetings
	now := time.Now()
	m.Often(100, now)
	for i := range uint64(9) {
		if now = now.Add(100 * time.Millisecond); m.Often(100+2*i, now) {
			t.Errorf("%d conflicts in %d ms are often", 2*i, 100*(i+1))
		}
	}
	if !m.Often(120, now.Add(99*time.Millisecond)) {
		t.Error("20 conflicts in a second are not often")
	}
	if m.Often(139, now.Add(100*time.Millisecond)) != true || m.Often(158, now.Add(1100*time.Millisecond)) {
		t.Error("a second begins with a look at the end of the one before")
	}
}

// asked waits until all have found n times more that nobody serves.
func asked(t *testing.T, managers []*fabric.Manager, n uint64) {
	t.Helper()
	for _, m := range managers {
		before := fabric.Roads(m).Hellos
		eventually(t, "an owner is looked for", func() bool { return fabric.Roads(m).Hellos >= before+n })
	}
}

func TestVolunteer_NotWhereFewMeetOrItIsOff(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		t.Parallel()
		few, m := s.inOffice(t)
		waiter := few.manager(t, fabric.WithRoad(fabric.RoadAutomatic))
		off, _ := s.inOffice(t)
		var managers []*fabric.Manager
		for range 5 {
			managers = append(managers, off.manager(t, fabric.WithRoad(fabric.RoadAutomatic), fabric.WithoutVolunteering()))
		}
		crowd(t, managers)
		acquire(t, m, "k")
		for fabric.Roads(waiter).Hellos < 2 && few.record(t) == nil {
			ctx, cancel := context.WithTimeout(waitContext(t), 500*time.Millisecond)
			if _, err := waiter.Acquire(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			cancel()
		}
		asked(t, managers[:1], 2)
		for _, o := range []*office{few, off} {
			if rec := o.record(t); rec != nil {
				t.Errorf("somebody serves: %+v", rec)
			}
		}
	})
}

// C30: who may not serve gives the lock back, and does not try again for long.
func TestC30AVolunteerWithoutRights(t *testing.T) {
	t.Parallel()
	opts := &server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir()}
	for name, role := range map[string]fabric.Role{"client": fabric.RoleClient, "admin": fabric.RoleAdmin} {
		u := &server.User{Username: name, Password: "x", Permissions: &server.Permissions{Publish: &server.SubjectPermission{}, Subscribe: &server.SubjectPermission{}}}
		all, err := fabric.Permissions(fabric.DefaultFabric, role, "_INBOX", 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			list := &u.Permissions.Publish.Allow
			if p.Subscribe {
				list = &u.Permissions.Subscribe.Allow
			}
			*list = append(*list, p.Subject)
		}
		opts.Users = append(opts.Users, u)
	}
	url := testserver.Start(t, opts).ClientURL()
	connect := func(user string) *nats.Conn {
		nc, err := nats.Connect(url, nats.UserInfo(user, "x"), nats.ReconnectBufSize(-1), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	admin := newManager(t, connect("admin"))
	var managers []*fabric.Manager
	var terms [5]atomic.Int32 // that have ended
	for i := range terms {
		log := slog.New(counted{slog.DiscardHandler, "this process is the fabric's coalescer no more", &terms[i]})
		managers = append(managers, newManager(t, connect("client"), fabric.WithRoad(fabric.RoadAutomatic), fabric.WithLogger(log)))
	}
	crowd(t, managers)
	for i := range terms {
		eventually(t, "it has had the lock, and has given it back", func() bool { return terms[i].Load() > 0 })
	}
	asked(t, managers, 2)
	info, err := admin.Coalescer(waitContext(t))
	if err != nil || len(info.Holders)+len(info.Waiters) > 0 {
		t.Errorf("who may not serve has the lock: %+v, %v", info, err)
	}
	for i := range terms {
		if n := terms[i].Load(); n > 1 {
			t.Errorf("one tried %d times", n)
		}
	}
}

// counted counts the records with a message.
type counted struct {
	slog.Handler
	message string
	n       *atomic.Int32
}

func (h counted) Enabled(context.Context, slog.Level) bool { return true }

func (h counted) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.message {
		h.n.Add(1)
	}
	return nil
}
