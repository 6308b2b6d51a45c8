package primitives

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lockfabric/lockfabric/fabric"
)

// MaxParties is the largest number of parties of a Barrier and a DoubleBarrier.
const MaxParties = 1024

// Barrier makes a number of parties wait for each other, repeatedly. Wait returns when as many are waiting as there are
// parties. These form a generation. A Barrier is safe for concurrent use, and one value serves any number of parties.
//
// A generation breaks for all its parties when one of them gives up or dies, when its action fails, and by
// [Barrier.Reset]. Later parties form the next generation, which starts empty.
//
// The barrier's record stays until [Barrier.Delete], or until an hour after its last use.
type Barrier struct {
	resource
	parties int
	action  func(ctx context.Context, token uint64) error
}

// NewBarrier returns the barrier with this name, for 1 to MaxParties parties. All users must agree on the number of
// parties. The options apply to each wait.
func NewBarrier(m *fabric.Manager, name string, parties int, opts ...fabric.AcquireOption) *Barrier {
	return &Barrier{resource: newResource(m, name, fabric.KindBarrier, opts), parties: parties}
}

// WithAction returns the same barrier with an action, which runs when a wait by this Barrier completes a generation,
// before any party returns. Its token is larger than those of all earlier actions. Its context ends with that of the
// wait, and when the lease is lost; the loss also breaks the generation. Only the last party decides whether an action
// runs, so all parties should have the same action.
//
// Parties that arrive while an action runs wait for the next generation, which ends, or starts its action, only after
// this one has ended. If an action returns an error or panics, its generation breaks.
func (b *Barrier) WithAction(fn func(ctx context.Context, token uint64) error) *Barrier {
	c := *b
	c.action = fn
	return &c
}

// Wait waits until all parties have arrived. It returns how many were still missing when this one arrived: parties-1
// for the first one, 0 for the last.
//
// If ctx ends first, the generation breaks, and the error is both ctx's and a *fabric.BrokenError, or, if the last party
// arrives at the same time, Wait succeeds, for all parties alike. While an action runs, or if no server answers, a party
// that gives up waits for up to 10 s and then gets [fabric.ErrUncertain] with ctx's error.
//
// Other errors: fabric.ErrBroken as a *[fabric.BrokenError], which tells why and because of which party;
// [fabric.ErrLost] if this process lost its lease, which breaks the generation; [fabric.ErrUncertain] if the outcome of
// this generation is no longer known, because too many generations have ended since, or because the record was deleted;
// [fabric.ErrSizeMismatch]; the error of the action, joined with ErrBroken; and those of [fabric.Manager.Acquire]. With
// an error, the index is -1.
func (b *Barrier) Wait(ctx context.Context) (index int, err error) {
	if err := validParties(b.parties); err != nil {
		return -1, &fabric.NotAcquiredError{Key: b.name, Cause: err}
	}
	verb := "arrive"
	if b.action != nil {
		verb = "arrive-to-act"
	}
	for {
		info, err := b.m.Read(ctx, b.name)
		if err != nil {
			return -1, err
		}
		gen := max(info.Generation, 1)
		h, info, err := b.await(ctx, fabric.Claim{Verb: verb, Limit: b.parties, Gen: gen, Life: info.Life, Once: true})
		switch {
		case err == nil && h != nil:
			return b.act(ctx, h, gen)
		case err == nil:
			return b.index(info, gen), nil
		case errors.Is(err, fabric.ErrStale):
			err = b.untilFree(ctx, gen) // the claim was never in the record
		case errors.Is(err, fabric.ErrDeleted) && !errors.Is(err, fabric.ErrUncertain):
			err = nil // read the new record
		}
		if err != nil {
			return -1, err
		}
	}
}

func validParties(n int) error {
	if n < 1 || n > MaxParties {
		return fmt.Errorf("%w: %d parties: use 1 to %d", fabric.ErrInvalidOption, n, MaxParties)
	}
	return nil
}

// untilFree returns when the generation gen is not a complete one that waits for the end of an action.
func (b *Barrier) untilFree(ctx context.Context, gen uint64) error {
	for info, err := range b.m.Watch(ctx, b.name) {
		if err != nil || !info.Acting || info.Generation != gen {
			return err
		}
	}
	return ctx.Err()
}

// index returns the position of the party, counted from the end of its generation.
func (b *Barrier) index(info fabric.Info, gen uint64) int {
	for _, e := range info.Ended {
		if e.Generation == gen {
			return len(e.IDs) - 1 - slices.Index(e.IDs, info.Claim)
		}
	}
	return -1 // not reached: the record shows that the generation tripped
}

