package fabric_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/faultproxy"
)

// A connection is silent for a while and then reset. As soon as it is back the
// renewals that were under way are sent again, before any other request of the
// manager, and no hold is lost.
func TestReconnect_RenewalsGoFirst(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		const ttl, every, holds = 15 * time.Second, time.Second, 6
		p := faultproxy.New(t, s.server.ClientURL())
		nc, err := nats.Connect(p.URL(), nats.ReconnectBufSize(-1), nats.Timeout(patience), nats.MaxReconnects(-1),
			nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		m := newManager(t, nc, fabric.WithFabric(s.fabric(t)))
		leases := map[string]bool{}
		var held []*fabric.Lock
		for i := range holds {
			// A lease for each.
			l := acquire(t, m, fmt.Sprint("held", i), fabric.WithTTL(ttl), fabric.WithRenewInterval(every), fabric.WithMaxRenewals(1000))
			held = append(held, l)
			leases[leaseOf(l.ID())] = true
		}
		ctx, stop := context.WithCancel(waitContext(t))
		var users sync.WaitGroup
		defer users.Wait()
		defer stop()
		var unavailable [16]atomic.Uint64
		for i := range unavailable {
			users.Go(func() {
				for ctx.Err() == nil { // in vain every few milliseconds while there is no connection
					actx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
					if _, err := m.Inspect(actx, "free"); err != nil { // which reads no lease
						unavailable[i].Add(1)
					}
					cancel()
				}
			})
		}

		var mu sync.Mutex
		doubt := map[string]bool{} // those whose renewal was sent and is not answered
		lost := p.DropRequests(func(subject string, _, _ []byte) bool {
			id := lastToken(subject)
			if !strings.HasPrefix(subject, "$KV.") || !leases[id] {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			doubt[id] = true
			return true
		})
		eventually(t, "a renewal of each", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(doubt) == holds
		})
		p.Cut()
		lost.Remove()
		// The first requests after the cut. A lease is read by its renewal, where that had waited for
		// its answer too long already.
		var order []string
		watch := p.DropRequests(func(subject string, _, _ []byte) bool {
			if strings.HasPrefix(subject, "$KV.") || strings.HasPrefix(subject, "$JS.API.STREAM.MSG.GET.") && !strings.HasSuffix(subject, "-leases") {
				mu.Lock()
				order = append(order, subject)
				mu.Unlock()
			}
			return false
		})
		for i := range unavailable {
			was := unavailable[i].Load()
			eventually(t, "a request in vain", func() bool { return unavailable[i].Load() > was+1 })
		}
		before := make([]time.Time, holds)
		for i, l := range held {
			before[i] = l.ValidUntil()
		}
		p.Heal()
		requests := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return order
		}
		eventually(t, "requests after the cut", func() bool { return len(requests()) > 10*holds })
		watch.Remove()
		for i, subject := range requests() {
			if len(doubt) == 0 {
				break
			}
			if id := lastToken(subject); !leases[id] {
				t.Errorf("request %d after the reconnect is %s", i+1, subject)
			} else {
				delete(doubt, id)
			}
		}
		for i, l := range held {
			eventually(t, "a renewal", func() bool { return l.Err() != nil || l.ValidUntil().After(before[i]) })
			if err := l.Err(); err != nil {
				t.Error(err)
			}
		}
	})
}

func lastToken(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }
