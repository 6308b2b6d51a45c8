package fabric_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/jskv"
)

// The leases behind a queue are not read one after the other: on a slow link that
// takes a round trip for each.
func TestInspectReadsLeasesTogether(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const waiters = 5
		key, other := s.key(t), s.manager(t)
		limited := fabric.WithMaxRenewals(1000) // a lease of its own
		acquire(t, other, key, limited)
		for range waiters {
			queue(t, waitContext(t), other, key, limited)
		}
		m, w := s.wired(t)
		var mu sync.Mutex
		reads, all := 0, make(chan struct{})
		leaseRead := func(msg *nats.Msg) bool {
			return strings.HasPrefix(msg.Subject, "$JS.API.STREAM.MSG.GET.") && strings.HasSuffix(msg.Subject, "-leases")
		}
		w.fault(waiters+1, leaseRead, func(ctx context.Context, msg *nats.Msg, send jskv.Requester) (*nats.Msg, error) {
			mu.Lock()
			if reads++; reads == waiters+1 {
				close(all)
			}
			mu.Unlock()
			select {
			case <-all:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return send(ctx, msg)
		})
		info := inspect(t, m, key)
		if len(info.Holders) != 1 || len(info.Waiters) != waiters {
			t.Fatalf("%+v", info)
		}
		for _, p := range append(info.Holders, info.Waiters...) {
			if p.Lease.State != "live" || p.Lease.PID == 0 || p.Own {
				t.Errorf("%+v", p)
			}
		}
	})
}