// act runs the action and ends the generation.
func (b *Barrier) act(ctx context.Context, h *fabric.Hold, gen uint64) (int, error) {
	actx, done := h.Within(ctx)
	defer done()
	end := func(fail bool) error {
		tctx, cancel := confirming(ctx)
		defer cancel()
		_, err := h.Post(tctx, fabric.Post{Kind: fabric.KindBarrier, Verb: "trip", Gen: gen, Fail: fail, Ends: true})
		return err
	}
	returned := false
	defer func() {
		if !returned {
			_ = end(true) // the action panics
		}
	}()
	err := b.action(actx, h.Token())
	returned = true
	if lost := end(err != nil); lost != nil {
		return -1, errors.Join(err, lost)
	}
	if err != nil {
		return -1, errors.Join(&fabric.BrokenError{Key: b.name, Gen: gen, Why: "failed", Who: h.ID()}, err)
	}
	return 0, nil
}

// Reset breaks the generation that is forming, if a party waits in it. A generation whose action is running ends with the
// action. Errors: [fabric.ErrSizeMismatch], and those of [fabric.Manager.Post].
func (b *Barrier) Reset(ctx context.Context) error {
	if err := validParties(b.parties); err != nil {
		return err
	}
	return b.based(ctx, func(info fabric.Info) (p fabric.Post, needed bool) {
		return fabric.Post{Verb: "reset", Limit: b.parties, Gen: info.Generation, Life: info.Life}, info.Kind != ""
	})
}

// State returns the waiting parties, the generation, and how the last generations ended. It makes one read.
func (b *Barrier) State(ctx context.Context) (fabric.Info, error) { return b.read(ctx) }

// Delete removes the barrier's record. After that the barrier can have another number of parties. While a party waits,
// the error is [fabric.ErrHeld]. Without a record, Delete returns nil.
func (b *Barrier) Delete(ctx context.Context) error { return b.remove(ctx) }

// DoubleBarrier makes a number of parties enter together and leave together. It is safe for concurrent use, and one value
// serves any number of parties.
//
// If a party dies or gives up while it enters, its place becomes free. A party that dies inside counts as having left.
// A party that arrives while others are inside waits for the next round.
type DoubleBarrier struct {
	resource
	parties int
}

// NewDoubleBarrier returns the double barrier with this name, for 1 to MaxParties parties. All users at a time must
// agree on the number of parties; a name that nobody uses has none. The options apply to each Enter.
func NewDoubleBarrier(m *fabric.Manager, name string, parties int, opts ...fabric.AcquireOption) *DoubleBarrier {
	return &DoubleBarrier{resource: newResource(m, name, fabric.KindGate, opts), parties: parties}
}

// Enter waits until all parties have arrived, and returns the membership. If ctx ends at the moment when the last party
// arrives, Enter may succeed. Every error except [fabric.ErrUncertain], for which no server could be asked in time, means
// that the party did not enter. Other errors: [fabric.ErrSizeMismatch], and those of [fabric.Manager.Acquire].
func (d *DoubleBarrier) Enter(ctx context.Context) (*Member, error) {
	if err := validParties(d.parties); err != nil {
		return nil, &fabric.NotAcquiredError{Key: d.name, Cause: err}
	}
	for {
		info, err := d.m.Read(ctx, d.name)
		if err != nil {
			return nil, err
		}
		h, err := d.claim(ctx, fabric.Claim{Verb: "enter", Limit: d.parties, Gen: info.Generation, Life: info.Life})
		switch {
		case err == nil:
			return &Member{h}, nil
		case errors.Is(err, fabric.ErrStale), errors.Is(err, fabric.ErrDeleted):
			// Others have come or gone since, and the entry is not there: claim again.
		default:
			return nil, err
		}
	}
}

// State returns the parties, and whether they are inside. It makes one read.
func (d *DoubleBarrier) State(ctx context.Context) (fabric.Info, error) { return d.read(ctx) }

// Member is a membership, a single-use handle; see [fabric.Hold]. All members of one round have the same token, which
// is larger than those of earlier rounds. Release leaves without waiting for the others.
type Member struct{ *fabric.Hold }

// Leave ends the membership and waits until all members have left or died. The handle is invalid before the request is
// sent. If ctx has ended or ends, the membership ends nevertheless; Leave then does not wait, and returns ctx's error.
// Other errors: [fabric.ErrLost] if the membership was lost before, and those of [fabric.Hold.Release].
func (m *Member) Leave(ctx context.Context) error {
	if ctx.Err() != nil {
		if err := m.Release(ctx); err != nil {
			return err
		}
		return ctx.Err()
	}
	_, err := m.Post(ctx, fabric.Post{Kind: fabric.KindGate, Verb: "leave", Ends: true})
	return err
}
