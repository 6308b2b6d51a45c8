package jskv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

// unbatched is how long no batch is made after the server has refused one for a general reason: batches are
// switched off, or too many are under way.
const unbatched = time.Minute

// Batch sends writes of different keys as one atomic batch. Each is an Update or Purge under a context of its Member,
// waits until all others have come or left, and has an outcome of its own. No guarantee depends on the batch being
// atomic. If one member conflicts, all are ErrBusy; sent again one by one, they show which. A batch is only for speed.
type Batch struct {
	b       *Bucket
	ready   chan struct{} // closed when no member is missing
	done    chan struct{} // closed when the batch is answered
	mu      sync.Mutex
	missing int
	members []*Member // in the order of their revisions
	claimed bool      // a member sends it

	// For a committer's batch:
	answered func(n int, took time.Duration, err error) (singles bool)
	singles  bool // its members have to be sent alone; set before done is closed
	sent     bool // it was sent as a batch
}

// Member is one write of a batch.
type Member struct {
	of     *Batch
	come   bool      // it has come, or left
	msg    *nats.Msg // nil: the member writes nothing
	left   bool      // its writer has given up
	key    string
	rev    uint64
	newRev uint64
	err    error
}

// NewBatch returns a batch without members, or nil if single writes are as fast: on one server a
// batch takes longer than a few writes one after the other. Call Add for each member, and then Send.
func (b *Bucket) NewBatch() *Batch {
	if !b.batches || time.Now().UnixNano() < b.noBatches.Load() {
		return nil
	}
	return newBatch(b)
}

func newBatch(b *Bucket) *Batch {
	return &Batch{b: b, missing: 1, ready: make(chan struct{}), done: make(chan struct{})}
}

// Add adds a member. The member has to write, or to leave, without waiting for others.
func (t *Batch) Add() *Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := &Member{of: t}
	t.members = append(t.members, m)
	t.missing++
	return m
}

// Send says that all members were added.
func (t *Batch) Send() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.came()
}

func (t *Batch) came() {
	if t.missing--; t.missing == 0 {
		close(t.ready)
	}
}

// Leave says that the member writes nothing, unless it has come already.
func (m *Member) Leave() { m.comes(nil, "", 0) }

func (m *Member) comes(msg *nats.Msg, key string, rev uint64) bool {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	if m.come {
		return false
	}
	m.come, m.msg, m.key, m.rev = true, msg, key, rev
	m.of.came()
	return true
}

type memberKey struct{}

// Alone returns a context whose write is sent at once, and not in a batch.
func Alone(ctx context.Context) context.Context {
	return context.WithValue(ctx, memberKey{}, (*Member)(nil))
}

// In returns the context for the member's write. A second write under it is sent alone.
func (m *Member) In(ctx context.Context) context.Context {
	return context.WithValue(ctx, memberKey{}, m)
}

// write waits for the batch; the first member that sees it complete sends it.
func (m *Member) write(ctx context.Context) (uint64, error) {
	t := m.of
	select {
	case <-t.ready:
	case <-ctx.Done():
	}
	t.mu.Lock()
	if t.missing > 0 {
		m.msg, m.left = nil, true
		t.mu.Unlock()
		return 0, fmt.Errorf("%w: %w", ErrNotSent, ctx.Err())
	}
	first := !t.claimed
	t.claimed = true
	t.mu.Unlock()
	if first {
		t.send(ctx)
	}
	select {
	case <-t.done:
		return m.newRev, m.err
	case <-ctx.Done():
		m.left = true
		return 0, publishError(ctx.Err())
	}
}

// present returns the members that write. Lock held, or the batch is complete.
func (t *Batch) present() []*Member {
	return slices.DeleteFunc(slices.Clone(t.members), func(m *Member) bool { return m.msg == nil })
}

func (t *Batch) send(ctx context.Context) {
	defer close(t.done)
	began, all := time.Now(), t.present()
	err := t.sendMembers(ctx, all)
	if t.answered != nil {
		t.sent, t.singles = true, t.answered(len(all), time.Since(began), err)
	}
}

// sendMembers sends the members and sets the outcome of each. It returns the outcome of the batch.
func (t *Batch) sendMembers(ctx context.Context, all []*Member) error {
	last, id := all[len(all)-1], nuid.Next()
	for i, m := range all {
		if len(all) == 1 {
			break
		}
		h := m.msg.Header
		h[headerBatchID], h[headerBatchSequence] = []string{id}, []string{strconv.Itoa(i + 1)}
		if m == last {
			h[headerBatchCommit] = []string{"1"}
		} else if err := t.b.nc.PublishMsg(m.msg); err != nil {
			return t.answer(all, 0, publishError(err)) // without its last message the batch is not committed
		}
	}
	reply, err := t.b.request(ctx, last.msg)
	if err != nil {
		return t.answer(all, 0, publishError(err))
	}
	seq, err := t.b.parseAck(reply.Data, last.key, last.rev)
	switch {
	case len(all) == 1:
	case err == nil && !bytes.Contains(reply.Data, []byte(id)):
		err = fmt.Errorf("%w: acknowledged as a single write", ErrUnknown)
	case err != nil:
		if errors.Is(err, ErrUnknown) {
			t.b.noBatches.Store(time.Now().Add(unbatched).UnixNano())
		} else {
			err = fmt.Errorf("%w: of a batch: %v", ErrBusy, err) //nolint:errorlint // the conflict may be another member's
		}
	}
	return t.answer(all, seq, err)
}

// answer sets the outcome of each member. The revisions of a batch are consecutive.
func (t *Batch) answer(all []*Member, seq uint64, err error) error {
	for i, m := range all {
		m.newRev, m.err = seq-uint64(len(all)-1-i), err
		if err == nil && m.newRev <= m.rev {
			m.err = fmt.Errorf("%w: acknowledged revision %d is not above %d", ErrUnknown, m.newRev, m.rev)
		}
	}
	return err
}
