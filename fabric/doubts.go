package fabric

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// lookPause is the least time between two looks at the buckets.
const lookPause = 250 * time.Millisecond

// doubts joins reports that the buckets may not be those that were opened. No report is dropped: each is followed by
// a look that began after it, which it may share with others. It is safe for concurrent use.
type doubts struct {
	raised  atomic.Uint64 // how many reports there were
	settled atomic.Uint64 // how many of them a look has answered
	wake    chan struct{}

	mu   sync.Mutex
	news chan struct{} // closed, and made anew, when settled grows
}

func newDoubts() *doubts { return &doubts{wake: make(chan struct{}, 1), news: make(chan struct{})} }

// raise reports a doubt and returns its number. It never blocks.
func (d *doubts) raise() uint64 {
	n := d.raised.Add(1)
	signal(d.wake)
	return n
}

// pending reports whether a doubt is without its answer.
func (d *doubts) pending() bool { return d.settled.Load() < d.raised.Load() }

// wait returns when the doubt with this number is settled, or with ctx's error.
func (d *doubts) wait(ctx context.Context, n uint64) error {
	for {
		d.mu.Lock()
		news := d.news
		d.mu.Unlock()
		if d.settled.Load() >= n {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run looks whenever there is a doubt, until ctx ends or a look returns jskv.ErrBucketGone, which it returns. After
// another error nothing is known, and it looks again.
func (d *doubts) run(ctx context.Context, look func(context.Context) error) error {
	for {
		select {
		case <-d.wake:
		case <-ctx.Done():
			return nil
		}
		for d.pending() {
			n := d.raised.Load() // those that came before the look
			switch err := look(ctx); {
			case err == nil:
				d.settle(n)
			case errors.Is(err, jskv.ErrBucketGone):
				return err
			}
			if !pause.For(ctx, lookPause) {
				return nil
			}
		}
	}
}

func (d *doubts) settle(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settled.Store(n)
	close(d.news)
	d.news = make(chan struct{})
}
