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

// Barrier has a number of parties wait for each other, again and again: each Wait returns when as many
// are waiting as there are parties. These are a generation; who comes next is of the next one. It is
// safe for concurrent use, and one value serves any number of parties.
//
// A generation is broken, for all who are in it, when one of them gives up or dies, when its
// action fails, and by [Barrier.Reset]. Those who come afterwards are the next generation, which is whole.
// More of them than there are parties are the first ones of the generation after it.
//
// Its record stays for the generations to come. It goes with [Barrier.Delete], or an hour after its last use.
type Barrier struct {
	m       *fabric.Manager
	name    string
	parties int
	action  func(ctx context.Context, token uint64) error
	opts    []fabric.AcquireOption
}

// NewBarrier returns the barrier with this name, for 1 to MaxParties parties. All who use it have to agree on their
// number. The options are those of each wait.
func NewBarrier(m *fabric.Manager, name string, parties int, opts ...fabric.AcquireOption) *Barrier {
	return &Barrier{m: m, name: name, parties: parties, opts: slices.Clone(opts)}
}

// WithAction returns the same barrier with an action: when a wait by this Barrier is the last one to come, fn
// runs before anybody is let go. Its token is larger than those of all actions before. The context
// ends with the wait's, or when the lease is lost, and the generation with it. Whether an action runs is
// decided by the last one to come alone, so all parties should have the same.
//
// Who comes while an action runs waits for the next generation, whose action, or end, comes after this one's. An
// action that returns an error or panics breaks its generation.
func (b *Barrier) WithAction(fn func(ctx context.Context, token uint64) error) *Barrier {
	c := *b
	c.action = fn
	return &c
}

