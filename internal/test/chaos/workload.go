package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Workload is a load on the locks of one fabric. Fill in the exported fields,
// then call Run once; Progress can be called meanwhile.
type Workload struct {
	Managers []*fabric.Manager
	// Workers is the number of goroutines, dealt out over the managers.
	Workers int
	// Keys is the number of lock names.
	Keys int
	// Seed makes the choices of every worker repeatable, but not the schedule.
	Seed uint64
	// Patience bounds an acquire that is not ended on purpose. Reaching it is
	// a violation. The default is two minutes.
	Patience time.Duration
	// One in LongOneIn holds lasts up to LongHold. The others last
	// up to two milliseconds. The defaults are 800 ms and 500.
	LongHold  time.Duration
	LongOneIn int
	Tolerance Tolerance
	Oracle    Oracle
	// Recorder, if set, keeps the history.
	Recorder *Recorder

	prepared sync.Once
	tally    tally
}

// Names returns the lock names of the load.
func (w *Workload) Names() []string {
	names := make([]string, w.Keys)
	for i := range names {
		names[i] = fmt.Sprintf("chaos-%d", i) // each has its own first level, so they are in all shards
	}
	return names
}

// Run runs the load until ctx ends, waits for the operations under way, and returns
// the result.
func (w *Workload) Run(ctx context.Context) Report {
	w.prepare()
	names := w.Names()
	var wg sync.WaitGroup
	for i := range w.Workers {
		c := &worker{
			w: w, id: i, at: i % len(w.Managers), names: names,
			rand: rand.New(rand.NewPCG(w.Seed, uint64(i))),
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				c.step()
			}
		})
	}
	wg.Wait()
	return w.Progress()
}

func (w *Workload) prepare() {
	w.prepared.Do(func() {
		if w.Patience == 0 {
			w.Patience = 2 * time.Minute
		}
		if w.LongHold == 0 {
			w.LongHold = 800 * time.Millisecond
		}
		if w.LongOneIn == 0 {
			w.LongOneIn = 500
		}
		w.tally.byManager = make([]atomic.Uint64, len(w.Managers))
	})
}

// Progress returns the figures so far.
func (w *Workload) Progress() Report {
	w.prepare()
	return w.tally.report(&w.Oracle)
}

// AwaitFree checks that no lock of the load has a holder or a waiter under a live lease.
// That must be so once every caller is done, while all managers are still open.
// It acquires each lock exclusively, which only evicts entries under dead leases, and
// finds no entry after its release. The error names the blocking entries
// when ctx ended.
func (w *Workload) AwaitFree(ctx context.Context, m *fabric.Manager) error {
	for _, name := range w.Names() {
		if err := free(ctx, m, name); err != nil {
			return err
		}
		if left := parties(m, name); left != "" {
			return fmt.Errorf("chaos: lock %q is not free after its release: %s", name, left)
		}
	}
	return nil
}

// free acquires and releases a lock.
func free(ctx context.Context, m *fabric.Manager, name string) error {
	for {
		l, err := m.Acquire(ctx, name, fabric.WithOwner("check")) // so the lock is not kept
		if err != nil {
			return fmt.Errorf("chaos: lock %q is not free: %w: %s", name, err, parties(m, name))
		}
		err = l.Release(ctx)
		if err == nil {
			return nil
		}
		// On a busy machine a short lease can run out in between, or the release take longer than it is waited for.
		if ctx.Err() != nil || !errors.Is(err, fabric.ErrExpired) && !errors.Is(err, fabric.ErrUnconfirmed) {
			return fmt.Errorf("chaos: release of %q: %w", name, err)
		}
	}
}

// parties describes the holders and waiters of a lock.
func parties(m *fabric.Manager, name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	info, err := m.Inspect(ctx, name)
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for what, list := range map[string][]fabric.Party{"holder": info.Holders, "waiter": info.Waiters} {
		for _, p := range list {
			fmt.Fprintf(&out, "%s %s %s under a %s lease at revision %d; ", what, p.ID, p.Mode, p.Lease.State, info.Revision)
		}
	}
	return out.String()
}
