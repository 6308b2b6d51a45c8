package fabric

import (
	"context"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// PostedRelease makes Release return before it is confirmed. As an Option it is the default of every
// acquire of the manager.
type PostedRelease struct{}

func (PostedRelease) applyManager(c *config) error  { c.posted = true; return nil }
func (PostedRelease) applyAcquire(r *request) error { r.posted = true; return nil }

func (r *request) postsReleaseOf(k record.Kind) bool {
	return r.posted && (k == record.KindLock || k == record.KindSemaphore)
}

// WithPostedRelease returns a PostedRelease: Release of a lock, or of permits of a semaphore, returns nil as soon as
// the release is on its way and this process goes on with it by itself. It saves the caller a round trip, and
// where the next acquire of the same name follows at once, both are often one write.
//
// Nobody is granted twice, and whatever this process wants next of the name comes after the release. What is lost:
//
//   - Another process that hears by other means that Release has returned can still find the lock held, so that its
//     TryAcquire is refused.
//   - Release does not tell that the hold was lost, unless that is known when it is called, nor that nobody confirms
//     it. The hook of [WithEvents] is told: EventLost, or EventReleased with a reason.
//   - A process that ends without Close, as by os.Exit, may take the release with it. Then others wait
//     for the end of the lease, as after a crash. Close sees to all of them.
//
// Releasing again waits, and returns what became of it. Sets, intents of paths, and what is of another kind
// are released as always.
func WithPostedRelease() PostedRelease { return PostedRelease{} }

// post sends the release and returns: see WithPostedRelease.
func (h *Hold) post(ended Event) {
	q := &engine.Request{Key: h.enc, Op: releaseOp(h), AtLeast: h.revision()}
	late := time.AfterFunc(releaseTimeout, func() { h.s.doer.Withdraw(q, context.DeadlineExceeded) }) // it goes on, as owed
	q.Done = func(out engine.Outcome, err error) {
		late.Stop()
		h.finished(ended, h.releaseError(out, err))
	}
	h.s.doer.Submit(q)
}