// Wait waits until all parties are there, and returns how many were still to come when this one
// came: parties-1 for the first one, 0 for the last.
//
// When ctx ends first, the generation breaks, and the error is ctx's and a *fabric.BrokenError. If the last
// one came at the same time, either the generation broke or Wait succeeds: all parties are
// told the same. While an action runs its generation can't be broken by one who gives up, so Wait goes on for up to 10 s and
// returns [fabric.ErrUncertain] beside ctx's error then, as it does where no server answers.
//
// Other errors: fabric.ErrBroken as a *[fabric.BrokenError], which says why and because of whom; [fabric.ErrLost]
// when this process lost its lease, which breaks the generation; [fabric.ErrUncertain] when so many generations have
// ended, or the record was deleted, that it isn't known any more what became of this one; [fabric.ErrSizeMismatch];
// the action's, joined with ErrBroken; and those of [fabric.Manager.Acquire]. The index is -1 with an error.
func (b *Barrier) Wait(ctx context.Context) (index int, err error) {
	if err := validParties(b.parties); err != nil {
		return -1, err
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
		claim := fabric.Claim{Kind: fabric.KindBarrier, Verb: verb, Limit: b.parties, Gen: gen, Life: info.Life, Once: true}
		h, info, err := b.m.Await(ctx, b.name, claim, b.opts...)
		switch {
		case err == nil && h != nil:
			return b.act(ctx, h, gen)
		case err == nil:
			return b.index(info, gen), nil
		case errors.Is(err, fabric.ErrStale):
			err = b.untilFree(ctx, gen) // it was never there
		case errors.Is(err, fabric.ErrDeleted) && !errors.Is(err, fabric.ErrUncertain):
			err = nil // read the new one
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

// untilFree returns when the generation gen isn't one that is full and waits for the end of an action.
func (b *Barrier) untilFree(ctx context.Context, gen uint64) error {
	for info, err := range b.m.Watch(ctx, b.name) {
		if err != nil || !info.Acting || info.Generation != gen {
			return err
		}
	}
	return ctx.Err()
}

// index is the place of the one who waited, counted from the end of its generation.
func (b *Barrier) index(info fabric.Info, gen uint64) int {
	for _, e := range info.Ended {
		if e.Generation == gen {
			return len(e.IDs) - 1 - slices.Index(e.IDs, info.Claim)
		}
	}
	return -1 // not reached: what says that it tripped is there
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
			_ = end(true) // it panics
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

// Reset breaks the generation that forms, if somebody waits in it; else it changes nothing. One whose action runs is
// complete, and ends with the action. Errors: [fabric.ErrSizeMismatch], and those of [fabric.Manager.Post].
func (b *Barrier) Reset(ctx context.Context) error {
	if err := validParties(b.parties); err != nil {
		return err
	}
	return based(ctx, b.m, b.name, func(info fabric.Info) (p fabric.Post, needed bool) {
		return fabric.Post{Kind: fabric.KindBarrier, Verb: "reset", Limit: b.parties, Gen: info.Generation, Life: info.Life}, info.Kind != ""
	})
}

// State tells who waits and for which generation, and how the last ones ended. It is one read.
func (b *Barrier) State(ctx context.Context) (fabric.Info, error) {
	return read(ctx, b.m, b.name, fabric.KindBarrier)
}

// Delete removes the barrier's record, after which it may have another number of parties. While somebody waits it is
// [fabric.ErrHeld]. Without a record it is nil.
func (b *Barrier) Delete(ctx context.Context) error {
	return remove(ctx, b.m, b.name, fabric.KindBarrier)
}

// DoubleBarrier has a number of parties go in together and come out together: Enter returns when all are there, and
// Leave when all have left. It is safe for concurrent use, and one value serves any number of parties.
//
// One that dies or gives up while it enters leaves its place to another; one that dies
// inside counts as having left. Who comes while the others are inside waits for the next time.
type DoubleBarrier struct {
	m       *fabric.Manager
	name    string
	parties int
	opts    []fabric.AcquireOption
}

// NewDoubleBarrier returns the double barrier with this name, for 1 to MaxParties parties. Those who use it at a time have to
// agree on their number: a name that nobody uses has none. The options are those of each Enter.
func NewDoubleBarrier(m *fabric.Manager, name string, parties int, opts ...fabric.AcquireOption) *DoubleBarrier {
	return &DoubleBarrier{m: m, name: name, parties: parties, opts: slices.Clone(opts)}
}

// Enter waits until all parties are there, and returns the membership. If ctx ends at the
// moment at which the last one comes, Enter may succeed: the others have gone in together with it.
//
// Every error means that nothing was entered, but [fabric.ErrUncertain], which says that no server
// could be asked in time. Others: [fabric.ErrSizeMismatch], and those of [fabric.Manager.Acquire].
func (d *DoubleBarrier) Enter(ctx context.Context) (*Member, error) {
	if err := validParties(d.parties); err != nil {
		return nil, err
	}
	for {
		info, err := d.m.Read(ctx, d.name)
		if err != nil {
			return nil, err
		}
		claim := fabric.Claim{Kind: fabric.KindGate, Verb: "enter", Limit: d.parties, Gen: info.Generation, Life: info.Life}
		h, err := d.m.Claim(ctx, d.name, claim, d.opts...)
		switch {
		case err == nil:
			return &Member{h}, nil
		case errors.Is(err, fabric.ErrStale), errors.Is(err, fabric.ErrDeleted):
			// Others came or went since, and it is not there: ask again.
		default:
			return nil, err
		}
	}
}

// State tells who is there, and whether they are inside. It is one read.
func (d *DoubleBarrier) State(ctx context.Context) (fabric.Info, error) {
	return read(ctx, d.m, d.name, fabric.KindGate)
}

// Member is a membership: a single-use handle, see [fabric.Hold]. All members of one time have the same token, larger than
// those of the times before. Release leaves without waiting for the others.
type Member struct{ *fabric.Hold }

// Leave ends the membership and waits until all members have left or are gone. The handle is invalid before
// it is sent, and it leaves also when ctx has ended or ends meanwhile: then Leave doesn't wait
// for the others, and returns ctx's error. Other errors: [fabric.ErrLost] when the membership was lost before, and
// those of [fabric.Hold.Release].
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
