package fabric

import (
	"context"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

// WithTrip puts trip in the place of the connection's request call: every read
// and write of locks and leases passes it.
func WithTrip(trip jskv.RoundTripper) ManagerOption {
	return func(c *config) error { c.buckets.Trip = trip; return nil }
}

// DisposeLease closes the lease that a hold stands under, as for a retired one,
// and leaves the hold's entry where it is.
func DisposeLease(l *Lock) { l.s.dispose(l.slot) }

// SweepAsIf sweeps the whole fabric as if it were so much later.
func SweepAsIf(ctx context.Context, m *Manager, later time.Duration) (Collected, error) {
	s, err := m.session(ctx)
	if err != nil {
		return Collected{}, err
	}
	return s.collect(ctx, ">", collect{later: later})
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
	w := &prefixWatch{m: m, prefix: prefix, filter: ">", yield: yield, trust: trust, told: map[string]uint64{}}
	if err := m.onSessions(ctx, w.follow); err != nil {
		yield(nil, err)
	}
}
