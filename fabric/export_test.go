package fabric

import (
	"context"
	"time"

	"github.com/lockfabric/lockfabric/coalesce"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// WithRequester replaces the connection's request call: every read
// and write of locks and leases uses it.
func WithRequester(request jskv.Requester) ManagerOption {
	return func(c *config) error { c.buckets.Request = request; return nil }
}

// DisposeLease closes the lease that a hold stands under, as for a retired one,
// and leaves the hold's entry where it is.
func DisposeLease(l *Lock) { l.s.dispose(l.share) }

// SweepAsIf sweeps the whole fabric as if it were so much later.
func SweepAsIf(ctx context.Context, m *Manager, later time.Duration) (Collected, error) {
	s, err := m.session(ctx)
	if err != nil {
		return Collected{}, err
	}
	return s.collect(ctx, ">", collect{later: later, most: sweepLocks})
}

// Doubt reports that the buckets may be gone, so that the manager looks.
func Doubt(ctx context.Context, m *Manager) error {
	s, err := m.session(ctx)
	if err == nil {
		s.doubts.raise()
	}
	return err
}

// WatchAllTrusting is Manager.WatchAll that begins with another watcher that often.
func WatchAllTrusting(ctx context.Context, m *Manager, prefix string, trust time.Duration, yield func([]Info, error) bool) {
	w := &prefixWatch{prefix: prefix, filter: ">", yield: yield, trust: trust, told: map[string]uint64{}}
	if err := m.onSessions(ctx, w.follow); err != nil {
		yield(nil, err)
	}
}

// Disown has the manager look whether it still wants what stands under its leases on a key, as others may ask it to.
func Disown(ctx context.Context, m *Manager, key string) {
	if s, err := m.session(ctx); err == nil {
		enc, _ := kv.EncodeName(key)
		s.releaseOrphans(ctx, enc)
	}
}

// OwnerKey is the key of the lock of whoever serves as the coalescer.
const OwnerKey = kv.CoalescerKey

// Depose takes the lock of a shard from its owner, for the next one who waits for it.
func Depose(ctx context.Context, m *Manager, shard int) error {
	s, err := m.session(ctx)
	if err == nil {
		_, err = s.forceRelease(ctx, kv.CoalescerOf(shard), force{now: true})
	}
	return err
}

// AsServer makes the manager a coalescer of a server's rank.
func AsServer() ManagerOption {
	return func(c *config) error { c.rank = rankServer; return nil }
}

// WithLeisure sets for how long a coalescer that nobody asks stays.
func WithLeisure(d time.Duration) ManagerOption {
	return func(c *config) error { c.idleLimit = d; return nil }
}

// Serving returns the term in which the manager is the coalescer, 0 if it is not.
func Serving(m *Manager) uint64 { return m.Stats().Serving }

// Meetings is what a process that may volunteer counts.
type Meetings struct{ meetings }

// Often counts.
func (m *Meetings) Often(n uint64, now time.Time) bool { return m.often(n, now) }

// Name returns the name of the manager's fabric.
func Name(m *Manager) string { return m.cfg.buckets.Fabric }

// Roads counts what the manager has sent to coalescers.
func Roads(m *Manager) coalesce.ClientStats {
	s, err := m.session(context.Background())
	if err != nil {
		return coalesce.ClientStats{}
	}
	var all coalesce.ClientStats
	for _, sh := range s.shards {
		if sh.router != nil {
			st := sh.router.Stats()
			all.Term = max(all.Term, st.Term)
			all.Frames += st.Frames
			all.Hellos += st.Hellos
		}
	}
	return all
}

// OnRoad reports whether the manager takes the road over a coalescer from the beginning.
func OnRoad(m *Manager) bool { return m.cfg.road == RoadCoalesced || m.cfg.road == RoadBoth }

// GiveAway gives a hold up for what is about to take its place, and reports whether its entry is taken
// for one that came back before that is written.
func GiveAway(h *Hold) (nobodys bool, err error) {
	err = h.supersede()
	return h.s.isOrphan(&record.Entry{ID: h.id}), err
}
